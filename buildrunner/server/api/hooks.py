"""Routes that receive events of other machines: the hooks of forges, and webhook triggers.

The sender is verified by a signature or a secret, not by a token. A hook has a binding, which
decides what the hook may fire. The routes of bindings need a token.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from buildrunner.addresses import network_of
from buildrunner.errors import NotFound, SecretError
from buildrunner.server.context import ServerContext
from buildrunner.server.events.hook_secrets import namesake, secret_name
from buildrunner.server.events.intake import HookIntake, Refusals, kept_headers
from buildrunner.server.events.webhook_calls import WebhookCall, WebhookCalls
from buildrunner.server.http.access import Access, note_action, note_target, take_place
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.bodies import (
    CallerSlots,
    UnverifiedBodies,
    as_mapping,
    build_slot,
    is_large,
    json_body,
    raw_body,
    read_slot,
)
from buildrunner.server.http.errors import (
    ApiError,
    invalid_argument,
    permission_denied,
    unavailable,
)
from buildrunner.server.http.requests import address_of, client_address, parameter
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import PARENT, REQUEST_ID, Parameter, documented
from buildrunner.server.services.triggers import forge_hooks
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.hook_binding import BARE, PUBSUB, read_binding

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MOST_SHOWN: Final = 100
_PATH: Final = "/buildrunner/v1/hooks"
_PUSH_SECRET = Parameter("secret", "string", "Of a Pub/Sub push subscription: the proof.")


def router(context: ServerContext) -> APIRouter:
    """Return the routes of hooks."""
    routes = APIRouter(tags=["hooks"])
    _add_deliveries(routes, context)
    _add_bindings(routes, context)
    return routes


def _add_deliveries(routes: APIRouter, context: ServerContext) -> None:
    """Add the routes that forges call. A signature verifies the caller in place of a token."""
    intake = HookIntake(context)

    async def receive(request: Request, forge: str) -> Response:
        """Receive a delivery. It is stored when this call is answered, and handled soon after."""
        hook = check_hook(forge, request.path_params.get("name", ""))
        delivery = NewDelivery(
            hook=hook,
            delivery_id="",
            headers=kept_headers(request.headers),
            body=b"",
            address=client_address(request),
        )
        bodies: UnverifiedBodies = request.app.state.unverified_bodies
        stored, is_new = await intake.receive(
            delivery,
            {key.lower(): value for key, value in request.headers.items()},
            parameter(request, "secret"),
            lambda: bodies.read(request, context.settings.max_delivery_bytes),
        )
        bodies.trust(request)
        request.state.caller = Caller(f"hook:{hook}", (), ())
        return json_response({"delivery": stored.number, "duplicate": not is_new})

    for path in ("/{forge}", "/{forge}/{name}"):
        routes.add_api_route(
            f"/hooks{path}",
            receive,
            methods=["POST"],
            openapi_extra=documented(body="Payload", query=(_PUSH_SECRET,)),
        )
    routes.add_api_route(  # users paste addresses in this form
        "/hooks/{forge}/", receive, methods=["POST"], include_in_schema=False
    )


def _add_bindings(routes: APIRouter, context: ServerContext) -> None:
    """Add the routes of bindings.

    A hook fires triggers of all projects, so these routes need a token for all projects.
    """
    access = Access(context)
    body_of = json_body(context)

    def listing(_: Caller = Depends(access.may("read", everywhere=True))) -> Response:
        """List bound hooks, and unbound hooks that have received deliveries."""
        bound, heard = context.store.hooks.all(), context.store.hooks.heard()
        names = sorted({*bound, *forge_hooks(heard)})
        shown = [_shown(name, bound.get(name), heard.get(name)) for name in names]
        return json_response({"hooks": shown})

    def bind(
        request: Request,
        forge: str,
        name: str = "",
        _: Caller = Depends(access.may("admin", "hooks.bind", everywhere=True)),
        body: Any = Depends(body_of),
    ) -> Response:
        """Bind a hook: host, owners, projects; repository of git/NAME; topic of pubsub/NAME."""
        hook = check_hook(forge, name)
        note_target(request, hook)
        binding = read_binding(hook, as_mapping(body))
        document = msgspec.to_builtins(binding)
        context.store.hooks.put(hook, document)
        return json_response(_shown(hook, document))

    def unbind(
        request: Request,
        forge: str,
        name: str = "",
        _: Caller = Depends(access.may("admin", "hooks.unbind", everywhere=True)),
    ) -> Response:
        """Delete the binding of a hook, which then fires no trigger."""
        hook = check_hook(forge, name)
        note_target(request, hook)
        try:
            if forge == BARE:  # after a deletion, the hook's next delivery would bind it again
                context.store.hooks.get(hook)
                context.store.hooks.put(hook, {})
            else:
                context.store.hooks.delete(hook)
        except NotFound as error:
            raise ApiError(404, str(error)) from error
        return json_response({})

    routes.add_api_route(_PATH, listing, methods=["GET"])
    for path in ("/{forge}", "/{forge}/{name}"):
        routes.add_api_route(
            _PATH + path, bind, methods=["PUT"], openapi_extra=documented(body="HookBinding")
        )
        routes.add_api_route(_PATH + path, unbind, methods=["DELETE"])


def check_hook(forge: str, name: str) -> str:
    """Return the hook of an address.

    Raises:
        ApiError: the forge is unknown, or its hook can't have this name.
    """
    if (forge not in FORGES and forge != PUBSUB) or (name and not _NAME.fullmatch(name)):
        kinds = ", ".join((*FORGES, PUBSUB))
        wanted = _hook(forge, name)[:_MOST_SHOWN]
        raise ApiError(404, f"there is no hook {wanted}; there are {kinds}, also with /NAME")
    other = namesake(forge, name)
    if other:
        message = f"a hook of {forge} can't be called {name}: its secret would be {other}'s"
        raise ApiError(404, message)
    return _hook(forge, name)


def _hook(forge: str, name: str) -> str:
    return f"{forge}/{name}" if name else forge


def _shown(
    name: str, binding: dict[str, Any] | None, heard: datetime | None = None
) -> dict[str, Any]:
    shown = {"name": name, "bound": bool(binding), "secret": secret_name(name)}
    shown |= binding or {}
    return shown | ({"lastDelivery": encode_instant(heard)} if heard is not None else {})


_REFUSED = "the trigger or its secret is not right"
_TRIGGER_SECRET = Parameter("secret", "string", "The trigger's secret.")
_KEY = Parameter("key", "string", "Google's API key: ignored.")

_Verified = tuple[WebhookCall, dict[str, Any]]


def _sender(call: WebhookCall) -> str:
    """Return the name that counts the calls of all webhook triggers of a project."""
    return f"webhook:{call.address.project}"


def webhooks_router(context: ServerContext) -> APIRouter:
    """Return the route of webhooks. A secret verifies the caller in place of a token.

    The calls of all triggers of a project count as those of one caller: one sender may know the
    secrets of many.
    """
    calls = WebhookCalls(context)
    refusals = Refusals(context.store, context.clock)
    read = raw_body(context, context.settings.max_webhook_bytes)
    routes = APIRouter(tags=["triggers"])

    async def verified(request: Request) -> _Verified:
        """Return the call and its trigger, if the caller has the trigger's secret.

        Raises:
            ApiError: the secret is wrong, the trigger is missing, or the call can't be verified.
        """
        call = WebhookCall(
            address=address_of(context, request),
            trigger=request.path_params["trigger"],
            secret=parameter(request, "secret"),
            request_id=parameter(request, "requestId"),
            headers=kept_headers(request.headers),
            client=client_address(request),
        )
        # A trigger can be large, and nothing is known about the caller yet.
        async with read_slot(request, f"webhooks of {network_of(call.client)}"):
            found = await run_in_threadpool(calls.find, call)
        try:
            reason = await calls.reason_to_refuse(call, found)
        except SecretError as error:
            reason = f"its secret can't be had now: {error}"
            await refusals.record(calls.refused(call, found), reason)
            raise unavailable("the call can't be verified now: send it again") from None
        if reason:
            await refusals.record(calls.refused(call, found), reason)
            raise permission_denied(_REFUSED)
        note_action(request, "triggers.webhook", found["id"])
        name = f"webhook:{found['name']}"
        request.state.caller = Caller(name, ("submit",), (request.path_params["project"],))
        take_place(request, _sender(call))
        return call, found

    async def body_of(
        request: Request, known: _Verified = Depends(verified)
    ) -> AsyncIterator[bytes]:
        """Return the body. A body that is too large is recorded as refused."""
        sender = _sender(known[0])
        large: CallerSlots = request.app.state.large_bodies
        async with large.slot(sender) if is_large(request) else nullcontext():
            try:
                body = await read(request)
            except ApiError as error:
                await refusals.record(calls.refused(*known), str(error))
                raise
            async with build_slot(request, sender):
                yield body

    def receive(
        request: Request,
        trigger: str,  # noqa: ARG001  (documented; `verified` reads it)
        known: _Verified = Depends(verified),
        body: bytes = Depends(body_of),
    ) -> Response:
        """Receive a payload. Its build is in the queue when this call is answered."""
        call, found = known
        result = calls.receive(call, found, body)
        if result.builds:
            note_target(request, call.address.project, found["id"], *result.builds)
        if result.problem:
            raise invalid_argument(result.problem)
        return json_response({})

    for form in ("", "/locations/{location}"):
        path = f"/v1/projects/{{project}}{form}/triggers/{{trigger}}:webhook"
        routes.add_api_route(
            path,
            receive,
            methods=["POST"],
            openapi_extra=documented(
                body="Payload", answer="Empty", query=(PARENT, REQUEST_ID, _TRIGGER_SECRET, _KEY)
            ),
        )
    return routes
