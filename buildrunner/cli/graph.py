"""``buildrunner graph``: draws the steps of a config and their dependencies."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from buildrunner.errors import EXIT_SUCCESS
from buildrunner.plan.drawing import Node

_EPILOG: Final = """\
Time runs from top to bottom. Steps side by side may run at the same time. Edges that follow from
others are omitted. The drawing shows the config before substitution, so it needs no values;
`buildrunner submit --dry-run` shows the steps with their values.

Examples:
  buildrunner graph                          draw ./cloudbuild.yaml on the terminal
  buildrunner graph ci/build.yaml -o ci.svg  the ending sets the format
  buildrunner graph --format mermaid         for a Markdown page
"""
_FORMATS: Final = ("text", "svg", "mermaid")
_ENDINGS: Final = {".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "file",
        nargs="?",
        default="cloudbuild.yaml",
        metavar="FILE",
        help="a config, or - for standard input (default: cloudbuild.yaml)",
    )
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        help="format of the drawing (default: by the ending of OUT, or text)",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="file to write (default: standard output)"
    )


def run(args: argparse.Namespace) -> int:
    """Draw the graph.

    Raises:
        ConfigError: the config can't be read, or its steps make no graph.
        UsageError: a file can't be read or written.
    """
    nodes = _nodes(args.file)
    ending = os.path.splitext(args.output or "")[1].lower()
    form = args.format or _ENDINGS.get(ending, "text")
    if args.output:
        _write(args.output, _drawn(nodes, form, args.file, unicode=True))
        return EXIT_SUCCESS
    drawing = _drawn(nodes, form, args.file, unicode=_can_draw(sys.stdout.encoding or "ascii"))
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(drawing.encode(encoding, "replace").decode(encoding))
    return EXIT_SUCCESS


def _nodes(file: str) -> list[Node]:
    from buildrunner.errors import ConfigError, UsageError
    from buildrunner.plan.drawing import nodes_of_build
    from buildrunner.problem import Severity
    from buildrunner.spec.reading.decode import load_build
    from buildrunner.spec.validation.check import check_build

    shown = "<stdin>" if file == "-" else file
    try:
        text = sys.stdin.buffer.read() if file == "-" else _content(file)
    except OSError as error:
        raise UsageError(f"unable to read {shown}: {error.strerror or error}") from error
    loaded = load_build(text, file=shown, allow_source=True)
    problems = check_build(loaded, file=shown)
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    unread = [problem for problem in loaded.problems if problem.severity is Severity.ERROR]
    if unread or any(problem.rule in ("V20", "V27") for problem in errors):
        raise ConfigError(errors)
    if errors:
        found = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        sys.stderr.write(f"{shown} has {found}: see `buildrunner validate {file}`\n")
    return nodes_of_build(loaded.build)


def _content(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


def _drawn(nodes: Sequence[Node], form: str, file: str, *, unicode: bool) -> str:
    if form == "svg":
        from buildrunner.plan.drawing import draw_svg

        return draw_svg(nodes, name="" if file == "-" else os.path.basename(file))
    if form == "mermaid":
        from buildrunner.plan.drawing import draw_mermaid

        return draw_mermaid(nodes)
    from shutil import get_terminal_size

    from buildrunner.plan.drawing import ASCII, UNICODE, draw_text, summary

    width = get_terminal_size().columns if sys.stdout.isatty() else 160
    drawing = draw_text(nodes, width=width, glyphs=UNICODE if unicode else ASCII)
    return f"{summary(nodes)}\n\n{drawing}"


def _can_draw(encoding: str) -> bool:
    try:
        "●○│─├┤┼╰╯╭╮┬┴…".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _write(path: str, drawing: str) -> None:
    from buildrunner.errors import UsageError

    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(drawing)
    except OSError as error:
        raise UsageError(f"unable to write {path}: {error.strerror or error}") from error
