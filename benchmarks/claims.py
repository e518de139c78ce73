"""How long 200 workers wait for a build while 1,000 builds are queued on one server.

The client, the server and PostgreSQL share the processors. So each figure has a raw limit beside
it: requests that the server answers without a thread or a database, by the same connections.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import urlsplit

from benchmarks.machine import NotPossible
from benchmarks.measure import Result, processor_s
from benchmarks.server import Server
from benchmarks.workers import Connection, claim_of, instant, p99, queue, serving

_WORKERS = 200
_BUILDS = 1_000
_BUILD_S = 10.0
_TARGET_MS = 100.0


def measure(_rounds: int) -> list[Result]:
    """Claims of workers with builds of some seconds, with empty builds, and claims alone."""
    with (
        tempfile.TemporaryDirectory(prefix="buildrunner-bench-") as folder,
        serving(folder) as (server, token, _),
    ):
        fleet = _Fleet(server, token)
        try:
            return [
                fleet.measure(f"builds of {_BUILD_S:.0f} s", fleet.build_of_seconds, _BUILD_S),
                fleet.measure("empty builds", fleet.empty_build),
                fleet.measure("nothing else", fleet.claim),
            ]
        finally:
            fleet.close()


class _Fleet:
    """Fake workers, each with one connection."""

    def __init__(self, server: Server, token: str) -> None:
        self._server = server
        where = urlsplit(server.url)
        self._connections = [Connection(where, token) for _ in range(_WORKERS)]
        self._left = 0
        self._taken: list[float] = []
        self._runner = asyncio.Runner()

    def measure(
        self, name: str, work: Callable[[str, Connection], Awaitable[None]], pause_s: float = 0.0
    ) -> Result:
        """Do the work for each build, on all workers, and the same number of empty requests."""
        queue(self._server, _BUILDS)
        self._taken = []
        before, began = processor_s(self._server.pid), time.monotonic()
        self._runner.run(self._all(work, pause_s))
        took = time.monotonic() - began
        used = processor_s(self._server.pid) - before
        claims, self._taken = self._taken, []
        self._runner.run(self._all(partial(self._empty_request, pause_s), pause_s))
        return Result(
            name=f"claim: {_WORKERS} workers, {_BUILDS:,} builds, {name}: p99",
            target=_TARGET_MS,
            value=p99(claims) * 1000,
            unit="ms",
            ours_s=p99(claims),
            theirs_s=p99(self._taken),
            note=f"median {_ms(claims)}; empty requests right, median {_ms(self._taken)};"
            f" {_BUILDS / took:.0f} builds/s, {used / _BUILDS * 1000:.1f} ms of the server's"
            " processor a build",
            samples=claims,
        )

    async def build_of_seconds(self, name: str, connection: Connection) -> None:
        """Claim and begin a build, run it for some seconds, and report its success."""
        found = await self._claimed(name, connection)
        await self._begin(connection, found)
        await asyncio.sleep(_BUILD_S)
        await self._end(connection, found)

    async def empty_build(self, name: str, connection: Connection) -> None:
        """Claim and begin a build, and report its success."""
        found = await self._claimed(name, connection)
        await self._begin(connection, found)
        await self._end(connection, found)

    async def claim(self, name: str, connection: Connection) -> None:
        """Claim a build, which stays claimed."""
        await self._claimed(name, connection)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()
        self._runner.close()

    async def _all(
        self, work: Callable[[str, Connection], Awaitable[None]], pause_s: float
    ) -> None:
        """Do the work once for each build. The workers begin within the pause."""
        self._left = _BUILDS
        order = random.Random(16)
        async with asyncio.TaskGroup() as group:
            for number, connection in enumerate(self._connections):
                pause = order.uniform(0, pause_s)
                group.create_task(self._worker(f"w{number}", connection, work, pause))

    async def _worker(
        self,
        name: str,
        connection: Connection,
        work: Callable[[str, Connection], Awaitable[None]],
        pause_s: float,
    ) -> None:
        await asyncio.sleep(pause_s)
        while self._left > 0:
            self._left -= 1
            await work(name, connection)

    async def _claimed(self, name: str, connection: Connection) -> dict:
        began = time.monotonic()
        wanted = {**claim_of(name, 25.0), "limit": _BUILDS}
        found = await connection.call("POST", "/worker/v1/builds:claim", wanted)
        if not found:
            raise NotPossible("a build waits, and no worker gets it")
        self._taken.append(time.monotonic() - began)
        return found

    async def _begin(self, connection: Connection, found: dict) -> None:
        path = f"/worker/v1/builds/{found['document']['id']}"
        await connection.call("POST", f"{path}:begin?fence={found['fence']}&incarnation=1:1")

    async def _end(self, connection: Connection, found: dict) -> None:
        document = found["document"]
        path = f"/worker/v1/builds/{document['id']}"
        ended = {
            **document,
            "status": "SUCCESS",
            "startTime": document["createTime"],
            "finishTime": instant(),
        }
        await connection.call("PUT", f"{path}/document?fence={found['fence']}", ended)

    async def _empty_request(self, pause_s: float, _name: str, connection: Connection) -> None:
        began = time.monotonic()
        await connection.call("GET", "/healthz")
        self._taken.append(time.monotonic() - began)
        await asyncio.sleep(pause_s)


def _ms(taken: list[float]) -> str:
    return f"{statistics.median(taken) * 1000:.0f} ms"
