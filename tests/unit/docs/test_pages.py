"""What the README and the manual show can be done: links lead somewhere, commands parse."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from buildrunner.cli.main import _server_behind_command

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from pages import cli  # noqa: E402

PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "steps").rglob("*.md"))
    if "_build" not in path.parts
)
COMMANDS = cli.parsers()
# Flags that pages speak of: of other programs, and the word for any of ours.
FOREIGN = {"--flag", "--network", "--network=cloudbuild", "--volumes-from", "--rm"}


def named(path):
    return str(path.relative_to(ROOT))


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def shown_commands():
    for page in PAGES:
        text = page.read_text()
        lines = re.findall(r"^\s*\$ (buildrunner.*)$", text, re.MULTILINE)
        lines += re.findall(r"`(buildrunner [^`\n]+)`", text)
        for line in dict.fromkeys(lines):
            yield pytest.param(line, id=f"{named(page)}: {line}")


@pytest.mark.parametrize("line", [*shown_commands()])
def test_a_command_that_is_shown_parses(line):
    line = re.split(r" +(?:#|\||>) *", line.replace("...", "").replace("\\|", "|"))[0].strip()
    words = _server_behind_command(shlex.split(line)[1:])
    if not words or words[0] in ("--help", "--version", "COMMAND"):
        return
    parser = COMMANDS[words[0]]
    below = cli.subcommands(parser)
    if below and (len(words) == 1 or "|" in words[1]):
        assert all(word in below for word in words[1].split("|")) if words[1:] else True
        return
    required = below and words[1] in below and len(words) == 2
    if "--help" in words or required:  # a command named in a sentence, without its arguments
        return
    parser.parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_flags_that_are_named_exist(page):
    known = {
        flag
        for parser in COMMANDS.values()
        for one in (parser, *(below for below, _ in cli.subcommands(parser).values()))
        for action in one._actions
        for flag in action.option_strings
    }
    known |= FOREIGN | {"--help", "--version"}
    named_flags = re.findall(r"`(--[a-z-]+)[^`]*`", page.read_text())
    if page.parts[-3] != "steps":  # those pages name the flags of their images' programs
        assert [flag for flag in named_flags if flag not in known] == []
