"""Operations on triggers, for routes, pages and events: find, create, change and run.

A `KnownTrigger` holds a trigger, its settings and its repository, to be matched with events.

Source of update masks: google.protobuf.FieldMask. Without a mask, every field that callers may set
is replaced.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, Conflict, NotFound, StoreError, UsageError
from buildrunner.problem import Problem
from buildrunner.server.bounded import BoundedFilters
from buildrunner.server.context import ServerContext
from buildrunner.server.http.bodies import as_mapping
from buildrunner.server.http.errors import already_exists, failed_precondition, invalid_argument
from buildrunner.server.http.requests import Address
from buildrunner.server.services.queueing import RunFacts, TriggerQueue, location_of
from buildrunner.spec.model import git_address
from buildrunner.spec.model.message import ONE, SCALARS, Message, fields_of, type_named
from buildrunner.spec.model.source import RepoSource
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.validation.check import errors_of
from buildrunner.spec.writing import encode_instant, encode_message
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.model.deliveries import Watched
from buildrunner.store.model.triggers import StoredTrigger, TriggerVersion
from buildrunner.store.sql.store import ServerStore
from buildrunner.triggers.build import manual_run
from buildrunner.triggers.check import check_trigger
from buildrunner.triggers.config_source import check_usual_config_source
from buildrunner.triggers.events import Event
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.hook_binding import BARE, PUBSUB, HookBinding, unbound
from buildrunner.triggers.repository import (
    RepositoryNames,
    TriggerRepository,
    bare_history,
    event_keys,
    located,
    trigger_repository,
)
from buildrunner.triggers.settings import TriggerSettings, read_settings

_log = logging.getLogger("buildrunner.server")

_UNREADABLE: Final = "set the trigger's settings again, or update this server"


class KnownTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger, and everything that decides which events fire it.

    Attributes:
        project: the trigger's project.
        document: the stored BuildTrigger.
        trigger: the decoded BuildTrigger.
        set_beside: its stored settings.
        settings: its decoded settings.
        repository: the repository of its events; None for a trigger without one.
    """

    project: str
    document: dict[str, Any]
    trigger: BuildTrigger
    set_beside: dict[str, Any]
    settings: TriggerSettings
    repository: TriggerRepository | None


_MOST_KEPT: Final = 32 << 20


class KnownTriggers:
    """The triggers that an event may fire. Thread-safe.

    The database finds the triggers for the source of an event. A trigger that has not
    changed since the last event is not read again: up to `_MOST_KEPT` bytes are cached.

    Args:
        store: the store of triggers.
        repositories: the URLs of connected repositories.
    """

    def __init__(self, store: ServerStore, repositories: RepositoryNames) -> None:
        self._store = store
        self._repositories = repositories
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    def listening(self, event: Event, hook: str) -> list[KnownTrigger]:
        """Return the triggers for the source of an event.

        The result may have triggers of other repositories with the same name.

        Args:
            event: the event.
            hook: the hook of its delivery.

        Raises:
            StoreError: the database fails.
        """
        names = current_names(self._store, self._repositories)
        versions = self._store.triggers.versions(event_keys(event, hook, names))
        return [known for one in versions if (known := self._known(one, names)) is not None]

    def _known(self, wanted: TriggerVersion, names: RepositoryNames) -> KnownTrigger | None:
        """Return the current trigger; None if it was deleted meanwhile."""
        key = (wanted.project, wanted.id)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and (kept.version, kept.names) == (wanted.version, names):
                self._kept.move_to_end(key)
                return kept.trigger
        stored = self._store.triggers.stored(*key)
        known = None if stored is None else _known(stored, names)
        with self._lock:
            before = self._kept.pop(key, None)
            self._bytes -= before.size if before else 0
            if stored is not None and known is not None and stored.size <= _MOST_KEPT:
                self._kept[key] = _Kept(known, stored.version, names, stored.size)
                self._bytes += stored.size
            while self._bytes > _MOST_KEPT:
                self._bytes -= self._kept.popitem(last=False)[1].size
        return known


class _Kept(NamedTuple):
    """A cached trigger, and the values from which it was decoded."""

    trigger: KnownTrigger
    version: int
    names: RepositoryNames
    size: int


class KnownRepositories:
    """The repositories of enabled triggers. For one thread.

    Reads only the triggers that have changed since the last call.

    Args:
        store: the store of triggers.
        repositories: the URLs of connected repositories.
    """

    def __init__(self, store: ServerStore, repositories: RepositoryNames) -> None:
        self._store = store
        self._repositories = repositories
        self._found: dict[TriggerVersion, TriggerRepository | None] = {}
        self._names = repositories

    def all(self) -> list[tuple[str, TriggerRepository]]:
        """Return each trigger's project and its current repository.

        Raises:
            StoreError: the database fails.
        """
        names = current_names(self._store, self._repositories)
        before = self._found if names == self._names else {}
        self._names = names
        self._found = {
            one: before[one] if one in before else self._read(one)
            for one in self._store.triggers.versions()
        }
        return [
            (one.project, repository)
            for one, repository in self._found.items()
            if repository is not None
        ]

    def _read(self, wanted: TriggerVersion) -> TriggerRepository | None:
        stored = self._store.triggers.stored(wanted.project, wanted.id)
        if stored is None or stored.document.get("disabled"):
            return None
        return _known(stored, self._names).repository


def forget_histories(context: ServerContext, project: str, histories: Collection[str]) -> None:
    """Forget the records of repositories that no trigger of a project has.

    Args:
        context: the server's context.
        project: the project.
        histories: keys of records: see `TriggerRepository.histories`.

    Raises:
        StoreError: the database fails.
    """
    gone = set(histories)
    if not gone:
        return
    names = current_names(context.store, context.repositories)
    for stored in context.store.triggers.every(project):
        other = _known(stored, names).repository
        if other is None:
            continue
        if other.problem:
            return  # it may have the same repository
        gone -= set(other.histories)
        if other.bare and not other.url:  # its hook may be bound again
            gone = {one for one in gone if not one.startswith(bare_history(other.bare, ""))}
    for history in gone:
        context.store.refs.forget(Watched(project, history))


def forget_unwatched(context: ServerContext, watched: Collection[Watched]) -> None:
    """Forget records that no trigger needs, and that a change of triggers could not forget.

    Args:
        context: the server's context.
        watched: records that are needed, as far as the caller knows.

    Raises:
        StoreError: the database fails.
    """
    left: dict[str, set[str]] = {}
    for one in context.store.refs.recorded():
        if one.project and one not in watched:
            left.setdefault(one.project, set()).add(one.repository)
    for project, histories in left.items():
        forget_histories(context, project, histories)


def known_trigger(
    context: ServerContext, project: str, document: Document, settings: Document | None = None
) -> KnownTrigger:
    """Return one trigger as a `KnownTrigger`.

    Args:
        context: the server's context.
        project: the trigger's project.
        document: the trigger.
        settings: its settings; None: those in the store.

    Raises:
        StoreError: the database fails.
    """
    stored = StoredTrigger(
        project=project,
        version=0,
        document=document,
        settings=(
            context.store.triggers.settings(project, document["id"])
            if settings is None
            else settings
        ),
        size=0,
    )
    return _known(stored, current_names(context.store, context.repositories))


def hook_bindings(store: ServerStore) -> dict[str, HookBinding]:
    """Return the bindings of all hooks, by their names."""
    stored = store.hooks.all()
    return {name: msgspec.convert(document, HookBinding) for name, document in stored.items()}


def hook_binding(store: ServerStore, hook: str) -> HookBinding | None:
    """Return the binding of a hook; None if it has none."""
    try:
        return msgspec.convert(store.hooks.get(hook), HookBinding)
    except NotFound:
        return None


def current_names(store: ServerStore, repositories: RepositoryNames) -> RepositoryNames:
    """Return the URLs behind names, with those of the bare repositories that have a hook."""
    return replace(repositories, hooks=hook_bindings(store))


def _known(stored: StoredTrigger, names: RepositoryNames) -> KnownTrigger:
    trigger = decode_message(BuildTrigger, stored.document).value
    try:
        settings = read_settings(stored.settings)
        wrong = ""
    except ConfigError as error:  # stored by another version
        settings, wrong = TriggerSettings(), f"its settings can't be read: {error}"
    trigger = located(trigger, settings.forge)
    repository = trigger_repository(trigger, settings.forge, project=stored.project, names=names)
    if repository is not None and wrong:  # they name its forge, which no other may replace
        repository = TriggerRepository(name=repository.name, problem=wrong, hint=_UNREADABLE)
    return KnownTrigger(
        project=stored.project,
        document=stored.document,
        trigger=trigger,
        set_beside=stored.settings,
        settings=settings,
        repository=repository,
    )


def trigger_problems(store: ServerStore, repositories: RepositoryNames) -> list[str]:
    """Return one sentence with the remedy for each enabled trigger that can't fire.

    Hooks with deliveries but without a binding are included, too.

    Args:
        store: the server's store.
        repositories: the URLs of connected repositories.

    Raises:
        StoreError: the database fails.
    """
    found = []
    names = current_names(store, repositories)
    for stored in store.triggers.every():
        one = _known(stored, names)
        if one.trigger.disabled:
            continue
        where = f"trigger {one.trigger.name} of project {one.project} can't fire"
        if one.repository is not None and one.repository.problem:
            found.append(f"{where}: {one.repository.problem}; {one.repository.hint}")
            continue
        passwords = git_address.trigger_problems(one.document)
        found += [f"{where}: {problem.text()}" for problem in passwords]
        if passwords:
            continue
        try:
            check_usual_config_source(one.trigger, one.repository)
        except UsageError as error:
            found.append(f"{where}: {error}; {error.hint}")
    bound = store.hooks.all()
    heard = forge_hooks(store.hooks.heard())
    return found + [unbound(hook) for hook in sorted(heard) if hook not in bound]


def forge_hooks(names: Iterable[str]) -> list[str]:
    """Return the hooks that must be bound: of forges and topics, not of webhook triggers."""
    return [
        name
        for name in names
        if (kind := name.partition("/")[0]) == PUBSUB or (kind in FORGES and kind != BARE)
    ]


class Triggers:
    """Operations on triggers, for routes, pages and webhooks. Thread-safe."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._queue = TriggerQueue(context)

    def create(self, address: Address, body: Any, settings: Document | None = None) -> Document:
        """Create a trigger.

        Args:
            address: the project and location of the trigger.
            body: the BuildTrigger as parsed JSON.
            settings: the settings of the trigger.

        Raises:
            ApiError: the name is taken, or the address names no location.
            ConfigError: the trigger is invalid.
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
        read_settings(settings or {})
        self._check(address.project, document, settings or {})
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
        """Replace a trigger, or only the parts of it that a mask names.

        Raises:
            ApiError: the new name is taken.
            ConfigError: the change is invalid.
            NotFound: the trigger was deleted meanwhile.
        """
        given = _read(body)
        store = self._context.store
        before = self._repository(project, old["id"])
        changed = None
        while changed is None:  # another caller changed the trigger meanwhile: keep both changes
            new = updated(old, given, mask)
            self._check(project, new, None, old)
            try:
                changed = store.triggers.replace(project, old["id"], new, was=old)
            except Conflict as error:
                raise already_exists(str(error)) from error
            if changed is None:
                old = store.triggers.get(project, old["id"])
        self._context.schedule_changed()
        self._forget(project, before, changed["id"])
        return changed

    def delete(self, project: str, trigger_id: str) -> None:
        """Delete a trigger; its builds remain.

        Raises:
            NotFound: the project has no such trigger.
        """
        before = self._repository(project, trigger_id)
        self._context.store.triggers.delete(project, trigger_id)
        self._context.schedule_changed()
        self._forget(project, before, trigger_id)

    def set_settings(self, project: str, trigger_id: str, settings: Document) -> None:
        """Replace all settings of a trigger.

        Raises:
            ConfigError: the settings are invalid.
            NotFound: the project has no such trigger.
        """
        read_settings(settings)
        before = self._repository(project, trigger_id)
        self._context.store.triggers.set_settings(project, trigger_id, settings)
        self._context.schedule_changed()
        self._forget(project, before, trigger_id)

    def _repository(self, project: str, trigger_id: str) -> TriggerRepository | None:
        """Return the repository of a stored trigger; None if it has none."""
        context = self._context
        stored = context.store.triggers.stored(project, trigger_id)
        if stored is None:
            return None
        return _known(stored, current_names(context.store, context.repositories)).repository

    def _forget(self, project: str, before: TriggerRepository | None, trigger_id: str) -> None:
        """Forget the commits of a repository that a trigger had, if no other trigger has it.

        The change of the trigger is stored already. If the database fails now, the next check for
        missed pushes forgets them (`forget_unwatched`).

        Args:
            project: the trigger's project.
            before: the trigger's repository before it was changed or deleted.
            trigger_id: the trigger's id.
        """
        if before is None:
            return
        try:
            after = self._repository(project, trigger_id)
            gone = set(before.histories) - set(after.histories if after else ())
            forget_histories(self._context, project, gone)
        except StoreError as error:
            _log.warning(
                "the commits of %s stay recorded for project %s until the next check for missed"
                " pushes: %s",
                before.name,
                project,
                error,
            )

    def _check(
        self,
        project: str,
        document: Document,
        settings: Document | None,
        old: Document | None = None,
    ) -> None:
        filters = BoundedFilters(self._context.calls, project)
        trigger = decode_message(BuildTrigger, document).value
        problems = check_trigger(trigger, filters.problem)
        # A filter that an earlier version accepted must not prevent disabling a trigger.
        problems += git_address.trigger_problems(document, old)
        if errors_of(problems):
            raise ConfigError(errors_of(problems))
        if trigger.disabled:  # a trigger that an earlier version accepted can be disabled
            return
        known = known_trigger(self._context, project, document, settings)
        try:
            check_usual_config_source(known.trigger, known.repository)
        except UsageError as error:
            problem = Problem(
                str(error), path="gitFileSource", hint=error.hint, rule="trigger-source"
            )
            raise ConfigError([problem]) from error

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
    """Return a caller's trigger as a document without fields that only the service sets.

    Raises:
        ConfigError: the trigger can't be read.
    """
    loaded = decode_message(BuildTrigger, as_mapping(body), outputs=False)
    if not loaded.ok:
        raise ConfigError(errors_of(loaded.problems))
    return encode_message(loaded.value)


def updated(stored: Document, given: Document, mask: str) -> Document:
    """Return the trigger after a change.

    Args:
        stored: the present trigger, camelCase.
        given: the change, camelCase, without the fields that only the service sets.
        mask: paths in camelCase or snake_case, separated by commas; empty for all fields.

    Raises:
        ConfigError: the mask names an unknown field, or one that can't be set.
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
    """Return the path in camelCase; empty if the field is unknown."""
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
    """Return ``target`` with the part at a path from ``given``, or without it."""
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
