"""A filter as a SQL condition, as far as columns know; `list_filter_match` knows the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, assert_never

from sqlalchemy import and_, not_, or_, select

from buildrunner.store.build_store import FINAL_STATUSES
from buildrunner.store.list_filter import And, Anywhere, Expression, Not, Or, Term
from buildrunner.store.list_filter_match import COMPARISONS
from buildrunner.store.sql_schema import build_tags, builds

if TYPE_CHECKING:
    from sqlalchemy import Column, ColumnElement

_COLUMNS: dict[tuple[str, ...], Column[Any]] = {
    ("id",): builds.c.id,
    ("projectId",): builds.c.project_id,
    ("status",): builds.c.status,
    ("buildTriggerId",): builds.c.trigger_id,
    ("createTime",): builds.c.create_time,
    ("startTime",): builds.c.start_time,
    ("finishTime",): builds.c.finish_time,
}
# A name of its own: the list itself may be read off the table of tags.
_own_tags = build_tags.alias("own_tags")
_MAX_INTEGER = 2**63 - 1


class Condition(NamedTuple):
    """A condition that every matching build meets.

    Attributes:
        sql: None for no condition.
        exact: a build that meets it does match.
    """

    sql: ColumnElement[bool] | None
    exact: bool


_UNKNOWN = Condition(None, exact=False)


def condition_of(expression: Expression | None) -> Condition:
    """The condition of a filter."""
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
    # Conditions must be true or false, never NULL: a NOT may stand before them.
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
    """A tag that every matching build has, if the filter says so plainly."""
    match expression:
        case Term(path=("tags",), operator="=" | ":", operand=operand) if not operand.present:
            return str(operand.value)
        case And():
            found = (needed_tag(part) for part in expression.of)
            return next((tag for tag in found if tag is not None), None)
        case _:
            return None


def needed_text(expression: Expression | None) -> str:
    """A text, with its cases folded, that the JSON of every matching build has; empty for none.

    Only of a text that JSON writes as it is: nothing in it may be escaped.
    """
    match expression:
        case Anywhere(text=text) if text.isprintable() and not set(text) & {'"', "\\"}:
            return text.casefold()
        case And():
            return next(filter(None, (needed_text(part) for part in expression.of)), "")
        case _:
            return ""


def only_ongoing(expression: Expression | None) -> bool:
    """Whether the filter says plainly that only builds which have not ended match."""
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
    """A number that the database can hold, which compares the same with all that it has."""
    return max(min(value, _MAX_INTEGER), -_MAX_INTEGER) if isinstance(value, int) else value
