"""Why a container of a Docker engine got a SIGKILL: for lack of memory, or from somebody."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from buildrunner.containers.docker.api import DockerApi, filters
from buildrunner.containers.docker.errors import Refusal
from buildrunner.errors import EngineError

_NEWS_S = 2.0


def was_oom_killed(api: DockerApi, container_id: str, torn_down: Callable[[], object]) -> bool:
    """Whether the kernel killed it for lack of memory.

    The engine learns of that by another way than of the end, and often some ms later: so ask for a
    while before believing that something else sent the SIGKILL. News that come behind the end it
    notes in its events only. The kernel, where it is ours to ask, knows at once.

    Args:
        api: the engine.
        container_id: a container that has ended with 137.
        torn_down: waits until the engine is through with the container's end.
    """
    if has_oom_kill(container_id, kernel_records()):
        return True
    with contextlib.suppress(EngineError, Refusal):  # somebody has removed it already
        torn_down()
    deadline = time.monotonic() + _NEWS_S
    while True:
        try:
            with api.client() as client:
                if client.inspect_container(container_id)["State"].get("OOMKilled"):
                    return True
        except Refusal:
            return False
        if _has_oom_event(api, container_id):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_NEWS_S / 80)


def _has_oom_event(api: DockerApi, container_id: str) -> bool:
    query = {
        "since": 0,
        "until": f"{time.time():.3f}",
        "filters": filters(container=[container_id], event=["oom"]),
    }
    try:
        return bool(api.send("GET", "/events", params=query).strip())
    except Refusal:
        return False


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
    """What the kernel's log holds now; nothing for who may not read it."""
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
