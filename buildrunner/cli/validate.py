"""``buildrunner validate``: prints every problem of any number of configs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import TextIOWrapper
from typing import Any, Final, TextIO

from buildrunner.cli.terminal.streams import write_styled
from buildrunner.errors import EXIT_BAD_CONFIG, EXIT_SUCCESS
from buildrunner.logs.console.wording import printable
from buildrunner.problem import Problem, Severity

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
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        default=["."],
        help="config, folder, or - for standard input (default: .)",
    )
    parser.add_argument(
        "--format",
        choices=("text", "json", "github", "sarif"),
        default="text",
        help="form of the problems: text for people, json for programs, github for GitHub Actions,"
        " sarif for code scanning (default: text)",
    )
    parser.add_argument("--strict", action="store_true", help="treat warnings as errors")
    parser.add_argument(
        "--substitutions",
        action="append",
        default=[],
        metavar="_KEY=VALUE,...",
        help="values of substitutions, as in `gcloud builds submit`; may be repeated",
    )
    parser.add_argument(
        "--triggered", action="store_true", help="check configs as for builds of a trigger"
    )


def run(args: argparse.Namespace) -> int:
    """Check every file, print the problems in the chosen format, and return the exit code."""
    from buildrunner.cli.arguments import parse_map

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
    """Make stdout escape characters that the terminal's encoding lacks."""
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="backslashreplace")


def _check(name: str, given: dict[str, str], *, triggered: bool) -> list[Problem]:
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

    return msgspec.structs.replace(problem, severity=Severity.ERROR)


def _files(names: Iterable[str]) -> Iterator[str]:
    """Yield the files to check, each once, in the given order. Folders are read in name order."""
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


_COLOURS: Final = {Severity.ERROR: "\033[31m", Severity.WARNING: "\033[33m"}
_BOLD: Final = "\033[1m"
_PLAIN: Final = "\033[0m"
# A config must not be able to send control codes to the reader's terminal.
_VISIBLE: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_SARIF_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_INFORMATION: Final = "https://cloud.google.com/build/docs/build-config-file-schema"


def write_text(problems: Sequence[Problem], files: int, out: TextIO) -> None:
    """Print a line for each problem and a summary; in colour on a terminal without NO_COLOR."""
    colour = out.isatty() and not os.environ.get("NO_COLOR")
    for problem in problems:
        write_styled(out, f"{_line(problem, colour=colour)}\n")
    out.write(f"{_summary(problems, files)}\n")


def _line(problem: Problem, *, colour: bool) -> str:
    word = problem.severity.value
    rule = f" [{problem.rule}]" if problem.rule else ""
    text = printable(problem.text()).translate(_VISIBLE)
    if not colour:
        return f"{word}: {text}{rule}"
    place = f"{problem.file}:{problem.line}:{problem.column}" if problem.line else problem.file
    place = printable(place).translate(_VISIBLE)
    rest = text.removeprefix(place)
    return f"{_COLOURS[problem.severity]}{word}{_PLAIN}: {_BOLD}{place}{_PLAIN}{rest}{rule}"


def _summary(problems: Sequence[Problem], files: int) -> str:
    errors = sum(problem.severity is Severity.ERROR for problem in problems)
    warnings = len(problems) - errors
    counted = _counted(files, "file")
    if not problems:
        return f"{counted} checked, no problems"
    found = [_counted(number, word) for number, word in ((errors, "error"), (warnings, "warning"))]
    return f"{counted} checked, {' and '.join(text for text in found if text[0] != '0')}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def write_json(problems: Sequence[Problem], files: int, out: TextIO) -> None:
    """Print one JSON object: the number of checked files, and each problem with all its fields."""
    import msgspec

    listed = [msgspec.to_builtins(problem) for problem in problems]
    encoded = msgspec.json.encode({"files": files, "problems": listed})
    out.write(msgspec.json.format(encoded, indent=2).decode() + "\n")


def write_github(problems: Sequence[Problem], files: int, out: TextIO) -> None:
    """Print workflow commands of GitHub Actions, which mark each problem's line, and a summary."""
    for problem in problems:
        properties = {"file": problem.file, "line": problem.line, "col": problem.column}
        properties["title"] = problem.rule
        listed = ",".join(
            f"{name}={_escaped(str(value), property_value=True)}"
            for name, value in properties.items()
            if value
        )
        text = f"{problem.path}: {problem.message}" if problem.path else problem.message
        if problem.hint:
            text = f"{text}; {problem.hint}"
        out.write(f"::{problem.severity.value} {listed}::{_escaped(text)}\n")
    out.write(f"{_summary(problems, files)}\n")


def _escaped(text: str, *, property_value: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if property_value else text


def write_sarif(problems: Sequence[Problem], files: int, out: TextIO) -> None:  # noqa: ARG001
    """Print a SARIF 2.1.0 log with one run, for code scanning."""
    import msgspec

    from buildrunner import __version__

    rules = sorted({problem.rule for problem in problems})
    driver = {
        "name": "buildrunner",
        "version": __version__,
        "informationUri": _INFORMATION,
        "rules": [{"id": rule} for rule in rules],
    }
    results = [_sarif_result(problem, rules.index(problem.rule)) for problem in problems]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    log = {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    out.write(msgspec.json.format(msgspec.json.encode(log), indent=2).decode() + "\n")


def _sarif_result(problem: Problem, rule_index: int) -> dict[str, Any]:
    text = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(problem.file)}}
    if problem.line:
        physical["region"] = {"startLine": problem.line, "startColumn": max(problem.column, 1)}
    location: dict[str, Any] = {"physicalLocation": physical}
    if problem.path:
        location["logicalLocations"] = [{"fullyQualifiedName": problem.path}]
    return {
        "ruleId": problem.rule,
        "ruleIndex": rule_index,
        "level": problem.severity.value,
        "message": {"text": text},
        "locations": [location],
    }


def _uri(file: str) -> str:
    from urllib.parse import quote

    return quote(file.replace(os.sep, "/"))


FORMATS: Final[dict[str, Callable[[Sequence[Problem], int, TextIO], None]]] = {
    "text": write_text,
    "json": write_json,
    "github": write_github,
    "sarif": write_sarif,
}
