"""What the kernel says of containers that it killed for lack of memory.

Docker's own word comes late, and not at all when the memory was used up before Docker watched it,
or when the whole machine ran out. The kernel notes each kill before it happens::

    oom-kill:constraint=CONSTRAINT_MEMCG,...,task_memcg=/docker/CONTAINER_ID,task=tail,pid=14180,...
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
