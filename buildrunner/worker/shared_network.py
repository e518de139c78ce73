"""The network that builds on the host's engine share, while a server or one of its builds needs it.

A local ``submit`` has a guardian for this; a server's builds have none, as their containers must
outlive their processes. The same lock counts the users of both kinds.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from buildrunner.containers.cleanup import (
    hold_network_lock,
    open_network_lock,
    owner_label,
    release_network,
)
from buildrunner.containers.engine_types import LABEL_BUILD, LABEL_OWNER
from buildrunner.errors import EngineError
from buildrunner.store.process_owner import this_process

if TYPE_CHECKING:
    from buildrunner.containers.engine_protocol import ContainerEngine

_NOBODY = "shared"

_log = logging.getLogger(__name__)


class SharedNetwork:
    """Held from the making of this object until `close`; by the kernel no longer than we live.

    Args:
        engine: where it is. Not closed.
        address: the engine's address, which the lock is named after.
        name: the network's name.
        state_dir: folder of locks, the same for all builds of the machine.
    """

    def __init__(self, engine: ContainerEngine, address: str, name: str, state_dir: str) -> None:
        self._engine = engine
        self._name = name
        self._lock = open_network_lock(state_dir, address)
        hold_network_lock(self._lock)

    def make(self) -> None:
        """Make it ahead of a build, whose own it must not be: it goes with the build's end.

        It has an owner, so that who is killed leaves nothing that `doctor --clean` can't find.
        What is wrong with the engine, the build will report.
        """
        labels = {LABEL_BUILD: _NOBODY, LABEL_OWNER: owner_label(this_process())}
        try:
            self._engine.ensure_network(self._name, labels)
        except EngineError as error:
            _log.warning("the network %s can't be made ahead: %s", self._name, error)

    def close(self) -> None:
        """Let go of it, and remove it if nobody else holds it. Idempotent."""
        if self._lock < 0:
            return
        with contextlib.suppress(EngineError):  # the next user finds it, and removes it
            release_network(self._engine, self._name, self._lock)
        os.close(self._lock)
        self._lock = -1
