"""Operations on triggers, for routes, pages and webhooks: create, find, change, run.

Source of update masks: google.protobuf.FieldMask. Without a mask, every field that callers may set
is replaced.
"""

from __future__ import annotations

from typing import Any

from buildrunner.errors import ConfigError, Conflict, NotFound, UsageError
from buildrunner.problem import Problem
from buildrunner.server.bounded import BoundedFilters
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import already_exists, failed_precondition, invalid_argument
from buildrunner.server.http.requests import Address, as_mapping
from buildrunner.server.services.known_triggers import known_trigger
from buildrunner.server.services.queueing import RunFacts, TriggerQueue, location_of
from buildrunner.spec.model import git_address
from buildrunner.spec.model.message import ONE, SCALARS, Message, fields_of, type_named
from buildrunner.spec.model.source import RepoSource
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.validation.check import errors_of
from buildrunner.spec.writing import encode_instant, encode_message
from buildrunner.store.model.builds import StoredBuild
from buildrunner.triggers.build import manual_run
from buildrunner.triggers.check import check_trigger
from buildrunner.triggers.settings import read_settings

Document = dict[str, Any]


class Triggers:
    """Operations on triggers, for routes, pages and webhooks. Thread-safe."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._queue = TriggerQueue(context)

    def create(self, address: Address, body: Any, settings: Document | None = None) -> Document:
        """Keep a new trigger.

        Args:
            address: where it belongs.
            body: the BuildTrigger as parsed JSON.
            settings: what is set beside it.

        Raises:
            ApiError: its name is taken.
            ConfigError: something is wrong with it.
        """
        if address.any_location:
            raise invalid_argument("a trigger needs one location, not -", field="location")
        trigger_id = self._context.new_id()
        given = _read(body)
        given.setdefault("name", f"trigger-{trigger_id[:8]}")
        where = f"projects/{address.project}/locations/{address.location}/triggers/{trigger_id}"
        document = {
            **given,
            "resourceName": where,
            "id": trigger_id,
            "createTime": encode_instant(self._context.clock()),
        }
        self._check(address.project, document)
        read_settings(settings or {})
        store = self._context.store
        try:
            made = store.triggers.create(
                address.project, address.location, document, settings or {}
            )
        except Conflict as error:
            raise already_exists(str(error)) from error
        self._context.schedule_changed()
        return made

    def find(self, address: Address, id_or_name: str) -> Document:
        """Return a trigger by its id or name.

        Raises:
            NotFound: the project has no such trigger, or it is in another location.
        """
        document = self._context.store.triggers.get(address.project, id_or_name)
        location = location_of(document)
        if address.regional and not address.any_location and location != address.location:
            raise NotFound(f"trigger {id_or_name} is in {location}, not in {address.location}")
        return document

    def change(self, project: str, old: Document, body: Any, mask: str) -> Document:
        """Replace a trigger, or the parts of it that a mask names.

        Raises:
            ApiError: its new name is taken.
            ConfigError: something is wrong with the change.
            NotFound: somebody deletes it meanwhile.
        """
        given = _read(body)
        store = self._context.store
        changed = None
        while changed is None:  # somebody else changes other parts of it: both count
            new = updated(old, given, mask)
            self._check(project, new, old)
            try:
                changed = store.triggers.replace(project, old["id"], new, was=old)
            except Conflict as error:
                raise already_exists(str(error)) from error
            if changed is None:
                old = store.triggers.get(project, old["id"])
        self._context.schedule_changed()
        return changed

    def _check(self, project: str, document: Document, old: Document | None = None) -> None:
        filters = BoundedFilters(self._context.calls, project)
        trigger = decode_message(BuildTrigger, document).value
        problems = check_trigger(trigger, filters.problem)
        # One that an earlier version took must not keep a trigger from being disabled.
        problems += git_address.trigger_problems(document, old)
        if errors_of(problems):
            raise ConfigError(errors_of(problems))

    def run(
        self, project: str, document: Document, source: RepoSource | None, facts: RunFacts
    ) -> StoredBuild:
        """Queue the build of a manual run.

        Raises:
            ApiError: neither the trigger nor the source names a revision.
            ConfigError: the build can't run.
        """
        known = known_trigger(self._context, project, document)
        try:
            made = manual_run(known.trigger, source, known.repository)
        except UsageError as error:
            raise failed_precondition(f"{error}; {error.hint}") from error
        return self._queue.queue(project, document, made, facts)


def _read(body: Any) -> Document:
    """A trigger that a caller sent, as a document without what only the service sets.

    Raises:
        ConfigError: it can't be read.
    """
    loaded = decode_message(BuildTrigger, as_mapping(body), outputs=False)
    if not loaded.ok:
        raise ConfigError(errors_of(loaded.problems))
    return encode_message(loaded.value)


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
