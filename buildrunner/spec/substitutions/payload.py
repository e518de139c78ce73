"""Payload bindings: ``$(body.ref)`` in the substitutions of a trigger, filled from its event.

What a binding finds is data: it is quoted, so that neither ``$(...)`` nor ``${...}`` in it is ever
looked at again, wherever it lands, also inside a bash-style expression.

Source: Cloud Build "Using payload bindings". The path after the root is JSONPath (json_path.py).
One that can lead to several places is filled with the list of what it finds (our choice).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from buildrunner.spec.substitutions.expressions import OPENER
from buildrunner.spec.substitutions.json_path import NOTHING, PATH, find

ROOTS: Final = ("body", "push", "pull_request")

_BINDING = re.compile(rf"\$\(([a-z_]+)({PATH})\)")
_SPECIAL = re.compile(r"([\\$}/:*?\[\]^,#%!-])")


class Bound(msgspec.Struct, frozen=True):
    """Substitutions with their bindings filled in.

    Attributes:
        values: templates for dynamic substitutions, with all data quoted.
        missing: the bindings that found nothing, such as ``$(body.none)``; each became the empty
            string.
    """

    values: dict[str, str]
    missing: tuple[str, ...] = ()


def bind(substitutions: Mapping[str, str], event: Mapping[str, Any]) -> Bound:
    """Fill in the bindings of all values.

    Args:
        substitutions: of a trigger, or of the config that a repository event builds.
        event: parsed JSON by root name: ``body``, ``push`` or ``pull_request``. Bindings of roots
            that are not there are left as they stand.
    """
    missing: dict[str, None] = {}
    values = {name: _bind(value, event, missing) for name, value in substitutions.items()}
    return Bound(values, tuple(missing))


def filled(template: str, event: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """A text with its bindings filled in, where nothing looks at it again; and those without value.

    Args:
        template: the text.
        event: parsed JSON by root name, as for `bind`; any name will do.
    """
    missing: dict[str, None] = {}

    def found(binding: re.Match[str]) -> str:
        if binding.group(1) not in event:
            return binding.group()
        value = find(event[binding.group(1)], binding.group(2))
        if value is not NOTHING:
            return _as_text(value)
        missing[binding.group()] = None
        return ""

    return _BINDING.sub(found, template), tuple(missing)


def _bind(template: str, event: Mapping[str, Any], missing: dict[str, None]) -> str:
    if "$(" not in template:
        return template
    pieces: list[str] = []
    position = depth = 0
    while position < len(template):
        binding = _BINDING.match(template, position)
        if binding and binding.group(1) in event:
            found = find(event[binding.group(1)], binding.group(2))
            if found is NOTHING:
                missing[binding.group()] = None
            else:
                pieces.append(_quoted(_as_text(found), in_expression=depth > 0))
            position = binding.end()
            continue
        length, depth = _literal(template, position, depth)
        pieces.append(template[position : position + length])
        position += length
    return "".join(pieces)


def _literal(template: str, position: int, depth: int) -> tuple[int, int]:
    """Length of what stands at ``position``, and how many expressions are open after it."""
    char = template[position]
    if template.startswith("$$", position):
        return 2, depth
    if depth and char == "\\":
        return 2, depth
    if template.startswith("${", position) and (depth or OPENER.match(template, position)):
        return 2, depth + 1
    if depth and char == "}":
        return 1, depth - 1
    return 1, depth


def _quoted(text: str, *, in_expression: bool) -> str:
    """The text as a template that stands for it, and for nothing else."""
    if in_expression:
        return _SPECIAL.sub(r"\\\1", text)
    return text.replace("$", "$$")


def _as_text(value: Any) -> str:
    """A scalar as text, anything else as compact JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    from json import dumps

    return dumps(value, separators=(",", ":"), ensure_ascii=False)
