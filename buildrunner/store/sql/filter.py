"""Filters as SQL conditions, as far as columns suffice; `list_filter.matches` checks the rest."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, assert_never

import msgspec
from sqlalchemy import Column, ColumnElement, and_, not_, or_, select

from buildrunner.errors import PageTokenError
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.list_filter import COMPARISONS, And, Anywhere, Expression, Not, Or, Term
from buildrunner.store.sql.schema import build_tags, builds

_COLUMNS: dict[tuple[str, ...], Column[Any]] = {
    ("id",): builds.c.id,
    ("projectId",): builds.c.project_id,
    ("status",): builds.c.status,
    ("buildTriggerId",): builds.c.trigger_id,
    ("createTime",): builds.c.create_time,
    ("startTime",): builds.c.start_time,
    ("finishTime",): builds.c.finish_time,
}
# A separate alias, since the list itself may use the table of tags.
_own_tags = build_tags.alias("own_tags")
_MAX_INTEGER = 2**63 - 1


class Condition(NamedTuple):
    """A condition that every matching build meets.

    Attributes:
        sql: None for no condition.
        exact: every build that meets it matches the filter.
    """

    sql: ColumnElement[bool] | None
    exact: bool


_UNKNOWN = Condition(None, exact=False)


def condition_of(expression: Expression | None) -> Condition:
    """Return the condition of a filter."""
    match expression:
        case None:
            return Condition(None, exact=True)
        case Term():
            return _of_term(expression)
        case Anywhere():
            return _UNKNOWN
        case Not():
            sql, exact = condition_of(expression.of)
            return Condition(not_(sql), exact=True) if sql is not None and exact else _UNKNOWN
        case And():
            parts = [condition_of(part) for part in expression.of]
            known = [part.sql for part in parts if part.sql is not None]
            exact = all(part.exact for part in parts)
            return Condition(and_(*known) if known else None, exact)
        case Or():
            parts = [condition_of(part) for part in expression.of]
            known = [part.sql for part in parts if part.sql is not None]
            if len(known) < len(parts):
                return _UNKNOWN
            return Condition(or_(*known), all(part.exact for part in parts))
    assert_never(expression)


def _of_term(term: Term) -> Condition:
    # Conditions must be true or false, never NULL, since a NOT may precede them.
    if term.path == ("tags",):
        return Condition(_of_tags(term), exact=True)
    column = _COLUMNS.get(term.path)
    if column is None:
        return _UNKNOWN
    if term.operand.present:
        return Condition(column != "" if _is_text(column) else column.is_not(None), exact=True)
    value = _bounded(term.operand.value)
    if term.operator == "!=":
        return Condition(or_(column.is_(None), column != value), exact=True)
    holds = COMPARISONS[term.operator](column, value)
    return Condition(and_(column.is_not(None), holds) if column.nullable else holds, exact=True)


def _of_tags(term: Term) -> ColumnElement[bool]:
    own = select(_own_tags.c.tag).where(_own_tags.c.build_id == builds.c.id).correlate(builds)
    if term.operand.present:
        return own.exists()
    if term.operator == "!=":
        return not_(own.where(_own_tags.c.tag == term.operand.value).exists())
    return own.where(COMPARISONS[term.operator](_own_tags.c.tag, term.operand.value)).exists()


def needed_tag(expression: Expression | None) -> str | None:
    """Return a tag that every matching build has, if the filter has a plain term for it."""
    match expression:
        case Term(path=("tags",), operator="=" | ":", operand=operand) if not operand.present:
            return str(operand.value)
        case And():
            found = (needed_tag(part) for part in expression.of)
            return next((tag for tag in found if tag is not None), None)
        case _:
            return None


def needed_text(expression: Expression | None) -> str:
    """Return a case-folded text that the JSON of every matching build has; empty for none.

    Only for a text without characters that JSON escapes.
    """
    match expression:
        case Anywhere(text=text) if text.isprintable() and not set(text) & {'"', "\\"}:
            return text.casefold()
        case And():
            return next(filter(None, (needed_text(part) for part in expression.of)), "")
        case _:
            return ""


def only_ongoing(expression: Expression | None) -> bool:
    """Return whether the filter has a plain term that only ongoing builds match."""
    match expression:
        case Term(path=("status",), operator="=" | ":", operand=operand):
            return not operand.present and operand.value not in FINAL_STATUSES
        case And():
            return any(only_ongoing(part) for part in expression.of)
        case Or():
            return all(only_ongoing(part) for part in expression.of)
        case _:
            return False


def _is_text(column: Column[Any]) -> bool:
    return column.type.python_type is str


def _bounded(value: str | int | bool) -> str | int | bool:
    """Return a number that the database can hold, and that compares the same with its values."""
    return max(min(value, _MAX_INTEGER), -_MAX_INTEGER) if isinstance(value, int) else value


DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_SIGNATURE_BYTES = 16
_MAX_TOKEN = 4096


def bounded(page_size: int) -> int:
    """Return the effective page size: 50 by default, at most 1000."""
    return min(page_size, MAX_PAGE_SIZE) if page_size > 0 else DEFAULT_PAGE_SIZE


# The identity of a list: its kind, its project, and all other values that select its items.
Parent: TypeAlias = "Sequence[str | None]"


class PageTokens:
    """Writes and reads page tokens.

    Args:
        key: the signing key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, parent: Parent, last: Sequence[Any]) -> str:
        """Return the token of the page after ``last``, in the list ``parent``."""
        body = msgspec.json.encode(list(last))
        return _text(self._signature(parent, body) + body)

    def read(self, token: str, parent: Parent, types: Sequence[type]) -> tuple[Any, ...]:
        """Return the position in a list from a page token.

        Args:
            token: the caller's token.
            parent: the list, with its filter.
            types: types of the values that `write` got.

        Raises:
            PageTokenError: the token is invalid, or another list's.
        """
        try:
            raw = urlsafe_b64decode(token[:_MAX_TOKEN].encode("ascii") + b"==")
            signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
            genuine = hmac.compare_digest(signature, self._signature(parent, body))
            genuine = genuine and _text(raw) == token  # the decoder ignores unknown characters
            values = msgspec.json.decode(body) if genuine else []
        except ValueError as error:  # not ASCII, not base64
            raise _refused() from error
        if not genuine or [type(value) for value in values] != list(types):
            raise _refused()
        return tuple(values)

    def _signature(self, parent: Parent, body: bytes) -> bytes:
        signed = msgspec.json.encode([list(parent), body])
        return hmac.digest(self._key, signed, "sha256")[:_SIGNATURE_BYTES]


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _refused() -> PageTokenError:
    return PageTokenError(
        "this page token is not one of this list",
        hint="begin with the first page; filter and project must stay the same from page to page",
    )
