"""The cause of a container's SIGKILL: lack of memory, or a signal by somebody."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from buildrunner.containers.docker.api import DockerApi, filters
from buildrunner.containers.docker.errors import Refusal
from buildrunner.errors import EngineError

_STOPPING_S = 2.0  # an engine that stops kills its containers first, and then answers no more
_LATE_NEWS_S = 0.25  # behind the end of a container; mostly the news comes before
_LOOK_S = 0.025


def was_oom_killed(api: DockerApi, container_id: str, torn_down: Callable[[], object]) -> bool:
    """Return whether the kernel killed the container for lack of memory.

    The kernel's log, where this process may read it, says so at once. The engine learns of the kill
    in another way than of the end, and may note it some ms later, in its events only. So a
    container with a limit of memory is looked at for that time, and one without a limit once.

    If the engine itself sent a signal, it may be stopping. Its silence then is the answer, and the
    exit code says nothing of the step.

    Args:
        api: the engine.
        container_id: a container that has ended with 137.
        torn_down: waits until the engine is through with the container's end.

    Raises:
        EngineUnavailable: the engine has stopped.
    """
    if has_oom_kill(container_id, kernel_records()):
        return True
    with contextlib.suppress(EngineError, Refusal):  # somebody has removed it already
        torn_down()
    began = time.monotonic()
    while True:
        try:
            with api.client() as client:
                found = client.inspect_container(container_id)
                actions = _noted_actions(api, container_id)
        except Refusal:
            return False
        if found["State"].get("OOMKilled") or "oom" in actions:
            return True
        patience_s = _LATE_NEWS_S if found.get("HostConfig", {}).get("Memory") else 0.0
        if "kill" in actions:
            patience_s = _STOPPING_S
        if time.monotonic() - began >= patience_s:
            return False
        time.sleep(_LOOK_S)


def _noted_actions(api: DockerApi, container_id: str) -> frozenset[str]:
    """The kinds of the engine's events of a container: ``kill``, ``oom``."""
    query = {
        "since": 0,
        "until": f"{time.time():.3f}",
        "filters": filters(container=[container_id], event=["kill", "oom"]),
    }
    lines = api.send("GET", "/events", params=query).splitlines()
    return frozenset(json.loads(line).get("Action", "") for line in lines if line.strip())


KERNEL_LOG: Final = "/dev/kmsg"
_MOST_BYTES: Final = 8192  # of one record; a shorter read of a longer record fails


def has_oom_kill(container_id: str, records: Iterable[bytes]) -> bool:
    """Whether one of the records tells of a process that was killed in this container.

    A container inside the container is another one: only the last name of the group counts, which
    is ``ID`` or, with systemd, ``docker-ID.scope``.
    """
    wanted = container_id.encode()
    for record in records:
        if b"oom-kill:" not in record:
            continue
        _, found, rest = record.partition(b",task_memcg=")
        group = rest.partition(b",")[0]
        if found and wanted in group.rpartition(b"/")[2]:
            return True
    return False


def kernel_records(path: str = KERNEL_LOG) -> Iterator[bytes]:
    """The present records of the kernel's log; none without the right to read it."""
    try:
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        while record := _next(log):
            yield record
    finally:
        os.close(log)


def _next(log: int) -> bytes:
    while True:
        try:
            return os.read(log, _MOST_BYTES)
        except BrokenPipeError:  # overwritten before we came to it: the next read is further on
            continue
        except OSError:
            return b""
