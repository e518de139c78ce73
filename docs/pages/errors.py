"""Exit codes and the errors behind them, from errors.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner import errors
from buildrunner.errors import BuildrunnerError
from pages.markdown import code, summary, table

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEANINGS = {
    "EXIT_SUCCESS": "the build succeeded, or the command succeeded",
    "EXIT_BUILD_FAILED": (
        "the build failed: a step, an image, a secret, the source or a push; `doctor` found a "
        "problem"
    ),
    "EXIT_BAD_CONFIG": "the config, the settings or the command line is wrong; nothing ran",
    "EXIT_INFRASTRUCTURE": (
        "buildrunner or the container engine could not do its job (status `INTERNAL_ERROR`)"
    ),
    "EXIT_TIMEOUT": "the build exceeded its timeout (status `TIMEOUT`)",
    "EXIT_INTERRUPTED": (
        "interrupted by Ctrl-C, SIGTERM or SIGHUP, or cancelled by `buildrunner builds cancel` "
        "(status `CANCELLED`)"
    ),
}

_HEAD = """\
# Exit codes

All commands use these exit codes.

"""

_ERRORS = """
`buildrunner validate` exits with 2 if a file has an error, and with `--strict` also if a file has a warning. If a build
has succeeded before Ctrl-C, the command exits with 0. Cloud Build's local builder exits with 0 after a timeout or a cancel;
buildrunner does not.

## Errors

Each error is one sentence on standard error, often with a hint. All problems of a config come at once, each with its
place. The table lists the kinds of errors in `buildrunner/errors.py`:

"""

_TAIL = """
A failing step is a result, not an error, and the command exits with 1. A bug in buildrunner is also reported in one
sentence. Its traceback is written to a file below your data folder.
"""


def page() -> str:
    """The page."""
    codes = [(name, getattr(errors, name)) for name in _MEANINGS]
    rows = [(str(number), _MEANINGS[name]) for name, number in codes]
    kinds = [
        (code(kind.__name__), summary(kind.__doc__ or ""), str(kind.exit_code)) for kind in _tree()
    ]
    return (
        _HEAD
        + table(("code", "meaning"), rows)
        + _ERRORS
        + table(("error", "meaning", "exit code"), kinds)
        + _TAIL
    )


def _tree(kind: type[BuildrunnerError] = BuildrunnerError) -> Iterator[type[BuildrunnerError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from _tree(below)
