"""Update masks: which fields of a resource a change is about. Pure, on documents.

Source: google.protobuf.FieldMask; without a mask every field that callers may set is replaced.
"""

from __future__ import annotations

from typing import Any

from buildrunner.errors import ConfigError
from buildrunner.problem import Problem
from buildrunner.spec.model.message import ONE, SCALARS, Message, fields_of, type_named
from buildrunner.spec.model.trigger import BuildTrigger

Document = dict[str, Any]


def updated(stored: Document, given: Document, mask: str) -> Document:
    """The trigger after a change.

    Args:
        stored: the trigger as it is, camelCase.
        given: the change, camelCase, without the fields that only the service sets.
        mask: paths in camelCase or snake_case, separated by commas; empty for all fields.

    Raises:
        ConfigError: the mask names a field that is not there, or can't be set.
    """
    ours = {field.json for field in fields_of(BuildTrigger) if _is_ours(field.name)}
    kept = {name: value for name, value in stored.items() if name in ours}
    if not mask.strip():
        return {"name": stored.get("name", ""), **given, **kept}
    result = dict(stored)
    problems = []
    for path in filter(None, (part.strip() for part in mask.split(","))):
        steps = _json_path(path)
        if not steps or steps[0] in ours:
            problem = f"updateMask: there is no field {path} that can be changed"
            problems.append(Problem(problem, path="updateMask", rule="update-mask"))
            continue
        result = _with_part(result, given, steps)
    if problems:
        raise ConfigError(problems)
    return result


def _is_ours(name: str) -> bool:
    return name in BuildTrigger.OUTPUT_ONLY


def _json_path(path: str) -> list[str]:
    """The path in camelCase; empty when there is no such field."""
    message: type[Message] | None = BuildTrigger
    steps: list[str] = []
    parts = path.split(".")
    for index, part in enumerate(parts):
        field = next(
            (f for f in fields_of(message or BuildTrigger) if part in (f.name, f.json)), None
        )
        if message is None or field is None:
            return []
        steps.append(field.json)
        if field.type_name in SCALARS or field.form != ONE:
            rest = parts[index + 1 :]
            if not rest:
                return steps
            # A key of a map, such as substitutions._X.
            return [*steps, *rest] if field.form == "map" and len(rest) == 1 else []
        found = type_named(field.type_name, message)
        message = found if hasattr(found, "ONEOFS") else None  # type: ignore[assignment]
    return steps


def _with_part(target: Document, given: Document, steps: list[str]) -> Document:
    """``target`` with the part at a path as it is in ``given``; gone where it is not there."""
    first, *rest = steps
    result = dict(target)
    if not rest:
        _set_or_drop(result, first, given.get(first))
        return result
    inner = given.get(first)
    changed = _with_part(result.get(first) or {}, inner if isinstance(inner, dict) else {}, rest)
    _set_or_drop(result, first, changed or None)
    return result


def _set_or_drop(document: Document, name: str, value: Any) -> None:
    if value is None:
        document.pop(name, None)
    else:
        document[name] = value
