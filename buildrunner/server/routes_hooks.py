"""What forges send: taken when it is genuine, kept as it came, answered; handled later.

The signature comes first: nothing of a body is parsed before it is known to be the forge's. What
is refused leaves a trace among the deliveries and in the audit log.

Source: semantics 9.7 and 9.8; the forges' own pages on webhooks.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Depends, Request, Response
from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import SecretError
from buildrunner.server.access import note_action
from buildrunner.server.answers import json_response
from buildrunner.server.delivery_intake import DeliveryIntake
from buildrunner.server.errors import ApiError
from buildrunner.server.hook_secrets import HookSecrets, secret_name
from buildrunner.server.requests import parameter, raw_body
from buildrunner.server.tokens import Caller
from buildrunner.store.delivery_store import NewDelivery
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import (
    WebhookRequest,
    lacking_proof,
    token_matches,
)
from buildrunner.triggers.forges.lane import lane_of
from buildrunner.triggers.forges.pubsub import message_id

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.triggers.forges.forge import Forge

_log = logging.getLogger("buildrunner.server")

PUBSUB: Final = "pubsub"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_STALE_S: Final = 300
_MOST_HEADER: Final = 1000
_MOST_SHOWN: Final = 100
_QUICK_BYTES: Final = 200_000
# Headers that hold a secret or credentials, whatever their sender calls them: x-gitlab-token.
_SECRET_HEADER: Final = re.compile(
    r"auth|cookie|signature|token|secret|passw|credential|api-?key|access-?key"
)


def router(context: ServerContext) -> APIRouter:
    """The routes of hooks: no token, the signature is the proof."""
    hooks = Hooks(context)
    read = raw_body(context, context.settings.max_delivery_bytes)
    routes = APIRouter(prefix="/hooks", tags=["hooks"])

    async def body_of(request: Request, forge: str) -> bytes:
        """The body; one that is too large leaves a trace, too."""
        try:
            return await read(request)
        except ApiError as error:
            hook = _hook(forge, request.path_params.get("name", ""))
            refused = NewDelivery(
                hook=hook,
                delivery_id="",
                headers=kept_headers(request),
                body=b"",
                address=_address(request),
            )
            await hooks.refuse(request, refused, str(error))
            raise

    async def receive(request: Request, forge: str, body: bytes = Depends(body_of)) -> Response:
        """Take a delivery. It is safe in the database when this answers, and handled soon after."""
        name = request.path_params.get("name", "")
        return await hooks.receive(request, forge, name, body)

    async def known(request: Request, forge: str) -> None:
        """Refuse hooks that there can't be, before anything is read."""
        name = request.path_params.get("name", "")
        if (forge not in FORGES and forge != PUBSUB) or (name and not _NAME.fullmatch(name)):
            kinds = ", ".join((*FORGES, PUBSUB))
            wanted = _hook(forge, name)[:_MOST_SHOWN]
            raise ApiError(404, f"there is no hook {wanted}; there are {kinds}, also with /NAME")
        request.state.caller = Caller(f"hook:{_hook(forge, name)}", (), ())

    for path in ("/{forge}", "/{forge}/{name}"):
        routes.add_api_route(path, receive, methods=["POST"], dependencies=[Depends(known)])
    routes.add_api_route(  # as people paste addresses
        "/{forge}/",
        receive,
        methods=["POST"],
        dependencies=[Depends(known)],
        include_in_schema=False,
    )
    return routes


class Hooks:
    """Takes deliveries, in one event loop."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._secrets = HookSecrets(context.secret)
        self._intake = DeliveryIntake(context.store, context.clock)

    async def receive(self, request: Request, forge: str, name: str, body: bytes) -> Response:
        """Verify and keep a delivery.

        Raises:
            ApiError: 401 when it is not genuine, or too old.
        """
        hook = _hook(forge, name)
        headers = {key.lower(): value for key, value in request.headers.items()}
        sent = WebhookRequest(headers, body)
        delivery = NewDelivery(
            hook=hook,
            delivery_id="",
            headers=kept_headers(request),
            body=body,
            address=_address(request),
        )
        asked = (delivery, forge, sent, parameter(request, "secret"))
        if self._secrets.is_fresh(hook) and len(body) < _QUICK_BYTES:
            delivery, reason = self._judged(*asked)  # sooner done than handed to a thread
        else:
            delivery, reason = await run_in_threadpool(self._judged, *asked)
        if reason:
            await self.refuse(request, delivery, reason)
            raise ApiError(401, f"the delivery is refused: {_PUBLIC.get(reason, _NOT_GENUINE)}")
        stored, is_new = await self._intake.add(delivery)
        if is_new:
            self._context.hook_arrived()
        return json_response({"delivery": stored.number, "duplicate": not is_new})

    async def refuse(self, request: Request, delivery: NewDelivery, reason: str) -> None:
        """Leave a trace of a delivery that is not taken."""
        note_action(request, "hooks.receive", delivery.hook)
        store, now = self._context.store, self._context.clock()
        await run_in_threadpool(store.refuse_delivery, delivery, reason, now=now)
        where = delivery.address
        _log.warning("hook %s refuses a delivery from %s: %s", delivery.hook, where, reason)

    def _judged(
        self, delivery: NewDelivery, forge: str, sent: WebhookRequest, presented: str
    ) -> tuple[NewDelivery, str]:
        """A delivery with its id and lane; or why it is not taken. Parses genuine ones only."""
        reason = self._refusal(delivery.hook, forge, sent, presented)
        if reason:
            return delivery, reason
        lane = "" if forge == PUBSUB else lane_of(sent)
        return replace(delivery, delivery_id=_delivery_id(forge, sent), lane=lane), ""

    def _refusal(self, hook: str, forge: str, sent: WebhookRequest, presented: str) -> str:
        """Why a delivery is not taken; empty when it is."""
        try:
            secret = self._secrets.of(hook)
        except SecretError as error:
            made_by = f"`buildrunner secrets set {secret_name(hook)}`"
            return f"the hook has no secret ({made_by} gives it one): {error}"
        if forge == PUBSUB:
            return "" if token_matches(presented, secret) else _NOT_GENUINE
        kind: Forge = FORGES[forge]
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


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _hook(forge: str, name: str) -> str:
    return f"{forge}/{name}" if name else forge


def _delivery_id(forge: str, sent: WebhookRequest) -> str:
    found = message_id(sent) if forge == PUBSUB else FORGES[forge].delivery_id(sent)
    return found[:_MOST_HEADER]
