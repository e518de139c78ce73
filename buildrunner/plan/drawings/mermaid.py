"""The step graph as a Mermaid flowchart, which code hosts draw inside Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from buildrunner.plan.drawings.text import Node, one_line, reduced, short_image


def draw_mermaid(nodes: Sequence[Node]) -> str:
    """A ``flowchart TD``: a box a step (dashed when it may fail), an arrow a wait."""
    lines = ["flowchart TD"]
    for node in nodes:
        label = _quoted(node.id or f"step {node.index}")
        image = _quoted(short_image(node.image))
        lines.append(f'  s{node.index}["{label}<br><small>{image}</small>"]')
    for node, needed in zip(nodes, reduced([node.depends_on for node in nodes]), strict=True):
        lines += [f"  s{nodes[index].index} --> s{node.index}" for index in needed]
    forgiven = ",".join(f"s{node.index}" for node in nodes if node.may_fail)
    if forgiven:
        lines += ["  classDef mayFail stroke-dasharray: 4 3", f"  class {forgiven} mayFail"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """The text as Mermaid takes it inside quotes: its own entities, no markup."""
    special = {char: f"#{ord(char)};" for char in '"#<>&;`\\[](){}|*_~'}
    return "".join(special.get(char, char) for char in one_line(text, 60))
