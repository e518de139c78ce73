"""Removing a container, whoever else is at it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from buildrunner.containers import docker_errors
from buildrunner.containers.http_client import ANSWER_TIMEOUT_S, quoted

if TYPE_CHECKING:
    from buildrunner.containers.docker_api import DockerApi

_PAUSE_S = 0.05


def remove_by_force(api: DockerApi, container: str, *, called: str) -> None:
    """Kill and remove a container with its nameless volumes. Idempotent: it is gone afterwards.

    While somebody else removes it, the engine is asked again and again: a wait for the other's
    removal could begin too late to hear of its end.

    Args:
        api: the engine.
        container: id or name.
        called: what a message calls it.

    Raises:
        EngineError: it can't be removed, or somebody is at it for longer than an engine may be
            silent.
    """
    target = f"/containers/{quoted(container)}?force=1&v=1"
    if not api.capabilities().removes_joined:
        target = f"/libpod{target}&depend=1"
    give_up_at = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        status, body = api.call("DELETE", target)
        if status != 409 or time.monotonic() > give_up_at:
            break
        time.sleep(_PAUSE_S)
    if status not in (200, 204, 404):
        raise docker_errors.engine_error(f"{called} can't be removed", status, body)
