"""Every command and flag, from the parsers themselves."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING

from buildrunner.cli.arguments import CommandParser
from buildrunner.cli.main import COMMANDS
from pages.markdown import code, sentence, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HEAD = """\
# Commands

`buildrunner COMMAND --help` prints the same on the terminal. Write flags as `--flag VALUE` or
`--flag=VALUE`; they cannot be abbreviated. `buildrunner --help` lists the commands, and `buildrunner --version`
prints the version. All commands use the same [exit codes](exit-codes.md).

"""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, as the command line makes it."""
    made: dict[str, argparse.ArgumentParser] = {}
    for name, (module, summary) in COMMANDS.items():
        parser = CommandParser(prog=f"buildrunner {name}", description=summary)
        import_module(module).configure(parser)
        made[name] = parser
    return made


def page() -> str:
    """The page."""
    rows = ((f"[`{name}`](#{name})", summary) for name, (_, summary) in COMMANDS.items())
    parts = [_HEAD, table(("command", "what it does"), rows)]
    for name, parser in parsers().items():
        parts += ["\n", *_command(parser, name, level=2)]
    return "".join(parts)


def _command(parser: argparse.ArgumentParser, title: str, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} {title}\n\n"
    if parser.description:
        yield f"{sentence(parser.description)}\n\n"
    yield f"```text\n{_usage(parser)}\n```\n"
    below = subcommands(parser)
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if _is_shown(action)]
        if rows:
            title_of_group = sentence(group.title or "").rstrip(".")
            own = group.title not in ("positional arguments", "options", "optional arguments")
            yield f"\n**{title_of_group}**\n" if own else ""
            yield "\n" + table(("argument", "meaning"), rows)
    if parser.epilog:
        yield f"\n```text\n{parser.epilog.strip()}\n```\n"
    for name, (sub, text) in below.items():
        sub.description = text
        yield "\n"
        yield from _command(sub, f"{title} {name}", level=level + 1)


def subcommands(
    parser: argparse.ArgumentParser,
) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """The commands below a command, with what each does."""
    found: dict[str, tuple[argparse.ArgumentParser, str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            found.update({name: (sub, texts.get(name, "")) for name, sub in action.choices.items()})
    return found


def _is_shown(action: argparse.Action) -> bool:
    hidden = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return not hidden and action.help is not argparse.SUPPRESS


def _row(action: argparse.Action) -> tuple[str, str]:
    meaning = action.help or ""
    first = meaning.split(" ")[0].rstrip(",")
    # A value of the flag keeps its case: "host: run on this machine's engine".
    is_value = first in (action.choices or ()) or not first.isalpha()
    return _written(action), meaning[:1] + sentence(meaning)[1:] if is_value else sentence(meaning)


def _written(action: argparse.Action) -> str:
    if not action.option_strings:
        return code(str(action.metavar or action.dest))
    value = ""
    if action.nargs != 0:
        choices = "|".join(str(choice) for choice in action.choices or ())
        value = f" {action.metavar or choices or action.dest.upper()}"
    return ", ".join(code(f"{flag}{value}") for flag in action.option_strings)


def _usage(parser: argparse.ArgumentParser) -> str:
    if parser.usage:
        return parser.usage
    if subcommands(parser):
        return f"{parser.prog} {'|'.join(subcommands(parser))}"
    flags = any(action.option_strings and _is_shown(action) for action in parser._actions)
    return " ".join((parser.prog, *_positionals(parser._actions), *(["[flags]"] if flags else [])))


def _positionals(actions: Iterable[argparse.Action]) -> Iterator[str]:
    for action in actions:
        if action.option_strings or not _is_shown(action):
            continue
        name = str(action.metavar or action.dest)
        yield {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(
            str(action.nargs), name
        )
