"""Stores deliveries as they arrive: genuine deliveries in batches, and some refused ones.

Deliveries that arrive while others are written are stored together, with one write to the disk.

The first refusal of a hook for a source address is stored at once, so that an admin sees a wrong
secret while setting up a forge. Repeats are counted in memory, and the count is stored once a
minute. The store keeps the newest records only; see `Deliveries.refuse`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Final, TypeAlias

from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import SecretError, SecretNotFound, StoreError
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.context import ServerContext
from buildrunner.server.events.hook_secrets import HookSecrets, secret_name
from buildrunner.server.http.errors import ApiError, invalid_argument, unavailable
from buildrunner.store.model.deliveries import NewDelivery, StoredDelivery
from buildrunner.store.sql.store import ServerStore
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import (
    Forge,
    TooManyRefs,
    WebhookRequest,
    lacking_proof,
    lane_of,
    token_matches,
)
from buildrunner.triggers.forges.pubsub import message_id
from buildrunner.triggers.hook_binding import PUBSUB

_MOST_AT_ONCE = 200


class DeliveryIntake:
    """Stores deliveries. Used in one event loop.

    Deliveries that arrive during a write are stored together by the next write.

    Args:
        store: stores the deliveries.
        clock: the time.
    """

    def __init__(self, store: ServerStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._line: list[tuple[NewDelivery, asyncio.Future[tuple[StoredDelivery, bool]]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, new: NewDelivery) -> tuple[StoredDelivery, bool]:
        """Store a delivery. It is durable when this returns. See `ServerStore.add_deliveries`.

        Raises:
            StoreError: the delivery is not stored.
        """
        loop = asyncio.get_running_loop()
        kept: asyncio.Future[tuple[StoredDelivery, bool]] = loop.create_future()
        self._line.append((new, kept))
        if self._writer is None:
            self._writer = loop.create_task(self._write_all())
        return await kept

    async def _write_all(self) -> None:
        try:
            while self._line:
                batch, self._line = self._line[:_MOST_AT_ONCE], self._line[_MOST_AT_ONCE:]
                try:
                    found = await run_in_threadpool(self._write, [new for new, _ in batch])
                except Exception as error:  # noqa: BLE001  (each sender gets the error)
                    for _, kept in batch:
                        if not kept.done():  # the sender has disconnected
                            kept.set_exception(error)
                else:
                    for (_, kept), one in zip(batch, found, strict=True):
                        if not kept.done():
                            kept.set_result(one)
        finally:
            self._writer = None

    def _write(self, new: list[NewDelivery]) -> list[tuple[StoredDelivery, bool]]:
        return self._store.deliveries.add(new, now=self._clock())


_log = logging.getLogger("buildrunner.server")

PERIOD_S: Final = 60.0
MOST_OF_AN_ADDRESS: Final = 5
MOST: Final = 60

_Kind: TypeAlias = tuple[str, str, str]  # hook, address, reason


class Refusals:
    """Records refusals of one server. For use in one event loop.

    Args:
        store: stores the records.
        clock: the time.
        period_s: seconds for which repeats are counted.
    """

    def __init__(
        self,
        store: ServerStore,
        clock: Callable[[], datetime],
        period_s: float = PERIOD_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._period_s = period_s
        self._period: _Period | None = None

    async def record(self, refused: NewDelivery, reason: str) -> None:
        """Record a refused delivery, within the limits of the module.

        Raises:
            StoreError: the first refusal of its kind can't be stored.
        """
        if self._period is None:
            self._period = _Period()
            asyncio.get_running_loop().call_later(self._period_s, self._end, self._period)
        period = self._period
        kind = (refused.hook, refused.address, reason)
        if not period.begins(kind):
            return
        where = refused.address
        _log.warning("hook %s refuses a delivery from %s: %s", refused.hook, where, reason)
        period.numbers[kind] = await run_in_threadpool(
            self._store.deliveries.refuse, refused, reason, now=self._clock()
        )

    def _end(self, period: _Period) -> None:
        self._period = None
        if period.unrecorded:
            _log.warning("hooks refused %d more deliveries", period.unrecorded)
        repeats = period.repeats()
        if repeats:
            asyncio.get_running_loop().run_in_executor(None, self._count, repeats)

    def _count(self, repeats: dict[int, int]) -> None:
        try:
            self._store.deliveries.count_refusals(repeats)
        except StoreError as error:
            _log.warning("refused deliveries are not counted: %s", error)


class _Period:
    """The refusals of one period.

    Attributes:
        counts: how often each kind of refusal happened.
        numbers: the records in the store, by kind of refusal.
        unrecorded: refusals beyond the bounds.
    """

    def __init__(self) -> None:
        self.counts: Counter[_Kind] = Counter()
        self.numbers: dict[_Kind, int] = {}
        self.unrecorded = 0
        self._of_address: Counter[str] = Counter()

    def begins(self, kind: _Kind) -> bool:
        """Count a refusal. Returns whether it is the first of its kind and must be stored."""
        if kind in self.counts:
            self.counts[kind] += 1
            return False
        address = kind[1]
        if self._of_address.total() >= MOST or self._of_address[address] >= MOST_OF_AN_ADDRESS:
            self.unrecorded += 1
            return False
        self._of_address[address] += 1
        self.counts[kind] = 1
        return True

    def repeats(self) -> dict[int, int]:
        """Return the number of repeats of each record that was repeated, by its number."""
        found = {number: self.counts[kind] - 1 for kind, number in self.numbers.items()}
        return {number: count for number, count in found.items() if count}


_STALE_S: Final = 300
_MOST_HEADER: Final = 1000
# Patterns of headers with a secret or credentials, such as x-gitlab-token.
_SECRET_HEADER: Final = re.compile(
    r"auth|cookie|signature|token|secret|passw|credential|api-?key|access-?key"
)
_NOT_GENUINE: Final = "its signature or secret is not right"
_STALE: Final = "it was sent too long ago, or by a clock that is wrong"
_PUBLIC: Final = {_STALE: _STALE}
BodyReader: TypeAlias = Callable[[], AbstractAsyncContextManager[bytes]]


class HookIntake:
    """Verifies and stores deliveries of forges, in one event loop.

    The signature is checked first: no part of a body is parsed before it is verified. A
    refused delivery leaves a record.

    Source: semantics 9.7 and 9.8; the forges' own pages on webhooks.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._secrets = HookSecrets(context.secrets, context.store.hooks.all)
        self._intake = DeliveryIntake(context.store, context.clock)
        self._refusals = Refusals(context.store, context.clock)

    async def receive(
        self, delivery: NewDelivery, headers: Mapping[str, str], presented: str, read: BodyReader
    ) -> tuple[StoredDelivery, bool]:
        """Verify and store a delivery. Returns the stored delivery, and whether it is new.

        The body is read only if the hook has a secret: without one, no delivery can be genuine.

        Args:
            delivery: the delivery without its body.
            headers: all headers of the request, by lower-case name.
            presented: the secret in the address, which verifies a Pub/Sub push.
            read: reads the body.

        Raises:
            ApiError: 401 for a delivery that is not genuine, or too old; 400 for one of too many
                refs; 413, 408 or 429 for a body that is too large, too slow, or one of too many;
                503 if the hook's secret can't be read now.
        """
        forge = delivery.hook.partition("/")[0]
        secret, reason = await self._secret(delivery)
        if forge == PUBSUB and not reason:
            reason = "" if token_matches(presented, secret) else _NOT_GENUINE
        if not reason:
            delivery, reason = await self._verified(delivery, headers, secret, read)
        if reason:
            await self._refusals.record(delivery, reason)
            raise ApiError(401, f"the delivery is refused: {_PUBLIC.get(reason, _NOT_GENUINE)}")
        stored, is_new = await self._intake.add(delivery)
        if is_new:
            self._context.hook_arrived()
        return stored, is_new

    async def _secret(self, delivery: NewDelivery) -> tuple[str, str]:
        """Return the secret of a delivery's hook, or why it has none.

        Raises:
            ApiError: the secret can't be read now.
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
        self, delivery: NewDelivery, headers: Mapping[str, str], secret: str, read: BodyReader
    ) -> tuple[NewDelivery, str]:
        """Read and verify the body. Returns the complete delivery, and why it is refused, if so."""
        forge = delivery.hook.partition("/")[0]
        try:
            async with read() as body:
                sent = WebhookRequest(headers, body)
                new = replace(delivery, body=body)
                return await run_in_threadpool(self._judged, new, forge, sent, secret)
        except ApiError as error:
            await self._refusals.record(delivery, str(error))
            raise

    def _judged(
        self, delivery: NewDelivery, forge: str, sent: WebhookRequest, secret: str
    ) -> tuple[NewDelivery, str]:
        """Return a delivery with its id and lane, or why it is refused.

        Only a genuine delivery is parsed.

        Raises:
            ApiError: it reports too many refs.
        """
        reason = "" if forge == PUBSUB else self._refusal(FORGES[forge], sent, secret)
        if reason:
            return delivery, reason
        try:
            lane = "" if forge == PUBSUB else lane_of(delivery.hook, FORGES[forge], sent)
        except TooManyRefs as error:
            raise invalid_argument(f"the delivery is refused: {error}") from error
        return replace(delivery, delivery_id=_delivery_id(forge, sent), lane=lane), ""

    def _refusal(self, kind: Forge, sent: WebhookRequest, secret: str) -> str:
        """Return why a delivery is refused; empty if it is not."""
        if not kind.is_genuine(sent, secret):
            return lacking_proof(sent) or _NOT_GENUINE
        sent_at = kind.sent_at(sent)
        age = 0.0 if sent_at is None else self._context.clock().timestamp() - sent_at
        return "" if abs(age) <= _STALE_S else _STALE


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a delivery that hold no secrets, by lower-case name."""
    return {
        key.lower(): value[:_MOST_HEADER]
        for key, value in headers.items()
        if not _SECRET_HEADER.search(key.lower())
    }


def _delivery_id(forge: str, sent: WebhookRequest) -> str:
    found = message_id(sent) if forge == PUBSUB else FORGES[forge].delivery_id(sent)
    return found[:_MOST_HEADER]
