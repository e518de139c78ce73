"""200 people watch live logs: what that costs the server, and a build beside them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks.machine import IMAGE, work_folder
from benchmarks.measure import BUILDRUNNER, Result, compare, processor_s, run
from benchmarks.steps import config

VIEWERS = 200
LINES = 500_000
WATCHED_S = 10.0
_MESSAGE = b"event: log"


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder, serving(folder) as (url, pid):
        idle = config(
            folder, "idle", [{"name": IMAGE, "args": ["sh", "-c", "echo on; sleep 3600"]}]
        )
        build_id = submit_to(url, idle, "--async").strip()
        path = f"/buildrunner/v1/projects/local-project/builds/{build_id}/log/stream"
        with _viewers(url, path, 5):
            before = _memory_mib(pid)
        memory: list[float] = []
        taken: list[float] = []
        for _ in range(rounds):
            with _viewers(url, path, 1):
                alone_s = _processor_s(pid)
            with _viewers(url, path, VIEWERS):
                memory.append(_memory_mib(pid) - before)
                taken.append((_processor_s(pid) - alone_s) / WATCHED_S * 100)
        busy = config(
            folder,
            "busy",
            [{"name": IMAGE, "args": ["sh", "-c", f"seq {LINES} | sed s/$/-and-some-text/"]}],
        )

        def alone() -> float:
            return _build_s(url, busy)

        def watched() -> float:
            with _viewers(url, path, VIEWERS):
                return _build_s(url, busy)

        slowdown = compare(
            f"build of {LINES:,} lines, {VIEWERS} idle viewers / none",
            1.05,
            watched,
            alone,
            rounds=rounds,
        )
        run([BUILDRUNNER, "builds", "cancel", build_id, "--server", url])
        return [
            Result(
                f"memory of {VIEWERS} idle viewers of live logs",
                50.0,
                statistics.median(memory),
                unit="MiB",
                rounds=rounds,
            ),
            # The build beside them can lose no more than this; unlike its time, it does not tell
            # of what else the machine does.
            Result(
                f"a processor's time for {VIEWERS} idle viewers less one",
                2.0,
                statistics.median(taken),
                unit="%",
                rounds=rounds,
            ),
            slowdown,
        ]


@contextlib.contextmanager
def serving(
    folder: str, *flags: str, builds: int = 4, environment: dict[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """A server's address and process number."""
    process = subprocess.Popen(
        [
            *(BUILDRUNNER, "serve", "--port", "0", "--auth", "none", "--sandbox", "host"),
            *("--data", os.path.join(folder, "server"), "--max-builds", str(builds), *flags),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://\S+:\d+", line):
                yield found[0], process.pid
                return
        raise RuntimeError("buildrunner serve ended")
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def _viewers(url: str, path: str, count: int) -> Iterator[None]:
    """So many open streams, each of which has got what there is."""
    where = urlsplit(url)
    request = f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = socket.create_connection((where.hostname, where.port or 80))
            connections.append(stack.enter_context(connection))
            connection.sendall(request)
        for connection in connections:
            seen = b""
            while _MESSAGE not in seen:
                data = connection.recv(65536)
                if not data:
                    raise RuntimeError(f"a stream ended: {seen!r}")
                seen += data
        yield


def _processor_s(pid: int) -> float:
    """Processor seconds that a process takes within `WATCHED_S`."""

    before = processor_s(pid)
    time.sleep(WATCHED_S)
    return processor_s(pid) - before


def _memory_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        found = re.search(r"VmRSS:\s+(\d+) kB", file.read())
    assert found is not None
    return int(found[1]) / 1024


def submit_to(url: str, path: str, *flags: str) -> str:
    done = subprocess.run(
        [BUILDRUNNER, "submit", path, "--no-source", "--server", url, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def _build_s(url: str, path: str) -> float:
    """How long the build ran, as the server has it: without the queue and the client."""
    build_id = submit_to(url, path, "--async").strip()
    while True:
        shown = subprocess.run(
            [BUILDRUNNER, "builds", "describe", build_id, "--format", "json", "--server", url],
            capture_output=True,
            text=True,
            check=True,
        )
        build = json.loads(shown.stdout)
        if build["status"] == "SUCCESS":
            return _instant(build["finishTime"]) - _instant(build["startTime"])
        if build["status"] not in ("QUEUED", "WORKING"):
            raise RuntimeError(f"the build is {build['status']}")
        time.sleep(0.5)


def _instant(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    for result in measure(int(sys.argv[1]) if sys.argv[1:] else 3):
        print(result)
