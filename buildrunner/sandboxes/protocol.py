"""The protocol of sandboxes, in which the containers of one build run.

`host` is the host engine, which builds share. `nested` is the build's own engine, in a container of
the host engine: everything that its steps make is removed with it. `pod` is the engine in the Pod
of the worker.

The order, in the process that runs one build::

    opened = sandbox.open(build_id)               # also after a crash: the same one is found again
    try:
        workspace = opened.workspace(source)      # before run_build, also to resume a build
        ... compile, within what `plan.privilege.granted` makes of opened.privileged_steps ...
        opened.expect(plan)                       # as soon as there is a plan
        run_build(plan, RunContext(engine=opened.engine, workspace=workspace,
                                   options=opened.options(RunOptions(...)), ...))
    finally:
        opened.close()
    sandbox.remove(build_id)                      # when no process will resume the build

`close` leaves all resources for a process that resumes the build. `remove` may be called by
any process (the supervisor, if a build will not be resumed), any number of times.
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
        cpus: the most processors, even if others are idle.
        cpu_shares: weight against others when processors are scarce; 1024 is a container's default.
        memory_bytes: memory of all its containers together.
        pids: processes of all its containers together.
        disk_bytes: workspace, images and all other written data.
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
        found: one of `ISOLATIONS`; empty if unknown.
        demanded: one of `ISOLATIONS`; empty requires nothing.
    """
    if not demanded:
        return True
    return bool(found) and ISOLATIONS.index(found) >= ISOLATIONS.index(demanded)


_LEFT_TO_THE_MACHINE = 0.1
_LEAST_MEMORY = 512 << 20
_PIDS = 32768  # the limit of a machine whose kernel has default settings
_LEAST_PIDS = 2048


def fair_share(builds: int, memory_bytes: int, disk_gib: int = 0) -> SandboxLimits:
    """Return the limits of each build on a machine: memory is divided, processors are not.

    Args:
        builds: the most concurrent builds; 0 sets no limits.
        memory_bytes: the machine's memory.
        disk_gib: disk limit of each build; 0 sets no limit.
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
    """The engine of the machine. In a nested sandbox no step reaches it: containers with a login
    run here. None in a Pod, whose only engine the steps control: no container gets a login there.
    """

    machine_network: str
    """The network of containers with a login: they reach the same hosts as the build's engine."""

    privileged_steps: bool
    """Steps run privileged here unless the settings forbid it (see `plan.privilege.granted`)."""

    def workspace(self, source: Workspace) -> Workspace:
        """Return the workspace of ``source`` for this sandbox. Called once, before `run_build`."""
        ...

    def options(self, options: RunOptions) -> RunOptions:
        """Return ``options``, adapted to this sandbox (the socket of steps, ...)."""
        ...

    def expect(self, plan: BuildPlan) -> None:
        """Take the plan before its first step. Never blocks for long, never raises."""
        ...

    def metadata_listener(self) -> AbstractContextManager[socket.socket] | None:
        """Return a listener for the build's metadata server; None if builds share a network.

        While the context lasts, connections of the build's containers to 169.254.169.254:80 arrive
        at the listener, and no others. Entering it waits for the sandbox, and raises EngineError if
        the address is unavailable.
        """
        ...

    def close(self) -> None:
        """Close the connections. Nothing on the engine changes. Idempotent."""
        ...


class Sandbox(Protocol):
    """A kind of sandbox. Thread-safe; several processes may use it concurrently."""

    name: str
    """``host``, ``nested``, ``pod`` or ``none``, as ``--sandbox`` names it."""

    def open(self, build_id: str, *, project: str = "", trusted: bool = True) -> OpenSandbox:
        """Create the build's sandbox, or find the one that a crash left. Idempotent.

        Args:
            build_id: the build.
            project: project of the build. Known origins of layers are shared only within it.
            trusted: whether the build may share cached data with other builds.

        Raises:
            EngineUnavailable: the host engine does not answer.
            EngineError: this machine can't run a sandbox; the hint has the remedy.
        """
        ...

    def remove(self, build_id: str) -> None:
        """Remove the sandbox with all its resources. Idempotent, also after a crash.

        Raises:
            EngineError: something could not be removed.
        """
        ...

    def keep_spares(self, count: int) -> None:
        """Keep ``count`` valid spare sandboxes.

        Only one thread of the only server that uses the folder may call this. The thread calls it
        periodically, also with 0, since a call also maintains the shared images. A call may take a
        second, longer if it copies new images, and a minute the first time.

        Raises:
            EngineError: fewer spares could be started, or the shared images not be maintained.
            OSError: files of the shared images can't be written.
        """
        ...

    def drop_spares(self) -> None:
        """Remove all spares, also an earlier server's. For the thread of `keep_spares`.

        Raises:
            EngineError: something could not be removed.
        """
        ...

    def isolation(self) -> str:
        """Return the isolation of builds here: one of `ISOLATIONS`; empty while unknown."""
        ...

    def unenforced(self, egress: Egress) -> tuple[str, ...]:
        """Return the networks that ``egress`` denies and that builds can reach nevertheless."""
        ...

    def check_engine(self) -> None:
        """Check whether the host engine can run such sandboxes at all.

        Raises:
            EngineUnavailable: the engine does not answer now.
            EngineError: the engine can't run them; the hint has the remedy.
        """
        ...

    def check(self) -> None:
        """Check whether the host engine answers now, and has everything that sandboxes need.

        Raises:
            EngineUnavailable: no build could begin.
        """
        ...

    def close(self) -> None:
        """Close all connections. Nothing on the engine changes. Idempotent."""
        ...

    def builds_left(self) -> tuple[str, ...]:
        """Return the builds with any resource here (a container, a volume, ...), sorted.

        Only builds of this server: other servers and users may use the same engine.

        Raises:
            EngineError: the host engine does not answer.
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
        """See `Sandbox.remove`: there is nothing to remove."""

    def keep_spares(self, count: int) -> None:
        """See `Sandbox.keep_spares`: no build needs a spare here."""

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
        """See `Sandbox.builds_left`: no build has resources here."""
        return ()
