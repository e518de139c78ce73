"""Stopping a build that runs in another process of this machine."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from buildrunner.errors import Conflict, StoreError
from buildrunner.store.build_store import FINAL_STATUSES
from buildrunner.store.process_owner import is_alive, pid_of

if TYPE_CHECKING:
    from buildrunner.store.build_store import BuildStore, Document

_POLL_S = 0.05
_LIMIT_S = 60.0


def cancel_build(store: BuildStore, document: Document) -> None:
    """Ask the build's process to stop, as Ctrl-C does, and wait until it has ended.

    Raises:
        Conflict: the build has ended already.
        StoreError: the process belongs to another user, or does not end.
    """
    import time

    build_id = document["id"]
    owner = store.owner_of(build_id)
    if document["status"] in FINAL_STATUSES or not owner:
        raise Conflict(
            f"build {build_id} has ended already, with status {document['status']}",
            hint="only a build that runs can be cancelled",
        )
    try:
        os.kill(pid_of(owner), signal.SIGTERM)
    except ProcessLookupError:
        return  # it ended just now
    except PermissionError as error:
        raise StoreError(f"build {build_id} is run by another user's process") from error
    deadline = time.monotonic() + _LIMIT_S
    while is_alive(owner):
        if time.monotonic() > deadline:
            raise StoreError(
                f"the process {pid_of(owner)} of build {build_id} does not end",
                hint=f"kill -9 {pid_of(owner)}: its guardian removes what it made",
            )
        time.sleep(_POLL_S)
