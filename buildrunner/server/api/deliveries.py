"""Our own routes of triggers: deliveries with their reasons, replays, and "would this fire?"."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import Conflict, NotFound
from buildrunner.server.api.triggers import Triggers
from buildrunner.server.bounded import BoundedFilters, Busy
from buildrunner.server.context import ServerContext
from buildrunner.server.events.facts import EventFacts, KnownEvent, NotNow, SilentPlaces
from buildrunner.server.events.known_triggers import KnownTrigger, hook_bindings, known_trigger
from buildrunner.server.events.record import described, shown_verdict
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.errors import ApiError, failed_precondition, invalid_argument
from buildrunner.server.http.requests import address_of, as_mapping, json_body, number, parameter
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import BEFORE, LIMIT, PARENT, Parameter, documented
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.deliveries import WAITING, StoredDelivery
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest, payload_bytes
from buildrunner.triggers.trial import trial_events

_MOST = 500
_HOOK = Parameter("hook", "string", "Only deliveries of this hook.")


def router(context: ServerContext) -> APIRouter:
    """The routes. Deliveries are of all projects: they need a token that is good for all."""
    access = Access(context)
    body_of = json_body(context, context.settings.max_delivery_bytes, payload=True)
    triggers = Triggers(context)
    routes = APIRouter(prefix="/buildrunner/v1", tags=["deliveries"])
    reader = access.may("read", everywhere=True)

    def listing(request: Request, _: Caller = Depends(reader)) -> Response:
        """Deliveries, the newest first; ``before`` a number gives older ones."""
        found = context.store.deliveries.page(
            hook=parameter(request, "hook"),
            limit=number(request, "limit", low=1, high=_MOST, default=50),
            before=number(request, "before", low=0, high=1 << 62),
        )
        return json_response({"deliveries": [shown_delivery(one) for one in found]})

    def get(delivery: int, _: Caller = Depends(access.may("admin", everywhere=True))) -> Response:
        """One delivery as it came, with the reason why each trigger fired or did not."""
        try:
            found = context.store.deliveries.get(delivery)
        except NotFound as error:
            raise ApiError(404, str(error)) from error
        shown = shown_delivery(found)
        payload = payload_bytes(WebhookRequest(found.headers, found.body))
        shown |= {"headers": found.headers, "outcome": found.outcome, **_shown_body(payload)}
        return json_response(shown)

    def replay(
        request: Request,
        delivery: int,
        _: Caller = Depends(access.may("admin", "deliveries.replay", everywhere=True)),
    ) -> Response:
        """Handle a delivery once more: what fires now makes new builds."""
        note_target(request, str(delivery))
        try:
            again = context.store.deliveries.replay(delivery)
        except NotFound as error:
            raise ApiError(404, str(error)) from error
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        context.hook_arrived()
        return json_response(shown_delivery(again))

    def test(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("read")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Whether an event would fire a trigger, rule by rule; nothing is built."""
        document = triggers.find(request, trigger)
        known = known_trigger(context, address_of(context, request).project, document)
        try:
            verdicts = tried(context, known, as_mapping(body))
        except BadDelivery as error:
            raise invalid_argument(str(error), field="event") from error
        return json_response({"verdicts": verdicts})

    routes.add_api_route(
        "/deliveries",
        listing,
        methods=["GET"],
        openapi_extra=documented(query=(_HOOK, LIMIT, BEFORE)),
    )
    routes.add_api_route(
        "/deliveries/{delivery}:replay",
        replay,
        methods=["POST"],
        openapi_extra=documented(body="Empty"),
    )
    routes.add_api_route("/deliveries/{delivery}", get, methods=["GET"])
    path = "/projects/{project}/triggers/{trigger}:test"
    routes.add_api_route(
        path,
        test,
        methods=["POST"],
        openapi_extra=documented(body="TrialEvent", query=(PARENT,)),
    )
    return routes


def shown_delivery(delivery: StoredDelivery) -> dict[str, Any]:
    """A delivery in a list."""
    outcome = delivery.outcome
    verdicts = [one for event in outcome.get("events", ()) for one in event.get("verdicts", ())]
    events = [event.get("event", "") for event in outcome.get("events", ())]
    more = f", and {len(events) - 1} more" if len(events) > 1 else ""
    shown: dict[str, Any] = {
        "number": delivery.number,
        "hook": delivery.hook,
        "id": delivery.delivery_id,
        "receivedAt": encode_instant(delivery.received_at),
        "status": delivery.status,
        "address": delivery.address,
        "kind": outcome.get("kind", ""),
        "about": events[0] + more if events else "",
        "builds": [one["build"] for one in verdicts if one.get("build")],
        "replays": delivery.replays,
    }
    if "retry" in outcome and delivery.status == WAITING:
        shown |= {"waitsFor": outcome["retry"]["because"], "nextTry": outcome["retry"]["at"]}
    for name in ("reason", "ignored", "error"):
        if outcome.get(name):
            shown["problem" if name == "error" else name] = outcome[name]
    if outcome.get("times"):
        shown["reason"] = f"{outcome['reason']} ({outcome['times']} times)"
    return shown


def _shown_body(body: bytes) -> dict[str, Any]:
    try:
        return {"body": msgspec.json.decode(body)}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {"bodyBase64": base64.b64encode(body).decode()}


def tried(
    context: ServerContext, known: KnownTrigger, asked: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Whether events that have not happened would fire a trigger, for the API and for pages.

    Args:
        context: the server's.
        known: the trigger.
        asked: see `trial_events`.

    Raises:
        BadDelivery: nothing that can happen is asked about.
        Busy: the project has too many filters under way.
    """
    events = trial_events(known.trigger, asked, known.repository, hook_bindings(context.store))
    filters = BoundedFilters(context.calls, known.project)
    verdicts = []
    for event in events:
        judged = KnownEvent(event, EventFacts(), SilentPlaces())
        try:
            verdict = judged.judge(known.trigger, known.repository, filters.rule)
        except NotNow as error:
            raise Busy(str(error)) from error
        verdicts.append({"event": described(event), **shown_verdict(verdict)})
    return verdicts
