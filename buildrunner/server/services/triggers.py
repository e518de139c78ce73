"""Operations on triggers, for routes, pages and webhooks: create, find, change, run."""

from __future__ import annotations

from typing import Any

from buildrunner.errors import ConfigError, Conflict, NotFound, UsageError
from buildrunner.server.bounded import BoundedFilters
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import already_exists, failed_precondition, invalid_argument
from buildrunner.server.http.requests import Address, as_mapping
from buildrunner.server.services.known_triggers import known_trigger
from buildrunner.server.services.queueing import RunFacts, TriggerQueue, location_of
from buildrunner.spec.model import git_address
from buildrunner.spec.model.source import RepoSource
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.validation.check import errors_of
from buildrunner.spec.writing import encode_instant, encode_message
from buildrunner.store.model.builds import StoredBuild
from buildrunner.triggers.build import manual_run
from buildrunner.triggers.check import check_trigger
from buildrunner.triggers.settings import read_settings
from buildrunner.triggers.update_mask import updated

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
