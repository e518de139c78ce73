"""The document of a build that a worker on another host reports: what of it counts."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from msgspec.structs import replace

from buildrunner.server.http.errors import invalid_argument, invalid_config
from buildrunner.server.services.admission import depends_on_commit
from buildrunner.spec.model.build import Build, BuildStep, Status
from buildrunner.spec.model.message import Message
from buildrunner.spec.model.results import Artifacts
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.validation.check import errors_of
from buildrunner.spec.writing import encode_message
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.records import reused_steps_of, steps_begun
from buildrunner.triggers.labels import CONFIG_LABEL

_OUTCOME: Final = (
    "status",
    "status_detail",
    "results",
    "start_time",
    "finish_time",
    "source_provenance",
    "timing",
    "warnings",
    "failure_info",
)
# Fields that a config in the source decides, or that substitutions from a commit may be in.
_CONFIG: Final = (
    "steps",
    "timeout",
    "images",
    "artifacts",
    "options",
    "secrets",
    "available_secrets",
    "dependencies",
)
_OF_QUEUE: Final = (Status.STATUS_UNKNOWN, Status.PENDING, Status.EXPIRED)


def decoded_build(document: Document) -> Build:
    """Return the build that a worker sent.

    Raises:
        ApiError: it is not the document of a build.
    """
    loaded = decode_message(Build, document)
    if not loaded.ok:
        raise invalid_config(errors_of(loaded.problems))
    return loaded.value


def reported(sent: Build, stored: StoredBuild, now: datetime) -> Document:
    """Return the document to store: the stored build with the outcome that its worker reports.

    A worker decides the config of a build only if the server does not know it, and only until a
    step begins: the config is in the source, or has substitutions whose values come from a commit.
    The clock of the worker may be wrong: no time is before the build was created, or in the future.

    Args:
        sent: by the worker.
        stored: the build.
        now: the time of the server.

    Raises:
        ApiError: a worker may not set this status, or these are not the steps of the build.
    """
    if sent.status in _OF_QUEUE:
        raise invalid_argument(f"no worker sets the status {sent.status.name}", field="status")
    before = decode_message(Build, stored.document).value
    sent = _within(sent, before.create_time or now, now)
    changes: dict[str, Any] = {name: getattr(sent, name) for name in _OUTCOME}
    is_in_source = CONFIG_LABEL in stored.labels
    begun = steps_begun(encode_message(before), reused_steps_of(stored.labels))
    if not begun and (is_in_source or depends_on_commit(before.source)):
        changes |= {name: getattr(sent, name) for name in _CONFIG}
        changes["substitutions"] = sent.substitutions | _settled(before.substitutions)
        kept = tuple(tag for tag in before.tags if "$" not in tag)
        changes["tags"] = tuple(dict.fromkeys((*sent.tags, *kept)))
        if is_in_source or "$" in before.logs_bucket:
            changes["logs_bucket"] = sent.logs_bucket
    else:
        changes["steps"] = _with_states(before.steps, sent.steps)
        changes["artifacts"] = _with_timing(before.artifacts, sent.artifacts)
    return encode_message(replace(before, **changes))


def _within(found: Any, first: datetime, last: datetime) -> Any:
    """A value of a message with all its times between two times, and no end before its start."""
    match found:
        case datetime():
            return min(max(found, first), last)
        case tuple():
            return tuple(_within(one, first, last) for one in found)
        case dict():
            return {key: _within(one, first, last) for key, one in found.items()}
        case Message():
            fields = {name: getattr(found, name) for name in found.__struct_fields__}
            fields = {name: _within(one, first, last) for name, one in fields.items()}
            for start, end in (("start_time", "end_time"), ("start_time", "finish_time")):
                if fields.get(start) and fields.get(end):
                    fields[end] = max(fields[start], fields[end])
            return replace(found, **fields)
        case _:
            return found


def _settled(substitutions: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in substitutions.items() if "$" not in value}


def _with_states(steps: tuple[BuildStep, ...], sent: tuple[BuildStep, ...]) -> tuple[Any, ...]:
    if len(sent) != len(steps):
        message = f"the build has {len(steps)} steps, not {len(sent)}"
        raise invalid_argument(message, field="steps")
    return tuple(
        replace(step, **{name: getattr(one, name) for name in BuildStep.OUTPUT_ONLY})
        for step, one in zip(steps, sent, strict=True)
    )


def _with_timing(artifacts: Artifacts | None, sent: Artifacts | None) -> Artifacts | None:
    if artifacts is None or artifacts.objects is None or sent is None or sent.objects is None:
        return artifacts
    objects = replace(artifacts.objects, timing=sent.objects.timing)
    return replace(artifacts, objects=objects)
