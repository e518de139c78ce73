"""Shows an error to the user: a message on stderr, a hint, an exit code, and no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

from buildrunner.errors import (
    EXIT_BAD_CONFIG,
    EXIT_INFRASTRUCTURE,
    BuildrunnerError,
    ConfigError,
    UsageError,
)
from buildrunner.logs.console.wording import printable
from buildrunner.problem import Problem, nearest


def unknown_command(name: str, known: Iterable[str]) -> UsageError:
    """Return the error for an unknown command, with the most similar command."""
    if name.startswith("-"):
        return UsageError(
            f"buildrunner has no flag {name} before the command",
            hint="flags go after the command: `buildrunner submit --help`",
        )
    near = nearest(name, known)
    hint = f"did you mean `buildrunner {near}`?" if near else "`buildrunner --help` lists them"
    return UsageError(f'there is no command "{name}"', hint=hint)


def report_failure(error: Exception, arguments: Sequence[str]) -> int:
    """Print an error on stderr.

    Args:
        error: any exception of a command.
        arguments: the command line, named in the crash report of a bug.

    Returns:
        The exit code of the error.
    """
    if isinstance(error, ConfigError):
        print_problems(error.problems)
        return error.exit_code
    if isinstance(error, BuildrunnerError):
        _say(f"error: {printable(str(error))}\n")
        if error.hint:
            _say(f"  {error.hint}\n")
        return error.exit_code
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        if missing in SERVER_PACKAGES:
            _say(
                f"error: this needs the Python package {missing}, which is not installed\n"
                "  in the source folder of buildrunner: pip install '.[server]'\n"
            )
            return EXIT_BAD_CONFIG
    if isinstance(error, FileNotFoundError) and _is_nowhere():
        _say("error: the current folder no longer exists\n  cd into one that does\n")
        return EXIT_BAD_CONFIG
    return _report_bug(error, arguments)


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def report_lost_output(error: OSError) -> int:
    """Report that standard output can't be written (a full disk, say). Returns the exit code."""
    _say(f"error: standard output can't be written: {error.strerror}\n")
    return EXIT_INFRASTRUCTURE


SERVER_PACKAGES = frozenset(
    {
        "alembic",
        "celpy",
        "cronsim",
        "fastapi",
        "fastapi_offline",
        "prometheus_client",
        "psycopg",
        "sqlalchemy",
        "starlette",
        "uvicorn",
    }
)
"""The packages that only a server needs, by import name."""


def _say(text: str) -> None:
    # If stderr can't be written either, the exit code alone reports the error.
    with suppress(OSError):
        sys.stderr.write(text)


def print_problems(problems: Iterable[Problem]) -> None:
    """Print each problem on a line: ``error: cloudbuild.yaml:3:5: steps[0].name: ...``."""
    for problem in problems:
        _say(f"{problem.severity.value}: {printable(problem.text())}\n")


def _report_bug(error: Exception, arguments: Sequence[str]) -> int:
    # The traceback goes to a file that only the user can read: it may quote values of the build.
    import traceback

    from buildrunner import __version__
    from buildrunner.settings import data_folder

    folder = os.path.join(data_folder(), "crashes")
    path = os.path.join(folder, f"crash-{os.getpid()}.txt")
    command = arguments[0] if arguments else ""
    text = "".join(traceback.format_exception(error))
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(path, "w", opener=_private) as file:
            file.write(f"buildrunner {__version__} {command}\n{text}")
        where = f"the details are in {path}"
    except OSError as failure:
        where = f"the details could not be written to {path} ({failure.strerror})"
    _say(f"error: this is a bug in buildrunner ({type(error).__name__}); {where}\n")
    return EXIT_INFRASTRUCTURE


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
