"""References in templates; `bash` parses ``${NAME operator...}``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

# The beginning of an expression, with the whole variable name. A name with a lower-case letter
# (${TF_VAR_org_id:?}) is the shell's, with and without dynamic substitutions.
OPENER = re.compile(r"\$\{[#!]?[A-Z_][A-Z0-9_]*(?![A-Za-z0-9_])")

# Values may multiply (each "?" of one replaced by another). The limit is beyond any real value.
MAX_LENGTH: Final = 32 * 1024

# A pattern is read again for each expression: a few KB could hold a processor for hours. A real
# build needs less than a hundredth of this.
MAX_WORK: Final = 100_000

# The work of reading one expression and of calling its operator.
EXPRESSION_WORK: Final = 10


class Expression(msgspec.Struct, frozen=True):
    """One ``$NAME``, ``${NAME}`` or ``${NAME operator operands}``.

    Attributes:
        name: its variable.
        operator: ``""`` for a plain reference, ``"length"`` for ``${#NAME}``, else the operator.
        operands: the words after the operator.
        error: why it can't be evaluated; empty if it can.
    """

    name: str
    operator: str = ""
    operands: tuple[Word, ...] = ()
    error: str = ""


Word = tuple[str | Expression, ...]


TOO_LONG: Final = f"the value grows beyond {MAX_LENGTH} characters"
TOO_MUCH: Final = (
    "the bash-style expressions and payload bindings of the build take too much work together: use "
    "fewer of them, shorter values or simpler patterns"
)


class BadExpression(ValueError):
    """An expression that can't be evaluated; the message is one clause."""


class Budget:
    """The work that all expressions of a build may take together, and their compiled patterns.

    The payload bindings of a trigger have one, too, for each event. One unit is about one step of a
    pattern (`bash`) over one character.

    Attributes:
        left: the units that are left; negative once there were too few.
        compiled: compiled patterns by their text.
    """

    def __init__(self, units: int = MAX_WORK) -> None:
        self.left = units
        self.compiled: dict[str, Any] = {}

    @property
    def is_exhausted(self) -> bool:
        """Return whether a call of `spend` was refused."""
        return self.left < 0

    def spend(self, units: int) -> None:
        """Take units from the budget.

        Raises:
            BadExpression: too few are left, now or at an earlier call.
        """
        if units > self.left:
            self.left = -1
        if self.is_exhausted:
            raise BadExpression(TOO_MUCH)
        self.left -= units


def bounded(text: str) -> str:
    """Return the text unchanged.

    Raises:
        BadExpression: the text is longer than `MAX_LENGTH`.
    """
    if len(text) > MAX_LENGTH:
        raise BadExpression(TOO_LONG)
    return text


def names_in(expression: Expression) -> Iterator[str]:
    """Return every variable in the expression, its own first."""
    yield expression.name
    for word in expression.operands:
        for part in word:
            if isinstance(part, Expression):
                yield from names_in(part)
