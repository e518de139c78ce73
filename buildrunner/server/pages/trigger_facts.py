"""What a trigger's page shows beside the trigger: deliveries, settings, a trial. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.spec.encode import encode_instant
from buildrunner.triggers.schedule import Missed, Overlap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buildrunner.store.delivery_store import StoredDelivery
    from buildrunner.triggers.trigger_settings import TriggerSettings

_MOST = 10


class Told(msgspec.Struct, frozen=True):
    """One delivery that asked a trigger.

    Attributes:
        number: of the delivery.
        at: when it came, as the API writes it.
        event: what it told of.
        verdict: as it is kept.
    """

    number: int
    at: str
    event: str
    verdict: dict[str, Any]


def told_of(trigger_id: str, deliveries: Iterable[StoredDelivery]) -> list[Told]:
    """The deliveries that asked a trigger, in their order, not more than a page shows."""
    found = (
        Told(one.number, encode_instant(one.received_at), event.get("event", ""), verdict)
        for one in deliveries
        for event in one.outcome.get("events", ())
        for verdict in event.get("verdicts", ())
        if verdict.get("triggerId") == trigger_id
    )
    return [told for told, _ in zip(found, range(_MOST), strict=False)]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The event of which somebody asks whether it would fire a trigger; ``ref`` is empty for none.

    Attributes:
        ref: branch, or full name of a ref.
        base: branch that a pull request wants to get into; empty for a push.
        files: what changed, one a line; empty when that is not said.
        message: of the commit, or the comment on the pull request.
        fork: it comes from a fork, by somebody who may not write.
    """

    ref: str = ""
    base: str = ""
    files: str = ""
    message: str = ""
    fork: bool = False

    def event(self) -> dict[str, Any]:
        """As `trial_events` takes it."""
        files = [line.strip() for line in self.files.splitlines() if line.strip()]
        return {
            "ref": self.ref,
            "baseBranch": self.base,
            "message": self.message,
            "comment": self.message if self.base else "",
            "fork": self.fork,
            "writer": not self.fork,
            **({"files": files} if files else {}),
        }


def asked_of(query: Mapping[str, str]) -> Asked:
    """What the address of the page asks."""
    texts = {name: query.get(name, "").strip() for name in ("ref", "base", "files", "message")}
    return Asked(**texts, fork=query.get("fork") == "true")


class ShownSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger's settings as the fields of a form; empty for the default."""

    jitter: str
    missed: str
    overlap: str
    limit: int
    group: str
    policy: str
    approvers: str
    expires: str
    not_author: bool
    public_badge: bool
    forge: str
    forge_host: str


def shown_settings(settings: TriggerSettings) -> ShownSettings:
    """The fields of the form."""
    queue = settings.concurrency.policy
    forge = None if settings.forge is None or settings.forge.unconfirmed else settings.forge
    return ShownSettings(
        jitter=settings.jitter,
        missed="" if settings.missed is Missed.SKIP else settings.missed.value,
        overlap="" if settings.overlap is Overlap.ALLOW else settings.overlap.value,
        limit=settings.concurrency.limit,
        group=settings.concurrency.group,
        policy="" if queue == "queue" else queue,
        approvers=", ".join(settings.approval.approvers),
        expires=settings.approval.expires,
        not_author=settings.approval.not_author,
        public_badge=settings.public_badge,
        forge=forge.kind if forge else "",
        forge_host=forge.host if forge else "",
    )
