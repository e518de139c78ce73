"""Payload bindings: ``$(body.ref)`` in the substitutions of a trigger, filled from its event.

The value of a binding is data: it is quoted, so that no ``$(...)`` or ``${...}`` in it is ever
expanded again, not even inside a bash-style expression.

Source: Cloud Build "Using payload bindings". The path after the root is JSONPath. A path that can
match several places yields the list of matches (our choice).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from buildrunner.spec.substitutions.expressions import (
    MAX_LENGTH,
    OPENER,
    TOO_LONG,
    BadExpression,
    Budget,
)

Selector = Callable[[Any], Iterator[Any]]

NOTHING: Final = object()
"""The value at a path that does not exist."""

PATH: Final = r"(?:\.{1,2}[^.\[\]()\s]+|(?:\.\.)?\[[^\[\]()]{1,200}\])*"
"""Regular expression for the text of a path, after its root."""

# For one unit of a `Budget`.
_PLACES: Final = 5
_CHARACTERS: Final = 8
_PART = re.compile(r"(\.\.)?(?:\.?(?P<name>[^.\[\]()\s]+)|\[(?P<inside>[^\[\]()]+)\])")
_SELECTOR = re.compile(
    r"""\s*(?: '(?P<single>[^']*)' | "(?P<double>[^"]*)" | (?P<all>\*)
    | (?P<first>-?[0-9]{1,9})?\s*(?P<slice>:)\s*(?P<last>-?[0-9]{1,9})?
      \s*(?::\s*(?P<step>-?[0-9]{1,9})?)?
    | (?P<index>-?[0-9]{1,9}) )\s*(?:,|$)""",
    re.VERBOSE,
)


def find(value: Any, path: str, budget: Budget | None = None) -> Any:
    """Return the value at a path.

    Args:
        value: parsed JSON.
        path: the path after the root; empty for the whole value.
        budget: pays for the visited places (``..*..*`` grows without end). None: a budget for this
            path alone.

    Returns:
        The value of a path that can match only one; for another path, the list of all matches,
        in order. `NOTHING` if nothing matches, or if the path is invalid.

    Raises:
        BadExpression: the path takes more than the budget.
    """
    parts = _parts(path)
    if parts is None:
        return NOTHING
    budget = budget or Budget()
    found, is_one = [value], True
    for selectors, below, leads_to_one in parts:
        found = list(_paid(_selected(found, selectors, below, budget), budget))
        is_one = is_one and leads_to_one
    if not found:
        return NOTHING
    return found[0] if is_one else found


def _selected(
    values: list[Any], selectors: list[Selector], below: bool, budget: Budget
) -> Iterator[Any]:
    places = (inner for one in values for inner in _all_below(one)) if below else iter(values)
    tries = ((select, one) for one in places for select in selectors)
    return (inner for select, one in _paid(tries, budget) for inner in select(one))


_Place = TypeVar("_Place")


def _paid(places: Iterable[_Place], budget: Budget) -> Iterator[_Place]:
    """Yield places, and take their cost from the budget.

    Raises:
        BadExpression: the budget is too small.
    """
    rest = iter(places)
    while batch := list(islice(rest, _PLACES)):
        budget.spend(1)
        yield from batch


@lru_cache(maxsize=256)
def _parts(path: str) -> tuple[tuple[list[Selector], bool, bool], ...] | None:
    """Parse a path: for each part the selectors, whether it descends, whether it is one value."""
    parts = []
    position = 0
    while position < len(path):
        part = _PART.match(path, position)
        if part is None:
            return None
        position = part.end()
        below = part[1] is not None
        if part["name"]:
            selectors: list[Selector] = [_every if part["name"] == "*" else _named(part["name"])]
            leads_to_one = part["name"] != "*"
        else:
            found = _selectors(part["inside"])
            if found is None:
                return None
            selectors, leads_to_one = found
        parts.append((selectors, below, leads_to_one and not below))
    return tuple(parts)


def _selectors(text: str) -> tuple[list[Selector], bool] | None:
    """Parse the selectors between brackets, and whether they match at most one value."""
    found: list[Selector] = []
    leads_to_one = True
    position = 0
    while position < len(text):
        one = _SELECTOR.match(text, position)
        if one is None:
            return None
        position = one.end()
        if one["index"]:
            found.append(_at(int(one["index"])))
        elif one["all"]:
            found.append(_every)
        elif one["slice"]:
            ends = (int(one[name]) if one[name] else None for name in ("first", "last", "step"))
            found.append(_sliced(slice(*ends)))
        else:
            found.append(_named(one["single"] if one["single"] is not None else one["double"]))
        leads_to_one = leads_to_one and not (one["all"] or one["slice"])
    return found, leads_to_one and len(found) == 1


def _named(name: str) -> Selector:
    def select(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]

    return select


def _at(index: int) -> Selector:
    def select(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= index < len(value):
            yield value[index]

    return select


def _sliced(part: slice) -> Selector:
    def select(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and part.step != 0:
            yield from value[part]

    return select


def _every(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _all_below(value: Any) -> Iterator[Any]:
    """Yield a value and everything in it, from the outside to the inside."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(reversed(list(_every(one))))


ROOTS: Final = ("body", "push", "pull_request")

_BINDING = re.compile(rf"\$\(([a-z_]+)({PATH})\)")
_PLAIN = re.compile(r"[^\\$}]+")
_SPECIAL = re.compile(r"([\\$}/:*?\[\]^,#%!-])")


class Bound(msgspec.Struct, frozen=True):
    """Substitutions with their bindings filled in.

    Attributes:
        values: templates for dynamic substitutions, with all data quoted.
        missing: the bindings without a match, such as ``$(body.none)``; each became the empty
            string.
    """

    values: dict[str, str]
    missing: tuple[str, ...] = ()


def bind(
    substitutions: Mapping[str, str], event: Mapping[str, Any], budget: Budget | None = None
) -> Bound:
    """Fill in the bindings of all values.

    Args:
        substitutions: substitutions of a trigger, or of its config.
        event: parsed JSON by root name: ``body``, ``push`` or ``pull_request``. Bindings of roots
            that ``event`` lacks stay unchanged.
        budget: the work that all bindings together may take; None for a budget of their own.

    Raises:
        BadExpression: the bindings take more than the budget, or make a value longer than
            `MAX_LENGTH`; the message names the variable.
    """
    missing: dict[str, None] = {}
    budget = budget or Budget()
    values: dict[str, str] = {}
    for name, value in substitutions.items():
        try:
            values[name] = _bind(value, event, missing, budget)
        except BadExpression as error:
            raise BadExpression(f"substitutions.{name}: {error}") from error
    return Bound(values, tuple(missing))


def filled(template: str, event: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return a text with its bindings filled in, unquoted; and the bindings without a value.

    Args:
        template: the text.
        event: parsed JSON by root name, as for `bind`; any name is accepted.
    """
    missing: dict[str, None] = {}

    def found(binding: re.Match[str]) -> str:
        if binding.group(1) not in event:
            return binding.group()
        with suppress(BadExpression):
            value = find(event[binding.group(1)], binding.group(2))
            if value is not NOTHING:
                return _as_text(value)
        missing[binding.group()] = None
        return ""

    return _BINDING.sub(found, template), tuple(missing)


def _bind(template: str, event: Mapping[str, Any], missing: dict[str, None], budget: Budget) -> str:
    if "$(" not in template:
        return template
    pieces: list[str] = []
    position = depth = 0
    room = MAX_LENGTH
    while position < len(template):
        binding = _BINDING.match(template, position)
        budget.spend(1)
        if binding and binding.group(1) in event:
            found = find(event[binding.group(1)], binding.group(2), budget)
            if found is NOTHING:
                missing[binding.group()] = None
            else:
                room = _room_after(found, room, budget)
                text = _as_text(found)
                pieces.append(_SPECIAL.sub(r"\\\1", text) if depth else quoted(text))
            position = binding.end()
            continue
        end, depth = _literal(template, position, depth)
        pieces.append(template[position:end])
        position = end
    return "".join(pieces)


def _literal(template: str, position: int, depth: int) -> tuple[int, int]:
    """Return the end of the token at ``position``, and the number of open expressions after it.

    ``depth`` is the number of open expressions before the token.
    """
    char = template[position]
    if template.startswith("$$", position):
        return position + 2, depth
    if depth and char == "\\":
        return position + 2, depth
    if template.startswith("${", position) and (depth or OPENER.match(template, position)):
        return position + 2, depth + 1
    if depth and char == "}":
        return position + 1, depth - 1
    plain = _PLAIN.match(template, position + 1)
    return plain.end() if plain else position + 1, depth


def quoted(text: str) -> str:
    """Return a template whose value is the text, for a place outside of all expressions."""
    return text.replace("$", "$$")


def _room_after(value: Any, room: int, budget: Budget) -> int:
    """Return how many of ``room`` characters the text of a value leaves, at most.

    Raises:
        BadExpression: the text is longer, or takes more than the budget.
    """
    before = room
    for place in _paid(_all_below(value), budget):
        room -= len(place) if isinstance(place, str | list | dict) else 1
        if isinstance(place, dict) and room >= 0:
            room -= sum(map(len, place))
        if room < 0:
            raise BadExpression(TOO_LONG)
    budget.spend((before - room) // _CHARACTERS)
    return room


def _as_text(value: Any) -> str:
    """Return a scalar as text, anything else as compact JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    from json import dumps

    return dumps(value, separators=(",", ":"), ensure_ascii=False)
