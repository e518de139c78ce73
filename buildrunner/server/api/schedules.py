"""A trigger's own settings, its next fire times, and its past ones."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.errors import ApiError
from buildrunner.server.http.requests import address_of, as_mapping, json_body, number
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import PARENT, Parameter, documented
from buildrunner.server.services.queueing import TriggerQueue
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.triggers import Fire
from buildrunner.triggers.schedule import fire_times
from buildrunner.triggers.settings import read_settings

_MOST_TIMES = 1000
_COUNT = Parameter("count", "integer", f"How many: 1 to {_MOST_TIMES}.")


def router(context: ServerContext) -> APIRouter:
    """The routes, below each trigger."""
    access = Access(context)
    body_of = json_body(context)
    queue = TriggerQueue(context)
    routes = APIRouter(
        prefix="/buildrunner/v1/projects/{project}/triggers/{trigger}", tags=["triggers"]
    )

    def found(request: Request, trigger: str) -> tuple[str, dict[str, Any]]:
        project = address_of(context, request).project
        try:
            return project, context.store.triggers.get(project, trigger)
        except NotFound as error:  # these routes are ours: they need no sentence of Google's
            raise ApiError(404, str(error)) from error

    def show(request: Request, trigger: str, _: Caller = Depends(access.may("read"))) -> Response:
        """Return the settings beside the trigger; empty without settings."""
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
        read_settings(settings)
        context.store.triggers.set_settings(project, document["id"], settings)
        context.schedule_changed()
        return json_response(settings)

    def coming(request: Request, trigger: str, _: Caller = Depends(access.may("read"))) -> Response:
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

    def past(request: Request, trigger: str, _: Caller = Depends(access.may("read"))) -> Response:
        """List the history of the trigger's schedule, newest first."""
        project, document = found(request, trigger)
        count = number(request, "count", low=1, high=_MOST_TIMES, default=50)
        fires = context.store.schedules.fires(project, document["id"], limit=count)
        return json_response({"fires": [_shown(fire) for fire in fires]})

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


def _shown(fire: Fire) -> dict[str, str]:
    shown = {
        "time": encode_instant(fire.fire_at),
        "runTime": encode_instant(fire.run_at),
        "state": fire.state,
        "buildId": fire.build_id,
        "detail": fire.detail,
    }
    return {name: text for name, text in shown.items() if text}
