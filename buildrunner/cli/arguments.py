"""The argument parser of every command: exact flag names, one-sentence errors with a suggestion."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from buildrunner.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are `UsageError` instead of an exit."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

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
