"""Routes of triggers: create, get, list, change, delete, run; their settings and fire times.

Source: https://cloud.google.com/build/docs/api/reference/rest/v1/projects.triggers
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import as_requested, json_response, operation_response
from buildrunner.server.http.bodies import READ_SLOT, as_mapping, build_body, json_body, member
from buildrunner.server.http.errors import (
    ApiError,
    invalid_config,
)
from buildrunner.server.http.requests import (
    address_of,
    flag,
    idempotency_key,
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
from buildrunner.server.services.authorship import caller_alone
from buildrunner.server.services.queueing import RunFacts, TriggerQueue, location_of
from buildrunner.server.services.triggers import Triggers
from buildrunner.spec.model import git_address
from buildrunner.spec.model.source import RepoSource
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.triggers import Fire
from buildrunner.triggers.schedule import fire_times

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
    """Return the routes of triggers. Changes need ``admin``, since triggers affect all users."""
    access = Access(context)
    body_of = build_body(context)
    triggers = Triggers(context)
    routes = APIRouter(tags=["triggers"])

    def create(
        request: Request,
        _: Caller = Depends(access.may("admin", "triggers.create")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Create a trigger; ``forge`` and ``forgeHost`` name the forge of its repository."""
        address = address_of(context, request)
        made = triggers.create(address, body, _forge_settings(request))
        note_target(request, address.project, made["id"])
        return json_response(_shown(request, made))

    def listing(request: Request, _: Caller = Depends(access.may("read"))) -> Response:
        """List triggers by name."""
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

    def get(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("read")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """Return a trigger, by id or name."""
        return json_response(_shown(request, triggers.find(address_of(context, request), trigger)))

    def change(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("admin", "triggers.update")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Change the fields that ``updateMask`` names; without a mask, replace all fields."""
        address = address_of(context, request)
        old = triggers.find(address, trigger)
        note_target(request, request.path_params["project"], old["id"])
        new = triggers.change(address.project, old, body, parameter(request, "updateMask"))
        return json_response(_shown(request, new))

    def delete(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("admin", "triggers.delete")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """Delete a trigger; its builds remain."""
        address = address_of(context, request)
        old = triggers.find(address, trigger)
        note_target(request, address.project, old["id"])
        triggers.delete(address.project, old["id"])
        return json_response({})

    def run(
        request: Request,
        trigger: str,
        caller: Caller = Depends(access.may("submit", "triggers.run")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Queue a build of a trigger, even if the trigger is disabled."""
        address = address_of(context, request)
        found = triggers.find(address, trigger)
        source = _run_source(request, as_mapping(body))
        note_target(request, address.project, found["id"])
        facts = RunFacts(
            who=caller.name,
            people=caller_alone(caller.name),
            request_id=idempotency_key(request, caller),
            priority=number(request, "priority", low=-1000, high=1000),
            push=flag(request, "push", default=True),
        )
        made = triggers.run(address.project, found, source, facts)
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


def _shown(request: Request, document: Document) -> Document:
    return as_requested(request, BuildTrigger, git_address.masked_trigger(document))


def _forge_settings(request: Request) -> Document:
    """Return the settings in the query of a new trigger."""
    kind, host = parameter(request, "forge"), parameter(request, "forgeHost")
    return {"forge": {"kind": kind, "host": host}} if kind or host else {}


def _run_source(request: Request, body: dict[str, Any]) -> RepoSource | None:
    """Return the source of a run: the body itself in the older address form, else a part of it.

    Raises:
        ApiError: the source can't be read.
    """
    regional = "location" in request.path_params
    value = member(body, "source") if regional or "source" in body else body
    if not value:
        return None
    loaded = decode_message(RepoSource, value, outputs=False)
    if not loaded.ok:
        raise invalid_config(loaded.problems, prefix="source.")
    return loaded.value


_MOST_TIMES = 1000
_COUNT = Parameter("count", "integer", f"How many: 1 to {_MOST_TIMES}.")


def settings_router(context: ServerContext) -> APIRouter:
    """Return the routes below each trigger: settings, next runs and past runs."""
    access = Access(context)
    body_of = json_body(context)
    triggers = Triggers(context)
    queue = TriggerQueue(context)
    routes = APIRouter(
        prefix="/buildrunner/v1/projects/{project}/triggers/{trigger}", tags=["triggers"]
    )

    def found(request: Request, trigger: str) -> tuple[str, dict[str, Any]]:
        project = address_of(context, request).project
        try:
            return project, context.store.triggers.get(project, trigger)
        except NotFound as error:  # not a route of Cloud Build, so not Cloud Build's message
            raise ApiError(404, str(error)) from error

    def show(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("read")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """Return the settings of the trigger; empty if none are set."""
        project, document = found(request, trigger)
        return json_response(context.store.triggers.settings(project, document["id"]))

    def change(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("admin", "triggers.settings")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Replace all settings: jitter, missed, overlap, concurrency, approval, and so on."""
        project, document = found(request, trigger)
        note_target(request, project, document["id"])
        settings = as_mapping(body)
        triggers.set_settings(project, document["id"], settings)
        return json_response(settings)

    def coming(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("read")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """Return the next scheduled times of a trigger: in UTC, and in its time zone."""
        project, document = found(request, trigger)
        if not document.get("cron"):
            raise ApiError(404, f'the trigger "{document["name"]}" has no schedule')
        count = number(request, "count", low=1, high=_MOST_TIMES, default=5)
        schedule = queue.settings(project, document["id"]).schedule(document["cron"])
        zone = schedule.time_zone or "UTC"
        times = fire_times(schedule, context.clock(), count)
        answer = {
            "schedule": schedule.cron,
            "timeZone": zone,
            "disabled": bool(document.get("disabled")),
            "times": [_time(moment, zone) for moment in times],
        }
        if schedule.jitter_s:
            answer["jitter"] = f"{schedule.jitter_s}s"
        return json_response(answer)

    def past(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("read")),
        _slot: None = READ_SLOT,
    ) -> Response:
        """List the history of the trigger's schedule, newest first."""
        project, document = found(request, trigger)
        count = number(request, "count", low=1, high=_MOST_TIMES, default=50)
        fires = context.store.schedules.fires(project, document["id"], limit=count)
        return json_response({"fires": [_shown_fire(fire) for fire in fires]})

    routes.add_api_route(
        "/settings",
        show,
        methods=["GET"],
        openapi_extra=documented(answer="TriggerSettings", query=(PARENT,)),
    )
    routes.add_api_route(
        "/settings",
        change,
        methods=["PUT"],
        openapi_extra=documented(body="TriggerSettings", answer="TriggerSettings", query=(PARENT,)),
    )
    routes.add_api_route(
        "/next", coming, methods=["GET"], openapi_extra=documented(query=(PARENT, _COUNT))
    )
    routes.add_api_route(
        "/fires", past, methods=["GET"], openapi_extra=documented(query=(PARENT, _COUNT))
    )
    return routes


def _time(moment: datetime, zone: str) -> dict[str, str]:
    return {
        "time": encode_instant(moment),
        "local": moment.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _shown_fire(fire: Fire) -> dict[str, str]:
    shown = {
        "time": encode_instant(fire.fire_at),
        "runTime": encode_instant(fire.run_at),
        "state": fire.state,
        "buildId": fire.build_id,
        "detail": fire.detail,
    }
    return {name: text for name, text in shown.items() if text}
