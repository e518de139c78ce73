"""Who may let a build run that waits for an approval, and for how long it waits.

Both are set beside the trigger (`triggers.trigger_settings`) and count as they are when they are
asked about, also for builds that wait since before a change.
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from buildrunner.errors import BuildrunnerError, Conflict, NotFound
from buildrunner.server.approval_facts import AUTHOR
from buildrunner.server.trigger_queue import SUBMITTER, known_settings
from buildrunner.spec.encode import encode_instant

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.store.build_store import Document
    from buildrunner.store.stored_build import StoredBuild
    from buildrunner.triggers.trigger_settings import ApprovalPolicy

_LOOK_S: Final = 5.0

_log = logging.getLogger("buildrunner.server")


def refusal(policy: ApprovalPolicy, labels: dict[str, str], who: str, *, approves: bool) -> str:
    """Why somebody may not decide; empty when he may. Pure.

    Args:
        policy: the trigger's.
        labels: the build's.
        who: name of the token, and of the person on the forge who goes by that name.
        approves: he wants it to run. Whoever began a build may always give it up.
    """
    if policy.approvers and who not in policy.approvers:
        names = ", ".join(policy.approvers)
        return f"{who} may not approve or reject builds of this trigger: {names} may"
    began = {labels.get(name, "").rpartition(":")[2].casefold() for name in (SUBMITTER, AUTHOR)}
    if policy.not_author and approves and who.casefold() in began:
        return f"{who} began this build, and somebody else must approve it"
    return ""


class ApprovalExpiry:
    """Cancels builds that nobody approved in time: one thread in each server.

    `start` once; every method from any thread.

    Args:
        context: the server's; its clock decides.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="approvals", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the turn that goes on. Idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def turn(self) -> int:
        """Cancel all whose time is over; how many.

        Raises:
            StoreError: the database does not answer; it is tried again.
        """
        return sum(self._cancelled(*found) for found in self._context.store.pending())

    def _run(self) -> None:
        while True:
            try:
                self.turn()
            except BuildrunnerError as error:
                _log.warning("approvals: %s; it is tried again", error)
            except Exception:  # noqa: BLE001  (one bad build must not keep all others waiting)
                _log.exception("approvals: a turn failed; it is tried again")
            if self._stop.wait(_LOOK_S):
                return

    def _cancelled(self, stored: StoredBuild, beside: Document) -> bool:
        document, now = stored.document, self._context.clock()
        settings = known_settings(beside)
        lasts = settings.approval_expires
        if lasts is None or datetime.fromisoformat(document["createTime"]) + lasts > now:
            return False
        try:
            self._context.store.decide_approval(
                document["projectId"],
                stored.id,
                _expired(document, now, settings.approval.expires),
                approved=False,
            )
        except (Conflict, NotFound):  # somebody decided a moment ago, or another server was sooner
            return False
        _log.info("build %s: nobody approved it in time", stored.id)
        return True


def _expired(document: dict[str, Any], now: datetime, lasts: str) -> dict[str, Any]:
    return {
        **document,
        "status": "CANCELLED",
        "statusDetail": f"nobody approved it within {lasts}",
        "finishTime": encode_instant(now),
        "approval": {**document.get("approval", {}), "state": "CANCELLED"},
    }
