"""References in templates: how ``${NAME operator...}`` is read is in `bash`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

# The beginning of an expression: a whole variable must follow. A name with a lower-case letter
# (${TF_VAR_org_id:?}) is the shell's, with and without dynamic substitutions.
OPENER = re.compile(r"\$\{[#!]?[A-Z_][A-Z0-9_]*(?![A-Za-z0-9_])")

# Values may multiply (each "?" of one replaced by another): far beyond any real value it stops.
MAX_LENGTH: Final = 32 * 1024


class Expression(msgspec.Struct, frozen=True):
    """One ``$NAME``, ``${NAME}`` or ``${NAME operator operands}``.

    Attributes:
        name: the variable it is about.
        operator: ``""`` for a plain reference, ``"length"`` for ``${#NAME}``, else as written.
        operands: the words after the operator.
        error: why it can't be evaluated; empty when it can.
    """

    name: str
    operator: str = ""
    operands: tuple[Word, ...] = ()
    error: str = ""


Word = tuple[str | Expression, ...]


TOO_LONG: Final = f"the value grows beyond {MAX_LENGTH} characters"


class BadExpression(ValueError):
    """An expression that can't be evaluated; the message is one clause for a person."""


def bounded(text: str) -> str:
    """The text itself.

    Raises:
        BadExpression: it is longer than `MAX_LENGTH`.
    """
    if len(text) > MAX_LENGTH:
        raise BadExpression(TOO_LONG)
    return text


def names_in(expression: Expression) -> Iterator[str]:
    """Every variable the expression mentions, itself first."""
    yield expression.name
    for word in expression.operands:
        for part in word:
            if isinstance(part, Expression):
                yield from names_in(part)
