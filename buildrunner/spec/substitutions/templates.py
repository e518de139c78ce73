r"""Finds and replaces ``$NAME``, ``${NAME}`` and ``$$`` in the strings of a build.

One scanner serves checks and replacements, so that both find the same references:

    template   := ( escape | reference | char )*
    escape     := "$$"                       one literal "$"
    reference  := "$" NAME | "${" NAME "}"   longest match
    NAME       := [A-Z_] [A-Z0-9_]*          ASCII only

One pass from left to right; results are never scanned again; a backslash has no meaning; any other
``$`` is literal. With dynamic substitutions ``${NAME operator...}`` counts, too (`bash`).

Source: the substitution package of the local builder; "Substituting variable values".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from buildrunner.spec.substitutions import expressions
from buildrunner.spec.substitutions.expressions import (
    MAX_LENGTH,
    OPENER,
    TOO_LONG,
    BadExpression,
    Budget,
    Expression,
)

MAX_SUBSTITUTED_LENGTH: Final = 16 * 2**20
"""A small file must not grow into a large build: $_A may occur a thousand times in one argument."""
SUBSTITUTED_TOO_LONG: Final = (
    f"the build grows beyond {MAX_SUBSTITUTED_LENGTH} characters by substitution"
)

_TOKEN = re.compile(r"\$(?:(\$)|([A-Z_][A-Z0-9_]*)|\{([A-Z_][A-Z0-9_]*)\}|(\{))")


class Reference(msgspec.Struct, frozen=True):
    """One escape or reference in a template.

    Attributes:
        start: position of its ``$``.
        end: position after its last character.
        expression: its expression; None for the escape ``$$``.
    """

    start: int
    end: int
    expression: Expression | None = None


class ValuesTooLong(BadExpression):
    """The values of a template are longer than the caller allows."""


class Cycle(ValueError):
    """User variables refer to each other in a cycle, which the message shows.

    Attributes:
        names: the variables in the order of their references; the first is also the last.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"cycle {' -> '.join(names)}")
        self.names = names


def find_references(template: str, *, dynamic: bool = False) -> Iterator[Reference]:
    """Return every escape and reference of the template, from left to right, without overlap.

    Args:
        template: any text; never an error. Time is linear in its length.
        dynamic: also find ``${NAME operator...}``.
    """
    position = 0
    while True:
        token = _TOKEN.search(template, position)
        if token is None:
            return
        position = token.end()
        escape, bare, braced, brace = token.groups()
        if escape:
            yield Reference(token.start(), position)
        elif bare or braced:
            yield Reference(token.start(), position, Expression(bare or braced))
        elif brace and dynamic and OPENER.match(template, token.start()):
            from buildrunner.spec.substitutions.bash import parse_expression  # few builds need it

            parsed = parse_expression(template, token.start())
            if parsed is None:
                # Without a closing brace, the rest can have no expression either.
                dynamic = False
            else:
                expression, position = parsed
                yield Reference(token.start(), position, expression)


def substitute(
    template: str,
    lookup: Callable[[str], str | None],
    *,
    dynamic: bool = False,
    budget: Budget | None = None,
    longest: int | None = None,
) -> str:
    """Return the template with every reference replaced; a variable without a value is empty.

    Args:
        template: any text.
        lookup: returns the value of a variable; None if it has none.
        dynamic: also evaluate bash-style expressions.
        budget: the work that ``dynamic`` may take, which all templates of a build share. None: a
            budget for this template alone.
        longest: the most characters of the values together; None for no limit.

    Raises:
        BadExpression: an expression can't be evaluated, or takes more than the budget (only with
            ``dynamic``).
        ValuesTooLong: the values are longer than ``longest``. None of them is kept.
    """
    if "$" not in template:
        return template
    if dynamic and budget is None:
        budget = Budget()
    room = longest
    pieces: list[str] = []
    position = 0
    for reference in find_references(template, dynamic=dynamic):
        pieces.append(template[position : reference.start])
        if reference.expression is None:
            pieces.append("$")
        else:
            value = _value(reference.expression, lookup, budget)
            if room is not None:
                room -= len(value)
                if room < 0:
                    raise ValuesTooLong(TOO_LONG)
            pieces.append(value)
        position = reference.end
    pieces.append(template[position:])
    return "".join(pieces)


def _value(
    expression: Expression, lookup: Callable[[str], str | None], budget: Budget | None
) -> str:
    if expression.operator or expression.error:
        from buildrunner.spec.substitutions.bash import evaluate  # few builds need it

        return evaluate(expression, lookup, budget)
    value = lookup(expression.name) or ""
    if budget is not None:
        budget.spend(len(value) // 256)
    return value


def names_in(template: str, *, dynamic: bool = False) -> Iterator[str]:
    """Return the name of the variable of each reference, in order, with repetitions."""
    if "$" not in template:
        return
    for reference in find_references(template, dynamic=dynamic):
        if reference.expression is not None:
            yield from expressions.names_in(reference.expression)


def expand(
    user: Mapping[str, str],
    built_in: Mapping[str, str],
    *,
    is_template: Callable[[str], bool],
    budget: Budget | None = None,
) -> dict[str, str]:
    """Return the values of ``user`` with the references between them resolved.

    Used for dynamic substitutions. A name for which ``is_template`` returns false (an overridden
    built-in) keeps its value, which is data of a commit or event. The order of the map is
    irrelevant. All expressions share the ``budget``; None: one for these variables alone.

    Raises:
        Cycle: variables refer to each other in a cycle.
        BadExpression: an expression can't be evaluated; the message names the variable.
    """
    done: dict[str, str] = {}
    budget = budget or Budget()
    for name in _dependency_order(user, is_template):
        value = user[name]
        if not is_template(name):
            done[name] = value
            continue

        def lookup(wanted: str) -> str | None:
            found = done.get(wanted)
            return built_in.get(wanted) if found is None else found

        try:
            text = substitute(value, lookup, dynamic=True, budget=budget, longest=MAX_LENGTH)
            done[name] = expressions.bounded(text)
        except BadExpression as error:
            raise BadExpression(f"substitutions.{name}: {error}") from error
    return {name: done[name] for name in user}


def _dependency_order(user: Mapping[str, str], is_template: Callable[[str], bool]) -> list[str]:
    """Return the names in an order in which each follows those in its value."""
    order: list[str] = []
    finished: set[str] = set()
    for first in user:
        # An explicit stack instead of recursion, since a chain of 200 variables is legal.
        path: list[str] = []
        on_path: set[str] = set()
        pending: list[tuple[str, bool]] = [(first, False)]
        while pending:
            name, leaving = pending.pop()
            if leaving:
                path.pop()
                on_path.discard(name)
                finished.add(name)
                order.append(name)
                continue
            if name in finished:
                continue
            if name in on_path:
                circle = [*path[path.index(name) :], name]
                raise Cycle(circle)
            path.append(name)
            on_path.add(name)
            pending.append((name, True))
            if is_template(name):
                mentioned = dict.fromkeys(names_in(user[name], dynamic=True))
                pending.extend((other, False) for other in reversed(mentioned) if other in user)
    return order
