"""Whether a server takes 500 signed deliveries per second while a build runs, and loses none."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import subprocess
import sys
import tempfile
import time
from urllib.parse import urlsplit

from benchmarks.machine import IMAGE, NotPossible
from benchmarks.measure import Result
from benchmarks.server import Server

_PER_S = 500
_SECONDS = 20
_CONNECTIONS = 32
_SECRET = "of-the-benchmark"
_REPOSITORY = {
    "full_name": "acme/app",
    "clone_url": "https://github.com/acme/app.git",
    "description": "x" * 6000,  # payloads of pushes on GitHub have 6 to 9 KB
}


def measure(_rounds: int) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="buildrunner-bench-") as folder:
        environ = {**os.environ, "XDG_DATA_HOME": f"{folder}/xdg"}
        subprocess.run(
            [sys.executable, "-m", "buildrunner", "secrets", "set", "hooks-github"],
            input=_SECRET.encode(),
            env=environ,
            check=True,
            capture_output=True,
        )
        data = f"{folder}/data"
        server = Server(data, 2, environ)
        try:
            build = prepare(server)
            begun = asyncio.run(send(server.url, 0, _PER_S * _SECONDS))
            waits = [one for one in begun if one is not None]
            refused = len(begun) - len(waits)
            taken, server = killed_in_the_middle(server, data, environ)
            lost = len(taken - kept(server))
            server.call(f"/v1/projects/bench/builds/{build}:cancel", {})
            server.wait(build)  # it would outlive the server
        finally:
            server.stop()
    waits.sort()
    p99_ms = waits[len(waits) * 99 // 100] * 1000 if waits else float("inf")
    median_ms = waits[len(waits) // 2] * 1000 if waits else float("inf")
    return [
        Result(
            name=f"{_PER_S} signed deliveries/s for {_SECONDS} s: p99",
            target=100.0,
            value=float("inf") if refused else p99_ms,
            unit="ms",
            note=f"a build runs; median {median_ms:.0f} ms, {refused} not taken",
        ),
        Result(
            name="deliveries lost when the server is killed",
            target=0.0,
            value=float(lost),
            unit="lost",
            note=f"of {len(taken)} that were answered before kill -9",
        ),
    ]


def prepare(server: Server) -> str:
    """A trigger that asks every rule, and a build that runs all the time: its id."""
    trigger = {
        "name": "t",
        "github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}},
        "includedFiles": ["src/**"],
        "build": {"steps": [{"name": IMAGE, "args": ["true"]}]},
    }
    server.call("/v1/projects/bench/triggers", trigger)
    server.call("/buildrunner/v1/hooks/github", {"owners": ["acme"]}, method="PUT")
    script = "n=0; while [ $n -lt 1200 ]; do n=$((n+1)); echo a line of a build; sleep 0.1; done"
    return server.create({"steps": [{"name": IMAGE, "script": script}]})


def delivery(number: int, host: str) -> bytes:
    """A whole request: a push of its own to a branch that fires nothing."""
    body = json.dumps(
        {
            "ref": f"refs/heads/b{number % 50}",
            "before": f"{number:040x}",
            "after": f"{number + 1:040x}",
            "repository": _REPOSITORY,
            "head_commit": {"id": f"{number + 1:040x}", "message": "change"},
            "commits": [{"id": f"{number + 1:040x}", "added": ["src/a"], "modified": []}],
        }
    ).encode()
    digest = hmac.new(_SECRET.encode(), body, hashlib.sha256).hexdigest()
    head = (
        f"POST /hooks/github HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: d{number}\r\n"
        f"X-Hub-Signature-256: sha256={digest}\r\n\r\n"
    )
    return head.encode() + body


async def send(url: str, first: int, count: int) -> list[float | None]:
    """Send deliveries at a steady rate; how long each took from the moment it was due.

    None for one that was not answered with 200. Whoever waits for a free connection waits for the
    server, and that counts.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    waiting: asyncio.Queue[tuple[int, float, bytes]] = asyncio.Queue()
    took: list[float | None] = [None] * count
    requests = [delivery(first + number, parts.netloc) for number in range(count)]

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            while True:
                number, due, content = await waiting.get()
                writer.write(content)
                if await answered(reader):
                    took[number] = time.monotonic() - due
                waiting.task_done()
        finally:
            writer.close()

    connections = [asyncio.create_task(connection()) for _ in range(_CONNECTIONS)]
    begun = time.monotonic()
    for number, content in enumerate(requests):
        due = begun + number / _PER_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        waiting.put_nowait((number, due, content))
    ended = asyncio.ensure_future(waiting.join())
    await asyncio.wait([ended, *connections], return_when=asyncio.FIRST_COMPLETED)
    for one in (ended, *connections):
        one.cancel()
    await asyncio.gather(ended, *connections, return_exceptions=True)
    return took


async def answered(reader: asyncio.StreamReader) -> bool:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return head.startswith(b"HTTP/1.1 200")


def killed_in_the_middle(
    server: Server, data: str, environ: dict[str, str]
) -> tuple[set[str], Server]:
    """Ids of deliveries that were answered before the server was killed; the next server."""
    first = _PER_S * _SECONDS

    async def until_killed() -> list[float | None]:
        asyncio.get_running_loop().call_later(2.0, server.kill)
        return await send(server.url, first, _PER_S * 4)

    answers = asyncio.run(until_killed())
    taken = {f"d{first + number}" for number, took in enumerate(answers) if took is not None}
    if not 0 < len(taken) < len(answers):
        raise NotPossible(f"the server was not killed in the middle: it answered {len(taken)}")
    return taken, Server(data, 2, environ)


def kept(server: Server) -> set[str]:
    """Ids of all deliveries that the server knows."""
    found: set[str] = set()
    before = 0
    while page := server.call(f"/buildrunner/v1/deliveries?limit=500&before={before}"):
        listed = page["deliveries"]
        if not listed:
            return found
        found |= {one["id"] for one in listed}
        before = listed[-1]["number"]
    return found
