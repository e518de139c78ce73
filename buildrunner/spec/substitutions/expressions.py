"""References in templates; `bash` parses ``${NAME operator...}``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

# The beginning of an expression, with the whole variable name. A name with a lower-case letter
# (${TF_VAR_org_id:?}) is the shell's, with and without dynamic substitutions.
OPENER = re.compile(r"\$\{[#!]?[A-Z_][A-Z0-9_]*(?![A-Za-z0-9_])")

# Values may multiply (each "?" of one replaced by another). The limit is beyond any real value.
MAX_LENGTH: Final = 32 * 1024


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


class BadExpression(ValueError):
    """An expression that can't be evaluated; the message is one clause."""


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
