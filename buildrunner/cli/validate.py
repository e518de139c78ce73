"""``buildrunner validate``: every problem of any number of configs, in one call."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from typing import Final, TextIO

from buildrunner.errors import EXIT_BAD_CONFIG, EXIT_SUCCESS
from buildrunner.problem import Problem

CONFIG_PREFIX: Final = "cloudbuild"
CONFIG_SUFFIXES: Final = (".yaml", ".yml", ".json")

_EPILOG: Final = """\
FILE is a config (YAML or JSON), `-` for standard input, or a folder. In a folder and all folders
below it, validate checks the files whose name begins with "cloudbuild" and ends in .yaml, .yml or
.json, in any case. It skips hidden folders and node_modules.

Without --triggered, a config is checked as by `gcloud builds submit`: every user variable needs a
value (in the file or from --substitutions). With --triggered, substitutions are loose and dynamic,
and the repository's variables have values, as for a build of a trigger.

Exit codes: 0 no error (warnings only with --strict are errors), 2 at least one error.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("files", nargs="*", metavar="FILE", default=["."], help="default: .")
    parser.add_argument(
        "--format",
        choices=("text", "json", "github", "sarif"),
        default="text",
        help="how problems are written: for people, programs, GitHub Actions or code scanning",
    )
    parser.add_argument("--strict", action="store_true", help="treat warnings as errors")
    parser.add_argument(
        "--substitutions",
        action="append",
        default=[],
        metavar="_KEY=VALUE,...",
        help="values as in `gcloud builds submit`; may be repeated",
    )
    parser.add_argument(
        "--triggered", action="store_true", help="check them as builds of a trigger"
    )


def run(args: argparse.Namespace) -> int:
    """Check every file; write problems to stdout (in the chosen format), return the exit code."""
    from buildrunner.cli.problem_formats import FORMATS
    from buildrunner.problem import Severity
    from buildrunner.settings.flag_values import parse_map

    given = parse_map("--substitutions", args.substitutions)
    problems: list[Problem] = []
    count = 0
    for name in _files(args.files):
        count += 1
        problems += _check(name, given, triggered=args.triggered)
    if args.strict:
        problems = [_as_error(problem) for problem in problems]
    _never_fail_to_write(sys.stdout)
    FORMATS[args.format](problems, count, sys.stdout)
    failed = any(problem.severity is Severity.ERROR for problem in problems)
    return EXIT_BAD_CONFIG if failed else EXIT_SUCCESS


def _never_fail_to_write(out: TextIO) -> None:
    """Let what the terminal's encoding lacks be written as an escape."""
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="backslashreplace")


def _check(name: str, given: dict[str, str], *, triggered: bool) -> list[Problem]:
    from buildrunner.problem import Problem
    from buildrunner.spec.reading.decode import load_build
    from buildrunner.spec.validation.check import check_build

    shown = "<stdin>" if name == "-" else name
    try:
        text = sys.stdin.buffer.read() if name == "-" else _content(name)
    except OSError as error:
        message = f"unable to read the file: {error.strerror or error}"
        return [Problem(message, file=shown, rule="unreadable")]
    loaded = load_build(text, file=shown)
    return check_build(loaded, file=shown, substitutions=given, triggered=triggered)


def _content(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


def _as_error(problem: Problem) -> Problem:
    import msgspec

    from buildrunner.problem import Severity

    return msgspec.structs.replace(problem, severity=Severity.ERROR)


def _files(names: Iterable[str]) -> Iterator[str]:
    """The files to check, each once, in the order given; folders are searched in name order."""
    seen: set[str] = set()
    for name in names:
        found = _configs_below(name) if name != "-" and os.path.isdir(name) else [name]
        for path in found:
            if path not in seen:
                seen.add(path)
                yield path


def _configs_below(folder: str) -> list[str]:
    from buildrunner.errors import UsageError

    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "node_modules"
        )
        found += [os.path.join(parent, name) for name in sorted(files) if _is_config(name)]
    if not found:
        raise UsageError(
            f"there is no config in {folder}",
            hint="configs are files named cloudbuild*.yaml, .yml or .json; or name a file",
        )
    return [path.removeprefix("./") for path in found] if folder == "." else found


def _is_config(name: str) -> bool:
    lower = name.lower()
    return lower.startswith(CONFIG_PREFIX) and lower.endswith(CONFIG_SUFFIXES)
