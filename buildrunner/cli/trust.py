"""``buildrunner trust``: accepts the settings of a project file that need the user's trust.

Commands read the settings of a folder here (`folder_settings`): a user at a terminal is asked about
a file that needs trust.
"""

from __future__ import annotations

import argparse
import os
import sys

from buildrunner.cli.terminal.listing import formatted, table
from buildrunner.errors import EXIT_SUCCESS, ConfigError, UsageError
from buildrunner.logs.console.wording import count, one_line, printable
from buildrunner.settings import (
    FILE_NAME,
    ProjectFile,
    Settings,
    TrustedFiles,
    load_settings,
    read_project_file,
)

_PLACE_LENGTH = 60
_WHAT_LENGTH = 130
_WIDEST = 12  # characters for one that can't be printed
_PAGE_LINES = 6
"""Needs that are shown at once: with three rows each, all are on a screen of 24 rows."""

_EPILOG = f"""\
A project's {FILE_NAME} may lower the rights of builds without your trust. It needs your trust to
name a project, image aliases, package repositories, environment variables or files elsewhere, and
to give steps privilege or the engine's socket. A change of the file needs your trust again.

examples:
  buildrunner trust                trust the file of this folder, or of the nearest folder above it
  buildrunner trust --list
  buildrunner trust --revoke DIR
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``trust``."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "dir",
        nargs="?",
        default=".",
        metavar="DIR",
        help="folder of the project (default: this folder)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show the trusted files")
    what.add_argument("--revoke", action="store_true", help="withdraw the trust in the file of DIR")
    parser.add_argument(
        "--format",
        choices=("table", "json", "yaml"),
        default="table",
        help="format of the output (default: table)",
    )


def run(args: argparse.Namespace) -> int:
    """Trust a file, withdraw the trust, or list the trusted files.

    Raises:
        ConfigError: the file is invalid.
        UsageError: the file does not exist, or is not trusted.
        StoreError: the list of trusted files can't be written.
    """
    trusted = TrustedFiles(os.environ)
    if args.list:
        return _list(trusted, args.format)
    if not os.path.isdir(args.dir):
        raise UsageError(f"there is no folder {args.dir}")
    return _revoke(trusted, args.dir) if args.revoke else _trust(trusted, args.dir)


def _trust(trusted: TrustedFiles, folder: str) -> int:
    file, _ = read_project_file(folder)
    if file is None:
        raise UsageError(f"there is no {FILE_NAME} in {folder}, nor in a folder above it")
    path = printable(file.path)
    if not file.needs:
        sys.stderr.write(f"{path} asks for nothing that needs trust.\n")
        return EXIT_SUCCESS
    trusted.add(file)
    sys.stderr.write(f"Trusted {path} as it is now:\n{needs_text(file)}")
    return EXIT_SUCCESS


def _revoke(trusted: TrustedFiles, folder: str) -> int:
    path = os.path.join(os.path.realpath(folder), FILE_NAME)
    if not trusted.remove(path):
        raise UsageError(f"{path} is not trusted", hint="buildrunner trust --list shows which are")
    sys.stderr.write(f"{printable(path)} is trusted no more.\n")
    return EXIT_SUCCESS


def _list(trusted: TrustedFiles, form: str) -> int:
    found = [{"file": path, "state": _state(trusted, path)} for path in trusted.all()]
    if form != "table":
        sys.stdout.write(formatted(found, form))
        return EXIT_SUCCESS
    rows = [(printable(one["file"]), one["state"]) for one in found]
    sys.stdout.write(table(("FILE", "STATE"), rows))
    if not found:
        sys.stderr.write("Listed 0 trusted files.\n")
    return EXIT_SUCCESS


def _state(trusted: TrustedFiles, path: str) -> str:
    try:
        file, _ = read_project_file(os.path.dirname(path))
    except ConfigError:
        return "changed"
    if file is None or file.path != path:
        return "gone"
    return "trusted" if trusted.has(file) else "changed"


def folder_settings(folder: str = ".") -> Settings:
    """Return the effective settings of ``folder``.

    Raises:
        ConfigError: a settings file is invalid, or the project's needs trust that the user denies.
        StoreError: the user's decision can't be stored.
    """
    return load_settings(folder, confirm=_confirm)


def needs_text(file: ProjectFile) -> str:
    """Return the settings of a project's file that need trust, a line each, safe to print."""
    return "".join(_need_lines(file))


def _need_lines(file: ProjectFile) -> list[str]:
    return [
        f"  {one_line(place, _PLACE_LENGTH)}: {one_line(what, len(what) * _WIDEST)}\n"
        for place, what in file.needs.items()
    ]


def _confirm(file: ProjectFile) -> bool:
    if not (os.isatty(0) and os.isatty(2)):
        return False
    lines = _need_lines(file)
    settings = count(len(lines), "setting")
    if any(len(line) > _PLACE_LENGTH + _WHAT_LENGTH for line in lines):
        # Cut, a text could hide the host that it names.
        sys.stderr.write(
            f"{one_line(file.path, _WHAT_LENGTH)} has settings that are too long to be shown in a"
            " question. Read the file; `buildrunner trust` trusts it.\n"
        )
        return False
    verb = "needs" if len(lines) == 1 else "need"
    path = one_line(file.path, _WHAT_LENGTH)
    sys.stderr.write(f"{path} has {settings} that {verb} your trust:\n")
    for start in range(0, len(lines), _PAGE_LINES):
        end = start + _PAGE_LINES
        sys.stderr.write("".join(lines[start:end]))
        if end < len(lines):
            question = f"Shown: {end} of {len(lines)}. Show more? [Y/n] "
            if _answer(question) not in ("", "y", "yes"):
                return False
    question = f"Trust this file with its {settings} as it is now? [y/N] "
    if _answer(question) not in ("y", "yes"):
        return False
    TrustedFiles(os.environ).add(file)
    return True


def _answer(question: str) -> str:
    """Return the user's answer in small letters; "n" at the end of the input."""
    sys.stderr.write(question)
    sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip().lower() if line else "n"
