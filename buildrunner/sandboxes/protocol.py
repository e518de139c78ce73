"""The seam between a worker and the place where one build's containers live.

`host` is the engine at hand, which builds share. `nested` is an engine of the build's own, in a
container of the engine at hand: what its steps name, tag, fill or break is gone with it. `pod` is
the engine in the Pod of the worker.

The order, in the process that runs one build::

    opened = sandbox.open(build_id)               # also after a crash: the same one is found again
    try:
        workspace = opened.workspace(source)      # before run_build, also when it goes on
        ... compile, within what `plan.privilege.granted` makes of opened.privileged_steps ...
        opened.expect(plan)                       # as soon as there is a plan
        run_build(plan, RunContext(engine=opened.engine, workspace=workspace,
                                   options=opened.options(RunOptions(...)), ...))
    finally:
        opened.close()
    sandbox.remove(build_id)                      # once nobody goes on with the build

`close` leaves everything as it is, for whoever goes on with the build. `remove` may be called by
anyone (the supervisor, after a build's process died for good), any number of times.
"""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from typing import NoReturn, Protocol

import msgspec

from buildrunner.addresses import Egress
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import EngineError
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.workspace.protocol import Workspace


class SandboxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one build's use of the machine; None is no limit.

    Attributes:
        cpus: processors, when others want them too or not.
        cpu_shares: weight against others when processors are scarce; 1024 is a container's own.
        memory_bytes: memory of all its containers together.
        pids: processes of all its containers together.
        disk_bytes: workspace, images and everything else that it writes.
    """

    cpus: float | None = None
    cpu_shares: int | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None


ISOLATIONS = ("host", "privileged", "capabilities", "user-namespace")
"""Isolations of builds from their machine, the weakest first. In the first two, the author of a
step is root of the machine; see docs/explanation/security.md."""


def isolates(found: str, demanded: str) -> bool:
    """Return whether an isolation is at least as strong as the demanded one.

    Args:
        found: one of `ISOLATIONS`; empty while it is not known.
        demanded: one of `ISOLATIONS`; empty demands nothing.
    """
    if not demanded:
        return True
    return bool(found) and ISOLATIONS.index(found) >= ISOLATIONS.index(demanded)


_LEFT_TO_THE_MACHINE = 0.1
_LEAST_MEMORY = 512 << 20
_PIDS = 32768  # of a machine whose kernel was left as it is
_LEAST_PIDS = 2048


def fair_share(builds: int, memory_bytes: int, disk_gib: int = 0) -> SandboxLimits:
    """The share of each of ``builds`` in a machine: memory is divided, processors are not.

    Args:
        builds: how many may run; 0 sets no limits.
        memory_bytes: the machine's memory.
        disk_gib: what each may take of the disk; 0 sets no limit.
    """
    if builds <= 0:
        return SandboxLimits(disk_bytes=(disk_gib << 30) or None)
    share = int(memory_bytes * (1 - _LEFT_TO_THE_MACHINE)) // builds
    return SandboxLimits(
        cpu_shares=1024,
        memory_bytes=max(share, _LEAST_MEMORY),
        pids=max(_PIDS // builds, _LEAST_PIDS),
        disk_bytes=(disk_gib << 30) or None,
    )


class OpenSandbox(Protocol):
    """The sandbox of one build, open in this process."""

    engine: ContainerEngine
    """The engine that runs the build. Calls may block until the sandbox is ready. They raise
    `EngineUnavailable` with the reason if the sandbox cannot start, or has ended."""

    machine: ContainerEngine | None
    """The engine of the machine. In a nested sandbox no step reaches it: what gets a login runs
    here. None in a Pod, whose only engine is in the hands of the steps: no container gets one."""

    machine_network: str
    """The network for such containers: they reach what the build's own engine reaches."""

    privileged_steps: bool
    """Steps run privileged here unless the settings forbid it (see `plan.privilege.granted`)."""

    def workspace(self, source: Workspace) -> Workspace:
        """``source`` as it is filled and mounted here. Called once, before `run_build`."""
        ...

    def options(self, options: RunOptions) -> RunOptions:
        """``options`` with what is different here (the socket of steps, ...)."""
        ...

    def expect(self, plan: BuildPlan) -> None:
        """Told of the plan before its first step. Never blocks for long, never raises."""
        ...

    def metadata_listener(self) -> AbstractContextManager[socket.socket] | None:
        """Return a listener for the build's metadata server; None where builds share a network.

        While the context lasts, connections of the build's containers to 169.254.169.254:80 arrive
        at the listener, and no others. Entering it waits for the place, and raises EngineError if
        the address can't be had.
        """
        ...

    def close(self) -> None:
        """Let go of it: nothing on the engine changes. Idempotent."""
        ...


class Sandbox(Protocol):
    """A kind of place. Thread-safe; several processes may use it at the same time."""

    name: str
    """``host``, ``nested``, ``pod`` or ``none``, as ``--sandbox`` names it."""

    def open(self, build_id: str, *, project: str = "", trusted: bool = True) -> OpenSandbox:
        """Make the build's place, or find the one that a crash left. Idempotent.

        Args:
            build_id: the build.
            project: what builds of other projects must not tell it.
            trusted: it may tell later builds of its project something, and be told.

        Raises:
            EngineUnavailable: the engine at hand does not answer.
            EngineError: a place can't be made on this machine; the hint says what to do.
        """
        ...

    def remove(self, build_id: str) -> None:
        """Remove it with all that was made in it and for it. Idempotent, also after a crash.

        Raises:
            EngineError: something could not be removed.
        """
        ...

    def keep_spares(self, count: int) -> None:
        """Have ``count`` places that are started before their builds come, all of them fit.

        For one thread of the one server that uses the folder: it calls again from time to time,
        also with 0, so that what places share is looked after. It may take a second, as long as
        copying images takes after builds that used new ones, and a minute the first time.

        Raises:
            EngineError: there are not as many.
        """
        ...

    def drop_spares(self) -> None:
        """Remove those that no build has, also an earlier server's. For the same thread.

        Raises:
            EngineError: something could not be removed.
        """
        ...

    def isolation(self) -> str:
        """Return how builds are isolated here: one of `ISOLATIONS`; empty while it is not known."""
        ...

    def unenforced(self, egress: Egress) -> tuple[str, ...]:
        """Return the networks that ``egress`` denies and that builds reach here all the same."""
        ...

    def check_engine(self) -> None:
        """Ask whether the engine at hand can have such places at all.

        Raises:
            EngineUnavailable: it does not answer now.
            EngineError: it can't; the hint says what to do.
        """
        ...

    def check(self) -> None:
        """Ask whether the engine at hand answers, and has what all places need, now.

        Raises:
            EngineUnavailable: no build would begin.
        """
        ...

    def close(self) -> None:
        """Drop connections. Nothing on the engine changes. Idempotent."""
        ...

    def builds_left(self) -> tuple[str, ...]:
        """Builds that have anything here (a container, a volume, ...), in whatever state, sorted.

        Only builds of this server: other servers and people may use the same engine.

        Raises:
            EngineError: the engine at hand does not tell.
        """
        ...


class NoSandbox:
    """Implements `Sandbox` for a server whose builds all run on workers elsewhere."""

    name = "none"

    def open(self, build_id: str, *, project: str = "", trusted: bool = True) -> NoReturn:  # noqa: ARG002
        """See `Sandbox.open`.

        Raises:
            EngineError: always.
        """
        raise EngineError(f"this server runs no builds itself (--sandbox none): {build_id}")

    def remove(self, build_id: str) -> None:
        """See `Sandbox.remove`: nothing was made here."""

    def keep_spares(self, count: int) -> None:
        """See `Sandbox.keep_spares`: nothing is started for a build."""

    def drop_spares(self) -> None:
        """See `Sandbox.drop_spares`."""

    def isolation(self) -> str:
        """See `Sandbox.isolation`: each worker has its own."""
        return ""

    def unenforced(self, egress: Egress) -> tuple[str, ...]:  # noqa: ARG002
        """See `Sandbox.unenforced`: no step runs here."""
        return ()

    def check_engine(self) -> None:
        """See `Sandbox.check_engine`: no engine is needed."""

    def check(self) -> None:
        """See `Sandbox.check`: no engine is needed."""

    def close(self) -> None:
        """See `Sandbox.close`."""

    def builds_left(self) -> tuple[str, ...]:
        """See `Sandbox.builds_left`: no build has anything here."""
        return ()
