"""What a supervisor works with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from buildrunner.worker.chores import Chore

if TYPE_CHECKING:  # nothing of these is ever decoded, and so looked up (TC004)
    from collections.abc import Callable  # noqa: TC004
    from datetime import datetime  # noqa: TC004

    from buildrunner.store.server_store import BuildQueue  # noqa: TC004
    from buildrunner.store.stored_build import Lease, StoredBuild  # noqa: TC004
    from buildrunner.worker.child_process import Spawner  # noqa: TC004
    from buildrunner.worker.data_folder import DataFolder  # noqa: TC004

POLL_S = 1.0


class SupervisorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor works with.

    Attributes:
        queue: where builds are.
        find: the stored build of an id; raises NotFound.
        folder: the server's folder, locked by us.
        worker_name: under which builds are claimed; the same after a restart.
        spawner: starts their processes.
        give_up: ends a build that no process will run again: told of it, our lease and the reason;
            called in a thread.
        max_builds: how many run at once.
        now: the time.
        chores: what else is to be done.
        on_started, on_ended: told of a build that was claimed, and of one that is over.
        check_engine: raises EngineUnavailable while builds would find no container engine; called
            in a thread.
        holds_untrusted_back: why no untrusted build may begin; empty for nothing. Cheap.
        reserve_bytes: nothing new is begun with less space left on the folder's disk.
        poll_s: how often to look when nobody says anything.
    """

    queue: BuildQueue
    find: Callable[[str], StoredBuild]
    folder: DataFolder
    worker_name: str
    spawner: Spawner
    give_up: Callable[[StoredBuild, Lease, str], None]
    max_builds: int
    now: Callable[[], datetime]
    check_engine: Callable[[], None]
    holds_untrusted_back: Callable[[], str] = lambda: ""
    chores: tuple[Chore, ...] = ()
    on_started: Callable[[StoredBuild], None] | None = None
    on_ended: Callable[[StoredBuild], None] | None = None
    reserve_bytes: int = 256 << 20
    poll_s: float = POLL_S
