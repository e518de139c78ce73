"""Triggers: create, get, list, change, delete, run.

Source: https://cloud.google.com/build/docs/api/reference/rest/v1/projects.triggers
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import ConfigError, Conflict, NotFound, UsageError
from buildrunner.server.bounded import BoundedFilters
from buildrunner.server.context import ServerContext
from buildrunner.server.events.known_triggers import known_trigger
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import as_asked, json_response, operation_response
from buildrunner.server.http.errors import (
    already_exists,
    failed_precondition,
    invalid_argument,
    invalid_config,
)
from buildrunner.server.http.requests import (
    Address,
    address_of,
    as_mapping,
    build_body,
    flag,
    idempotency_key,
    member,
    number,
    page_size,
    parameter,
)
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import (
    PAGING,
    PARENT,
    PRIORITY,
    PUSH,
    REQUEST_ID,
    Parameter,
    documented,
)
from buildrunner.server.services.trigger_queue import RunFacts, TriggerQueue, location_of
from buildrunner.spec.model import git_address
from buildrunner.spec.model.source import RepoSource
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.validation.check import errors_of
from buildrunner.spec.writing import encode_instant, encode_message
from buildrunner.store.model.builds import StoredBuild
from buildrunner.triggers.build import TriggeredBuild, manual_run
from buildrunner.triggers.check import check_trigger
from buildrunner.triggers.settings import read_settings
from buildrunner.triggers.update_mask import updated

Document = dict[str, Any]
_FORMS = (
    "/v1/projects/{project}/triggers",
    "/v1/projects/{project}/locations/{location}/triggers",
)

_FORGE = (
    Parameter("forge", "string", "Kind of the forge that has the trigger's repository."),
    Parameter("forgeHost", "string", "Host or URL of that forge."),
)
_UPDATE_MASK = Parameter("updateMask", "string", "Fields to change, with commas; empty: all.")


def router(context: ServerContext) -> APIRouter:
    """The routes of triggers. To change them needs ``admin``: they act for everybody."""
    access = Access(context)
    body_of = build_body(context)
    triggers = Triggers(context)
    routes = APIRouter(tags=["triggers"])

    def create(
        request: Request,
        _: Caller = Depends(access.may("admin", "triggers.create")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Make a trigger; ``forge`` and ``forgeHost`` say where its repository is."""
        address = address_of(context, request)
        made = triggers.create(address, body, _forge_settings(request))
        note_target(request, address.project, made["id"])
        return json_response(_shown(request, made))

    def listing(request: Request, _: Caller = Depends(access.may("read"))) -> Response:
        """Triggers by name."""
        address = address_of(context, request)
        found, token = context.store.triggers.page(
            address.project,
            page_size=page_size(request),
            page_token=parameter(request, "pageToken"),
        )
        here = [
            _shown(request, document)
            for document in found
            if address.any_location or location_of(document) == address.location
        ]
        answer: Document = {"triggers": here}
        if token:
            answer["nextPageToken"] = token
        return json_response(answer)

    def get(request: Request, trigger: str, _: Caller = Depends(access.may("read"))) -> Response:
        """One trigger, by id or name."""
        return json_response(_shown(request, triggers.find(request, trigger)))

    def change(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("admin", "triggers.update")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Change the fields that ``updateMask`` names; without one, all of them."""
        old = triggers.find(request, trigger)
        note_target(request, request.path_params["project"], old["id"])
        new = triggers.change(request, old, body, parameter(request, "updateMask"))
        return json_response(_shown(request, new))

    def delete(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("admin", "triggers.delete")),
    ) -> Response:
        """Delete a trigger; its builds remain."""
        old = triggers.find(request, trigger)
        address = address_of(context, request)
        note_target(request, address.project, old["id"])
        context.store.triggers.delete(address.project, old["id"])
        return json_response({})

    def run(
        request: Request,
        trigger: str,
        caller: Caller = Depends(access.may("submit", "triggers.run")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Queue a build of a trigger, whether or not it is disabled."""
        found = triggers.find(request, trigger)
        source = _run_source(request, as_mapping(body))
        note_target(request, address_of(context, request).project, found["id"])
        made = triggers.run(request, found, source, caller)
        note_target(request, made.document["projectId"], found["id"], made.id)
        return operation_response(request, made.document)

    for form in _FORMS:
        routes.add_api_route(
            form,
            create,
            methods=["POST"],
            openapi_extra=documented(
                body="BuildTrigger", answer="BuildTrigger", query=(PARENT, *_FORGE)
            ),
        )
        routes.add_api_route(
            form,
            listing,
            methods=["GET"],
            openapi_extra=documented(answer="ListBuildTriggersResponse", query=(PARENT, *PAGING)),
        )
        routes.add_api_route(
            form + "/{trigger}:run",
            run,
            methods=["POST"],
            openapi_extra=documented(
                body="RunBuildTriggerRequest",
                answer="Operation",
                query=(PARENT, REQUEST_ID, PUSH, PRIORITY),
            ),
        )
        routes.add_api_route(
            form + "/{trigger}",
            get,
            methods=["GET"],
            openapi_extra=documented(answer="BuildTrigger", query=(PARENT,)),
        )
        routes.add_api_route(
            form + "/{trigger}",
            change,
            methods=["PATCH"],
            openapi_extra=documented(
                body="BuildTrigger", answer="BuildTrigger", query=(PARENT, _UPDATE_MASK)
            ),
        )
        routes.add_api_route(
            form + "/{trigger}",
            delete,
            methods=["DELETE"],
            openapi_extra=documented(answer="Empty", query=(PARENT,)),
        )
    return routes


class Triggers:
    """What can be done with triggers, for their routes and for webhooks."""

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

    def find(self, request: Request, id_or_name: str) -> Document:
        """The trigger that a path names.

        Raises:
            NotFound: there is none, or it is in another location.
        """
        address = address_of(self._context, request)
        document = self._context.store.triggers.get(address.project, id_or_name)
        location = location_of(document)
        if address.regional and not address.any_location and location != address.location:
            raise NotFound(f"trigger {id_or_name} is in {location}, not in {address.location}")
        return document

    def change(self, request: Request, old: Document, body: Any, mask: str) -> Document:
        """Replace a trigger, or the parts of it that a mask names.

        Raises:
            ApiError: its new name is taken.
            ConfigError: something is wrong with the change.
            NotFound: somebody deletes it meanwhile.
        """
        given = _read(body)
        store, project = self._context.store, address_of(self._context, request).project
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
        self, request: Request, document: Document, source: RepoSource | None, caller: Caller
    ) -> StoredBuild:
        """The build of a manual run, queued.

        Raises:
            ApiError: nobody says which revision to build.
            ConfigError: the build can't run.
        """
        project = address_of(self._context, request).project
        known = known_trigger(self._context, project, document)
        try:
            made = manual_run(known.trigger, source, known.repository)
        except UsageError as error:
            raise failed_precondition(f"{error}; {error.hint}") from error
        return self.queue(request, document, made, caller)

    def queue(
        self,
        request: Request,
        document: Document,
        made: TriggeredBuild,
        caller: Caller,
    ) -> StoredBuild:
        """Queue what a trigger made: behind an approval if it wants one, in the trigger's group.

        Raises:
            ConfigError: the build can't run.
        """
        return self._queue.queue(
            address_of(self._context, request).project,
            document,
            made,
            RunFacts(
                who=caller.name,
                request_id=idempotency_key(request, caller),
                priority=number(request, "priority", low=-1000, high=1000),
                push=flag(request, "push", default=True),
            ),
        )


def _shown(request: Request, document: Document) -> Document:
    return as_asked(request, BuildTrigger, git_address.masked_trigger(document))


def _read(body: Any) -> Document:
    """A trigger that a caller sent, as a document without what only the service sets.

    Raises:
        ConfigError: it can't be read.
    """
    loaded = decode_message(BuildTrigger, as_mapping(body), outputs=False)
    if not loaded.ok:
        raise ConfigError(errors_of(loaded.problems))
    return encode_message(loaded.value)


def _forge_settings(request: Request) -> Document:
    """The settings that the query of a new trigger holds."""
    kind, host = parameter(request, "forge"), parameter(request, "forgeHost")
    return {"forge": {"kind": kind, "host": host}} if kind or host else {}


def _run_source(request: Request, body: dict[str, Any]) -> RepoSource | None:
    """The source of a run: the body itself in the older address form, a part of it in the other.

    Raises:
        ApiError: it can't be read.
    """
    regional = "location" in request.path_params
    value = member(body, "source") if regional or "source" in body else body
    if not value:
        return None
    loaded = decode_message(RepoSource, value, outputs=False)
    if not loaded.ok:
        raise invalid_config(loaded.problems, prefix="source.")
    return loaded.value
