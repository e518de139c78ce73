"""What Go's templates do with values: fields, truth, printing, functions."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote_plus

from buildrunner.server.notifications.views import MessageView

_NOTHING: Final = "<no value>"
_VERB: Final = re.compile(r"%(?:[-+ #0]*[0-9]*(?:\.[0-9]+)?)([a-zA-Z])")
_VERBS: Final = {"v": "s", "q": "s", "t": "s"}


class Quoted(str):
    """Text with its quotes, as ``%q`` makes it: JSON by itself."""

    __slots__ = ()


def field(value: Any, name: str) -> Any:
    """``.Name`` of a value; None for a key that a map does not have.

    Raises:
        ValueError: the value has no such field.
    """
    if isinstance(value, MessageView):
        try:
            return value[name[:1].lower() + name[1:]]
        except KeyError:
            raise ValueError(f"a {value.kind_name} has no field {name}") from None
    if isinstance(value, Mapping):
        return value.get(name)
    if value is None:
        return None
    raise ValueError(f"{shown(value)[:40]!r} has no field {name}")


def pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    """What ``range`` goes through: a list with its numbers, a map by its sorted keys."""
    if isinstance(value, Mapping):
        return iter(sorted(value.items()))
    if isinstance(value, list | tuple):
        return iter(enumerate(value))
    if value is None:
        return iter(())
    raise ValueError(f"range can't go through {shown(value)[:40]!r}")


def shown(value: Any) -> str:
    """A value as Go prints it."""
    if isinstance(value, str):
        return value
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{shown(item)}' for key, item in sorted(value.items()))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(shown(item) for item in value)}]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
            continue
        try:
            value = value[key]
        except (TypeError, IndexError):
            raise ValueError(f"{shown(value)[:40]!r} has no index {key}") from None
    return value


def _slice(value: Any, start: int = 0, end: int | None = None) -> Any:
    try:
        return value[start:end]
    except TypeError:
        raise ValueError(f"slice can't be taken of {shown(value)[:40]!r}") from None


def _equal(first: Any, *others: Any) -> bool:
    return any(first == other for other in others)


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _printf(form: str, *values: Any) -> str:
    if "*" in form or re.search(r"%[0-9]{3}", form):
        raise ValueError(f"printf {form!r}: widths of that kind are not understood here")
    verbs = _VERB.findall(form)
    given = [_printed(verb, value) for verb, value in zip(verbs, values, strict=False)]
    try:
        text = _VERB.sub(lambda verb: f"{verb[0][:-1]}{_VERBS.get(verb[1], verb[1])}", form)
        made = text % (*given, *values[len(given) :])
    except (TypeError, ValueError) as error:
        raise ValueError(f"printf {form!r}: {error}") from None
    return Quoted(made) if form == "%q" else made


def _printed(verb: str, value: Any) -> Any:
    if verb == "q":
        return json.dumps(shown(value), ensure_ascii=False)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and verb not in "sv" else shown(value)


def _replace(text: Any, old: str, new: str) -> str:
    return shown(text).replace(old, new)


CALLS: Final[dict[str, Callable[..., Any]]] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "eq": _equal,
    "ne": lambda first, second: first != second,
    "lt": lambda first, second: first < second,
    "le": lambda first, second: first <= second,
    "gt": lambda first, second: first > second,
    "ge": lambda first, second: first >= second,
    "len": len,
    "index": _index,
    "slice": _slice,
    "print": lambda *values: "".join(map(shown, values)),
    "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "printf": _printf,
    "html": lambda *values: html.escape("".join(map(shown, values))),
    "urlquery": lambda *values: quote_plus("".join(map(shown, values))),
    "replace": _replace,
}
