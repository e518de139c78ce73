"""The host sandbox: a build's containers run on the host's engine, beside all others."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping

from buildrunner.addresses import NO_WALL, Egress
from buildrunner.containers.cleanup import (
    hold_network_lock,
    open_network_lock,
    owner_label,
    release_network,
)
from buildrunner.containers.image_name import take_away
from buildrunner.containers.process_owner import this_process
from buildrunner.containers.protocol import LABEL_BUILD, LABEL_OWNER, ContainerEngine
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import EngineError
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.workspace.protocol import Workspace


class HostSandbox:
    """Implements `Sandbox` with an engine that builds share.

    Args:
        engine: the host's engine. Closed with the sandbox.
        labels: labels of every resource of this server. If empty, `builds_left` finds no builds.
    """

    name = "host"

    def __init__(self, engine: ContainerEngine, labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._labels = dict(labels)

    def open(
        self,
        build_id: str,  # noqa: ARG002
        *,
        project: str = "",  # noqa: ARG002
        trusted: bool = True,  # noqa: ARG002
    ) -> HostPlace:
        """See `Sandbox.open`: nothing has to be created."""
        return HostPlace(self._engine)

    def remove(self, build_id: str) -> None:
        """See `Sandbox.remove`: removes every resource with the build's label."""
        remove_owned(self._engine, build_id)

    def keep_spares(self, count: int) -> None:
        """See `Sandbox.keep_spares`: no build needs a spare here."""

    def drop_spares(self) -> None:
        """See `Sandbox.drop_spares`."""

    def isolation(self) -> str:
        """See `Sandbox.isolation`."""
        return "host"

    def unenforced(self, egress: Egress) -> tuple[str, ...]:
        """See `Sandbox.unenforced`: steps can reach every network."""
        return NO_WALL.reached(egress)

    def check_engine(self) -> None:
        """See `Sandbox.check_engine`: every engine is accepted."""

    def check(self) -> None:
        """See `Sandbox.check`."""
        self._engine.ping()

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._engine.close()

    def builds_left(self) -> tuple[str, ...]:
        """See `Sandbox.builds_left`."""
        return labelled_builds(self._engine, self._labels)


class HostPlace:
    """Implements `OpenSandbox`: the build uses the host engine as it is."""

    privileged_steps = False
    machine_network = "host"  # a repository of packages may be on 127.0.0.1

    def __init__(self, engine: ContainerEngine) -> None:
        self.engine = engine
        self.machine: ContainerEngine | None = engine

    def workspace(self, source: Workspace) -> Workspace:
        """See `OpenSandbox.workspace`."""
        return source

    def options(self, options: RunOptions) -> RunOptions:
        """See `OpenSandbox.options`."""
        return options

    def expect(self, plan: BuildPlan) -> None:
        """See `OpenSandbox.expect`."""

    def metadata_listener(self) -> None:
        """See `OpenSandbox.metadata_listener`: builds share a network."""

    def close(self) -> None:
        """See `OpenSandbox.close`: the engine stays open."""


def remove_owned(engine: ContainerEngine, build_id: str) -> None:
    """Remove the containers, volumes and networks with a build's label.

    A network with other containers stays.

    Raises:
        EngineError: a resource could not be removed; all others are removed.
    """
    failures: list[str] = []
    owned = engine.list_owned({LABEL_BUILD: build_id})
    for remove, names in (
        (engine.remove_container, owned.containers),
        (engine.remove_volume, owned.volumes),
        (engine.remove_network, owned.networks),
    ):
        for name in names:
            try:
                remove(name)
            except EngineError as error:
                failures.append(str(error))
    take_away(engine, build_id)
    if failures:
        raise EngineError(f"build {build_id} left something behind: {'; '.join(failures)}")


def labelled_builds(engine: ContainerEngine, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the builds with resources on the engine that also have ``labels``, sorted."""
    if not labels:
        return ()
    found = []
    for build_id in filter(None, engine.label_values(LABEL_BUILD)):
        owned = engine.list_owned({**labels, LABEL_BUILD: build_id})
        if owned.containers or owned.volumes or owned.networks:
            found.append(build_id)
    return tuple(found)


NOBODY = "shared"
"""The build in the label of a network that was made ahead of builds."""

_log = logging.getLogger(__name__)


class SharedNetwork:
    """A hold on the shared network until `close`, or until this process ends.

    Args:
        engine: the network's engine. Not closed.
        address: the engine's address, which names the lock.
        name: the network's name.
        state_dir: folder of locks, the same for all builds of the machine.
    """

    def __init__(self, engine: ContainerEngine, address: str, name: str, state_dir: str) -> None:
        self._engine = engine
        self._name = name
        self._lock = open_network_lock(state_dir, address)
        hold_network_lock(self._lock)

    def make(self) -> None:
        """Create the network ahead of a build.

        The network does not get the build's label, since the end of the build would then remove it.
        Its owner label lets `doctor --clean` find the network after a kill. Errors of the engine
        are only logged: the build will report them.
        """
        labels = {LABEL_BUILD: NOBODY, LABEL_OWNER: owner_label(this_process())}
        try:
            self._engine.ensure_network(self._name, labels)
        except EngineError as error:
            _log.warning("the network %s can't be made ahead: %s", self._name, error)

    def close(self) -> None:
        """Release the network, and remove it if no other process holds it. Idempotent."""
        if self._lock < 0:
            return
        with contextlib.suppress(EngineError):  # the next user of the network removes it
            release_network(self._engine, self._name, self._lock)
        os.close(self._lock)
        self._lock = -1
