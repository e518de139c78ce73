"""The events of ``submit --output json``, from their classes."""

from __future__ import annotations

import types
from datetime import datetime
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from buildrunner.engine.deployments import Deployment
from buildrunner.engine.events import BuildEvent
from pages.markdown import attributes, code, summary, table

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """\
# Events

`buildrunner submit . --output json` writes one JSON object per line to standard output: events, lines of the log, and at the
end the result. `event` is the kind of the object, and `at` its time in RFC 3339. Messages for people go to standard error.

```console
$ buildrunner submit . --output json | jq 'select(.event == "stepFinished")'
```

Order: `buildStarted`; `phaseStarted` and `phaseFinished` of each phase; `stepStarted` and `stepFinished`
of each step; `buildFinished`; `result` last. Steps are identified by their index, from 0. Fields with a default are
always written.

## The log and the result

| event | fields |
|---|---|
| `log` | `at`; `step`: index of the step that wrote the line, null for the build's own; `text`: the line without its end, secrets masked, bytes that are not UTF-8 replaced |
| `result` | `exitCode`: the exit code of the command; `build`: the finished [Build](compatibility.md) |

## Events of a build

"""

_NAMES = {int: "number", float: "number", str: "text", bool: "true or false", bytes: "base64 text"}


def kinds() -> dict[str, type[msgspec.Struct]]:
    """Every event class by the word that stands in ``event``."""
    return {str(kind.__struct_config__.tag): kind for kind in get_args(BuildEvent)}


def page() -> str:
    """The page."""
    events = "\n".join("".join(_kind(word, kind)) for word, kind in kinds().items())
    return f"{_HEAD}{events}\n## Deployments\n\n{''.join(_fields(Deployment)).lstrip()}"


def _kind(word: str, kind: type[msgspec.Struct]) -> Iterator[str]:
    yield f"### {word}\n\n{summary(kind.__doc__ or '')}\n"
    yield from _fields(kind)


def _fields(kind: type[msgspec.Struct]) -> Iterator[str]:
    docstring = kind.__doc__ or ""
    notes = attributes(docstring)
    hints = get_type_hints(kind)
    fields = [field for field in msgspec.structs.fields(kind) if field.name != "at"]
    rows = []
    for field in fields:
        default = ""
        if not field.required:
            default = code(msgspec.json.encode(field.default).decode())
        shown = type_name(hints[field.name])
        rows.append((code(field.encode_name), shown, default, notes.get(field.name, "")))
    if rows:
        yield "\n" + table(("field", "type", "default", "meaning"), rows)


def type_name(hint: Any) -> str:
    """A type in words."""
    if hint in _NAMES:
        return _NAMES[hint]
    if hint is datetime:
        return "time"
    if hint is Deployment:
        return "[deployment](#deployments)"
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else type_name(one) for one in arguments)
    if get_origin(hint) is tuple:
        return f"list of {type_name(arguments[0])}"
    raise TypeError(hint)
