"""What forges send: taken when it is genuine, kept as it came, answered; handled later.

The signature comes first: nothing of a body is parsed before it is known to be the forge's. What
is refused leaves a trace among the deliveries.

Source: semantics 9.7 and 9.8; the forges' own pages on webhooks.
"""

from __future__ import annotations

import re
from typing import Final

from fastapi import APIRouter, Request, Response
from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import SecretError, SecretNotFound
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.context import ServerContext
from buildrunner.server.events.hook_secrets import HookSecrets, namesake, secret_name
from buildrunner.server.events.intake import DeliveryIntake, Refusals
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.errors import ApiError, unavailable
from buildrunner.server.http.requests import QUICK_BYTES, client_address, parameter
from buildrunner.server.http.tokens import Caller
from buildrunner.server.http.unverified_bodies import UnverifiedBodies
from buildrunner.server.openapi import Parameter, documented
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import (
    Forge,
    WebhookRequest,
    lacking_proof,
    lane_of,
    token_matches,
)
from buildrunner.triggers.forges.pubsub import message_id
from buildrunner.triggers.hook_binding import PUBSUB

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_STALE_S: Final = 300
_MOST_HEADER: Final = 1000
_MOST_SHOWN: Final = 100
# Headers that hold a secret or credentials, whatever their sender calls them: x-gitlab-token.
_SECRET_HEADER: Final = re.compile(
    r"auth|cookie|signature|token|secret|passw|credential|api-?key|access-?key"
)

_SECRET_PARAMETER = Parameter("secret", "string", "Of a Pub/Sub push subscription: the proof.")


def router(context: ServerContext) -> APIRouter:
    """The routes of hooks: no token, the signature is the proof."""
    hooks = Hooks(context)
    routes = APIRouter(prefix="/hooks", tags=["hooks"])

    async def receive(request: Request, forge: str) -> Response:
        """Take a delivery. It is safe in the database when this answers, and handled soon after."""
        name = request.path_params.get("name", "")
        check_hook(forge, name)
        return await hooks.receive(request, forge, name)

    for path in ("/{forge}", "/{forge}/{name}"):
        routes.add_api_route(
            path,
            receive,
            methods=["POST"],
            openapi_extra=documented(body="Payload", query=(_SECRET_PARAMETER,)),
        )
    routes.add_api_route(  # as people paste addresses
        "/{forge}/", receive, methods=["POST"], include_in_schema=False
    )
    return routes


def check_hook(forge: str, name: str) -> str:
    """The hook of an address.

    Raises:
        ApiError: there can be no such hook.
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


class Hooks:
    """Takes deliveries, in one event loop."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._secrets = HookSecrets(context.secrets, context.store.hooks.all)
        self._intake = DeliveryIntake(context.store, context.clock)
        self._refusals = Refusals(context.store, context.clock)

    async def receive(self, request: Request, forge: str, name: str) -> Response:
        """Verify and keep a delivery.

        The body is read only if the hook has a secret: before that, nobody can be genuine.

        Raises:
            ApiError: 401 for a delivery that is not genuine, or too old; 413, 408 or 429 for a
                body that is too large, too slow, or one of too many; 503 if the hook's secret
                can't be had now.
        """
        delivery = NewDelivery(
            hook=_hook(forge, name),
            delivery_id="",
            headers=kept_headers(request),
            body=b"",
            address=client_address(request),
        )
        secret, reason = await self._secret(delivery)
        if forge == PUBSUB and not reason:  # the proof is in the address
            presented = parameter(request, "secret")
            reason = "" if token_matches(presented, secret) else _NOT_GENUINE
        if not reason:
            delivery, reason = await self._verified(request, delivery, forge, secret)
        if reason:
            await self._refusals.record(delivery, reason)
            raise ApiError(401, f"the delivery is refused: {_PUBLIC.get(reason, _NOT_GENUINE)}")
        request.state.caller = Caller(f"hook:{delivery.hook}", (), ())
        stored, is_new = await self._intake.add(delivery)
        if is_new:
            self._context.hook_arrived()
        return json_response({"delivery": stored.number, "duplicate": not is_new})

    async def _secret(self, delivery: NewDelivery) -> tuple[str, str]:
        """The secret of a delivery's hook; or why it has none.

        Raises:
            ApiError: it can't be had now.
        """
        name = secret_name(delivery.hook)
        try:
            return await self._secrets.of(Asker(use=Use.HOOK), name), ""
        except SecretNotFound as error:
            made_by = f"`buildrunner secrets set {name}`"
            return "", f"the hook has no secret ({made_by} gives it one): {error}"
        except SecretError as error:
            await self._refusals.record(delivery, f"its secret can't be had now: {error}")
            raise unavailable("the delivery can't be verified now: send it again") from None

    async def _verified(
        self, request: Request, delivery: NewDelivery, forge: str, secret: str
    ) -> tuple[NewDelivery, str]:
        """Read the body and verify it; the whole delivery, or why it is refused."""
        bodies: UnverifiedBodies = request.app.state.unverified_bodies
        headers = {key.lower(): value for key, value in request.headers.items()}
        limit = self._context.settings.max_delivery_bytes
        try:
            async with bodies.read(request, limit) as body:
                asked = (replace(delivery, body=body), forge, WebhookRequest(headers, body), secret)
                if len(body) < QUICK_BYTES:  # sooner done than handed to a thread
                    return self._judged(*asked)
                return await run_in_threadpool(self._judged, *asked)
        except ApiError as error:
            await self._refusals.record(delivery, str(error))
            raise

    def _judged(
        self, delivery: NewDelivery, forge: str, sent: WebhookRequest, secret: str
    ) -> tuple[NewDelivery, str]:
        """A delivery with its id and lane; or why it is not taken. Parses genuine ones only."""
        reason = "" if forge == PUBSUB else self._refusal(FORGES[forge], sent, secret)
        if reason:
            return delivery, reason
        lane = "" if forge == PUBSUB else lane_of(sent)
        return replace(delivery, delivery_id=_delivery_id(forge, sent), lane=lane), ""

    def _refusal(self, kind: Forge, sent: WebhookRequest, secret: str) -> str:
        """Why a delivery is not taken; empty when it is."""
        if not kind.is_genuine(sent, secret):
            return lacking_proof(sent) or _NOT_GENUINE
        sent_at = kind.sent_at(sent)
        age = 0.0 if sent_at is None else self._context.clock().timestamp() - sent_at
        return "" if abs(age) <= _STALE_S else _STALE


_NOT_GENUINE: Final = "its signature or secret is not right"
_STALE: Final = "it was sent too long ago, or by a clock that is wrong"
_PUBLIC: Final = {_STALE: _STALE}


def kept_headers(request: Request) -> dict[str, str]:
    """The headers of a delivery but for those that hold secrets, by lower-case name."""
    return {
        key.lower(): value[:_MOST_HEADER]
        for key, value in request.headers.items()
        if not _SECRET_HEADER.search(key.lower())
    }


def _hook(forge: str, name: str) -> str:
    return f"{forge}/{name}" if name else forge


def _delivery_id(forge: str, sent: WebhookRequest) -> str:
    found = message_id(sent) if forge == PUBSUB else FORGES[forge].delivery_id(sent)
    return found[:_MOST_HEADER]
