"""What behaviours.toml says: tests of fields, behaviours, open points."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import msgspec

from pages.markdown import codes

if TYPE_CHECKING:
    from pathlib import Path

STANDS = ("same", "differs", "recorded", "refused")


class FieldTests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which tests show what becomes of some fields."""

    names: tuple[str, ...]
    tests: tuple[str, ...]


class Behaviour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that the hosted service does, and what happens here."""

    area: str
    what: str
    stand: str
    tests: tuple[str, ...]
    note: str = ""


class OpenPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that Cloud Build's documentation leaves open, and what we do."""

    id: str
    question: str
    decision: str
    tests: tuple[str, ...] = ()


class Behaviours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    fields: tuple[FieldTests, ...]
    behaviours: tuple[Behaviour, ...]
    open_points: tuple[OpenPoint, ...]

    def all_tests(self) -> list[str]:
        """Every test that is named, in order."""
        parts = (*self.fields, *self.behaviours, *self.open_points)
        return [test for part in parts for test in part.tests]


def load(path: Path) -> Behaviours:
    """Read the file.

    Raises:
        msgspec.ValidationError: it does not have its shape.
    """
    with path.open("rb") as file:
        return msgspec.convert(tomllib.load(file), Behaviours)


def proof(tests: tuple[str, ...]) -> str:
    """The tests as a cell of a table."""
    return codes(tests)
