"""Whether a build matches a filter, by its document. Pure; `sql_filter` must agree with it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, assert_never

from buildrunner.store.build_store import Document
from buildrunner.store.filters.fields import KEYS, MESSAGE, read_value
from buildrunner.store.filters.parse import And, Anywhere, Expression, Not, Or, Term

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    ":": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def matches(expression: Expression | None, document: Document) -> bool:
    """Whether a build is one of those that a filter asks for; None asks for all."""
    match expression:
        case None:
            return True
        case Term():
            return _holds(expression, document)
        case Anywhere():
            wanted = expression.text.casefold()
            return any(wanted in text.casefold() for text in _texts(document))
        case Not():
            return not matches(expression.of, document)
        case And():
            return all(matches(part, document) for part in expression.of)
        case Or():
            return any(matches(part, document) for part in expression.of)
    assert_never(expression)


def _holds(term: Term, document: Document) -> bool:
    operand = term.operand
    raw = list(_at(document, term.path))
    if operand.present:
        return any(value not in ("", None, [], {}) for value in raw)
    if operand.kind in (KEYS, MESSAGE):
        return any(operand.value in value for value in raw if isinstance(value, dict))
    values = [value for one in raw for value in _value(operand.kind, one)]
    if not values and operand.zero is not None:
        values = [operand.zero]
    if term.operator == "!=":
        return all(value != operand.value for value in values)
    compare = COMPARISONS[term.operator]
    return any(compare(value, operand.value) for value in values)


def _at(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """All values at a path; lists are walked into."""
    if isinstance(value, list):
        for element in value:
            yield from _at(element, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _at(value[path[0]], path[1:])


def _value(kind: str, raw: object) -> Iterator[str | int | bool]:
    try:
        yield read_value(kind, raw)
    except ValueError:
        return  # a document of another version: what can't be compared matches nothing


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
