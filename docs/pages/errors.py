"""Exit codes and the errors behind them, from errors.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner import errors
from buildrunner.errors import BuildrunnerError
from pages.markdown import code, summary, table

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEANINGS = {
    "EXIT_SUCCESS": "the build succeeded, or the command did what it was asked",
    "EXIT_BUILD_FAILED": (
        "the build failed: a step, an image, a secret, the source or a push; `doctor`: something "
        "must be done first"
    ),
    "EXIT_BAD_CONFIG": "the config, the settings or the command line is wrong; nothing has run",
    "EXIT_INFRASTRUCTURE": (
        "buildrunner or the container engine could not do its job (status `INTERNAL_ERROR`)"
    ),
    "EXIT_TIMEOUT": "the build ran into its timeout (status `TIMEOUT`)",
    "EXIT_INTERRUPTED": (
        "interrupted by Ctrl-C, SIGTERM or SIGHUP, or cancelled by `buildrunner builds cancel` "
        "(status `CANCELLED`)"
    ),
}

_HEAD = """\
# Exit codes

The same table holds for every command.

"""

_ERRORS = """
`buildrunner validate` exits with 2 as soon as one file has an error, and under `--strict` as soon as one has
a warning. A build that had succeeded when Ctrl-C came exits with 0. The local builder's 0 after a timeout
or a cancel is not copied.

## Errors

Each error is one sentence on standard error, with a hint on what to do where there is one; all problems of
a config come at once, each with its place. These are the kinds, as the code and its docstrings name them
(`buildrunner/errors.py`):

"""

_TAIL = """
A failing step is no error but a result, and exits with 1. A bug in buildrunner is reported in one sentence
too; its traceback goes to a file of yours below the data folder.
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
