"""The argument parser of every command: exact flag names, one-sentence errors with a suggestion."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from buildrunner.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are `UsageError` instead of an exit."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        self._width: int | None = 80
        super().__init__(allow_abbrev=False, **options)

    def format_help(self) -> str:
        """The help text, as wide as the terminal."""
        self._width = None
        return super().format_help()

    def _get_formatter(self) -> argparse.HelpFormatter:
        # One is made for every flag that is added, too, to check the flag. Left to itself it would
        # ask for the terminal's width each time, and import shutil for that (4 ms).
        return self.formatter_class(prog=self.prog, width=self._width)  # type: ignore[call-arg]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is not known here: else the parser above would, and names the wrong command.

        Raises:
            UsageError: some arguments are not known.
        """
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`; an unknown flag gets the nearest known one as a suggestion."""
        hint = f"`{self.prog} --help` lists all flags"
        if message.startswith("unrecognized arguments: "):
            # Without what may follow a "=": it may be a secret in the wrong place.
            unknown = message.partition(": ")[2].split(" ")[0].partition("=")[0]
            near = self._nearest_flag(unknown)
            message = f"{self.prog} has no flag or argument {unknown}"
            hint = f"did you mean {near}?" if near else hint
        else:
            message = f"{self.prog}: {message}"
        raise UsageError(message, hint=hint)

    def _nearest_flag(self, unknown: str) -> str:
        from difflib import get_close_matches

        known = [flag for action in self._actions for flag in action.option_strings]
        return next(iter(get_close_matches(unknown, known, n=1)), "")
