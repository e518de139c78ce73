"""What somebody who approves a build in a terminal must know: whose code, and what it may do."""

from __future__ import annotations

from buildrunner.client.client import Document
from buildrunner.logs.console.wording import printable
from buildrunner.triggers.forge_host import request_name


def approval_lines(facts: Document) -> list[str]:
    """Lines about a build, from the server's `ApprovalFacts`."""
    lines = [_whose(facts)] if facts.get("pullRequest") else []
    if facts.get("commenter"):
        lines.append(f"Asked for in a comment by {facts['commenter']}")
    if facts.get("url"):
        lines.append(facts["url"])
    if facts.get("state") == "PENDING":
        trust = "the project's" if facts.get("trusted", True) else "none"
        lines.append(f"Trust: {trust}. Once it is approved:")
        lines += [f"- {sentence}" for sentence in facts.get("grants", ())]
    elif facts.get("approver"):
        said = f": {facts['comment']}" if facts.get("comment") else ""
        word = str(facts.get("state", "")).capitalize()
        lines.append(f"{word} by {facts['approver']} at {facts.get('time', '')}{said}")
    return [printable(line) for line in lines]


def _whose(facts: Document) -> str:
    name = request_name(facts.get("forge", ""), facts["pullRequest"])
    text = f"Of a fork's {name}" if facts.get("fork") else f"Of {name}"
    if facts.get("author"):
        text += f" by {facts['author']}"
    head = facts.get("headRepository") or "its own repository"
    branch = f", branch {facts['headBranch']}" if facts.get("headBranch") else ""
    base = f" into {facts['baseRepository']}" if facts.get("baseRepository") else ""
    return f"{text}, from {head}{branch}{base}"
