"""Why a container of a Docker engine got a SIGKILL: for lack of memory, or from somebody."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from buildrunner.containers.docker.api import DockerApi, filters, json_body
from buildrunner.containers.docker.http import quoted
from buildrunner.errors import EngineError

_LATE_NEWS_S = 0.25  # behind the end of a container; mostly the news comes before


class _State(msgspec.Struct):
    oom_killed: bool = msgspec.field(name="OOMKilled", default=False)
    finished_at: datetime = msgspec.field(
        name="FinishedAt", default=datetime.min.replace(tzinfo=UTC)
    )


class _HostConfig(msgspec.Struct):
    memory: int = msgspec.field(name="Memory", default=0)


class _Inspected(msgspec.Struct):
    state: _State = msgspec.field(name="State", default_factory=_State)
    host: _HostConfig = msgspec.field(name="HostConfig", default_factory=_HostConfig)


def was_oom_killed(api: DockerApi, container_id: str, torn_down: Callable[[], object]) -> bool:
    """Whether the kernel killed it for lack of memory.

    The kernel's log, where we may read it, says so at once. The engine learns of the kill in
    another way than of the end, and may note it some ms later, in its events only. So a container
    with a limit of memory is given that time; a container without a limit is judged at once.

    Args:
        api: the engine.
        container_id: a container that has ended with 137.
        torn_down: waits until the engine is through with the container's end.
    """
    if has_oom_kill(container_id, kernel_records()):
        return True
    with contextlib.suppress(EngineError):  # somebody has removed it already
        torn_down()
    status, body = api.call("GET", f"/containers/{quoted(container_id)}/json")
    if status != 200:
        return False
    found = json_body(body, _Inspected)
    if found.state.oom_killed or not found.host.memory:
        return found.state.oom_killed
    return _has_oom_event(api, container_id, found.state.finished_at.timestamp() + _LATE_NEWS_S)


def _has_oom_event(api: DockerApi, container_id: str, until: float) -> bool:
    """Whether the engine notes a kill before ``until`` (of its own clock), for which it waits."""
    chosen = filters(container=[container_id], event=["oom"])
    response = api.request("GET", f"/events?since=0&until={until:.3f}&{chosen}")
    try:
        return response.status == 200 and any(piece.strip() for piece in response.pieces())
    finally:
        response.close()


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
