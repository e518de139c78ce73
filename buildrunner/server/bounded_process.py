"""The process that evaluates what projects wrote: templates and filters. Started by `BoundedCalls`.

``python -m buildrunner.server.bounded_process FD`` imports everything once, and forks for each
request. The fork lowers its own limits (time, memory, files, processes), reads the request, writes
the answer and exits. The kernel ends it at its limit, whatever the evaluated code does.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any, Final

import msgspec

from buildrunner.server.notifications.operations import OPERATIONS, warm_up

READY: Final = b"r"
_MOST_REQUEST: Final = 256 << 20
_PIECE: Final = 1 << 20
_NICENESS: Final = 10  # whoever evaluates long must not slow the server down
_NOBODY: Final = 65534


class Limits(msgspec.Struct, frozen=True):
    """The limits of one request.

    Attributes:
        cpu_s: processor time.
        wall_s: time.
        memory_bytes: beyond what the process has when it is forked.
    """

    cpu_s: float
    wall_s: float
    memory_bytes: int


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of a request.

    Attributes:
        value: what the operation gave.
        too_large: it needed more memory than it may have.
        bug: the type of an error that the operation does not know.
        trace: where it came from.
    """

    value: Any = None
    too_large: bool = False
    bug: str = ""
    trace: str = ""


def main(descriptor: int) -> None:
    """Take requests until the server closes its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    warm_up()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as control:
        control.send(READY)
        while True:
            limits, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
            if not limits:
                return
            if os.fork() == 0:
                control.close()
                _fork(descriptors[0], limits)
            os.close(descriptors[0])


def _fork(descriptor: int, limits: bytes) -> None:
    """Serve one request, and exit."""
    try:
        with socket.socket(fileno=descriptor) as connection:
            lower_limits(msgspec.json.decode(limits, type=Limits))
            answer = _answer(_request(connection))
            with suppress(OSError):
                connection.sendall(answer)
    finally:
        os._exit(0)


def lower_limits(limits: Limits) -> None:
    """Bound this process for good: nothing that it evaluates can raise its limits again."""
    for timer, seconds in ((signal.ITIMER_REAL, limits.wall_s), (signal.ITIMER_PROF, limits.cpu_s)):
        signal.setitimer(timer, seconds)  # their signals end a process that does not handle them
    os.nice(_NICENESS)
    with open("/proc/self/statm", "rb") as statm:
        pages = int(statm.read().split()[0])
    memory = pages * resource.getpagesize() + limits.memory_bytes
    seconds = math.ceil(limits.cpu_s) + 1
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    if os.geteuid() == 0:  # a way out of a sandbox of templates must not be one to the server
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _request(connection: socket.socket) -> bytes:
    pieces: list[bytes] = []
    while (piece := connection.recv(_PIECE)) and len(pieces) * _PIECE < _MOST_REQUEST:
        pieces.append(piece)
    return b"".join(pieces)


def _answer(request: bytes) -> bytes:
    try:
        name, argument = msgspec.json.decode(request, type=tuple[str, Any])
        return msgspec.json.encode(Answer(value=OPERATIONS[name](argument)))
    except MemoryError:
        return msgspec.json.encode(Answer(too_large=True))
    except Exception as error:  # noqa: BLE001  (it must be told, and the process ends anyway)
        trace = traceback.format_exc()
        return msgspec.json.encode(Answer(bug=type(error).__name__, trace=trace))


if __name__ == "__main__":
    main(int(sys.argv[1]))
