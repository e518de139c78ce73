"""Workers on other hosts: claims of many at once, the log's way to the server, and steps."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import urlsplit

from benchmarks.machine import IMAGE, NotPossible
from benchmarks.measure import BUILDRUNNER, Result, compare, processor_s, timed
from benchmarks.server import Server
from benchmarks.steps import no_op
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.log_file import IndexRecord, LogFileSink
from buildrunner.store.model.builds import Lease
from buildrunner.worker.remote.log_sender import LogSender, SentLog
from buildrunner.worker.remote.queue import RemoteQueue, connect
from tests.fixtures_postgres import PostgresServer, running_postgres

WORKERS = 200
BUILDS = 1_000
BUILD_S = 30.0
DISPATCHED = 200
RENEW_S = 5.0
LOG_BYTES = 256 << 20
CHUNK_BYTES = 32 << 10


def measure(rounds: int) -> list[Result]:
    """Claims, dispatch to idle workers, logs and steps."""
    return [*claims(), *log_throughput(rounds), steps(rounds)]


@contextlib.contextmanager
def serving(folder: str, *flags: str) -> Iterator[tuple[Server, str, PostgresServer]]:
    """A server that runs no builds itself, a token for its workers, and its PostgreSQL."""
    postgres = running_postgres(fsync=True)
    try:
        address = postgres.make_database()
        data = os.path.join(folder, "server")
        environ = {**os.environ, "BUILDRUNNER_DATABASE": address}
        server = Server(data, 0, environ, "none", *flags)
        try:
            yield server, token(data, environ), postgres
        finally:
            server.stop()
    finally:
        postgres.remove()


def token(data: str, environ: dict[str, str] | None = None) -> str:
    """A token of workers for the server of a folder."""
    done = subprocess.run(
        [BUILDRUNNER, "tokens", "create", "bench", "--worker", "--data", data],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotPossible(done.stderr.strip())
    return done.stdout.strip()


def claims() -> list[Result]:
    """200 workers run 1,000 waiting builds of 10 s; then they are idle, and builds come."""
    with (
        tempfile.TemporaryDirectory(prefix="buildrunner-bench-") as folder,
        serving(folder) as (server, text, postgres),
    ):
        fleet = Fleet(server.url, text)
        queue(server, BUILDS)
        before = processor_s(server.pid)
        probe = Probe(postgres)
        began = time.monotonic()
        asyncio.run(fleet.run(BUILDS))
        took = time.monotonic() - began
        used = processor_s(server.pid) - before
        raw = probe.stop()
        busy = Result(
            name=f"claim: {WORKERS} workers, {BUILDS:,} waiting builds: p99",
            target=100.0,
            value=p99(fleet.claims) * 1000,
            unit="ms",
            ours_s=p99(fleet.claims),
            theirs_s=p99(raw),
            note=f"PostgreSQL alone right; median {statistics.median(fleet.claims) * 1000:.0f} ms;"
            f" {BUILDS / took:.0f} builds/s,"
            f" {used / BUILDS * 1000:.0f} ms of a processor a build;"
            f" other requests: {fleet.slowest()}",
        )
        fleet = Fleet(server.url, text)
        before = processor_s(server.pid)
        waits = asyncio.run(fleet.dispatch(server, DISPATCHED))
        used = processor_s(server.pid) - before
        idle = Result(
            name=f"from create to a claim's answer, {WORKERS} idle workers: p99",
            target=100.0,
            value=p99(waits) * 1000,
            unit="ms",
            ours_s=p99(waits),
            note=f"median {statistics.median(waits) * 1000:.0f} ms;"
            f" {used / DISPATCHED * 1000:.0f} ms of a processor a build",
        )
        return [busy, idle]


def queue(server: Server, count: int) -> list[str]:
    """Queue builds of three steps; their ids."""
    build = {"steps": [{"name": IMAGE, "args": ["true"]}] * 3, "tags": ["bench"]}
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: server.create(build), range(count)))


def p99(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100)[98]


class Fleet:
    """Fake workers: they send the requests that workers send, and run nothing."""

    def __init__(self, url: str, text: str) -> None:
        self._where = urlsplit(url)
        self._token = text
        self._left = 0
        self.claims: list[float] = []
        self.taken: dict[str, list[float]] = {}

    async def run(self, builds: int) -> None:
        """Run that many waiting builds on all workers, which start within one build's time."""
        self._left = builds
        order = random.Random(16)
        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(self._works(f"w{number}", order.uniform(0, BUILD_S)))

    async def dispatch(self, server: Server, builds: int) -> list[float]:
        """Seconds from the create of each build until a worker has it. All workers wait."""
        created: dict[str, float] = {}
        claimed: dict[str, float] = {}
        ended = asyncio.Event()

        async def waits(name: str) -> None:
            connection = Connection(self._where, self._token)
            while True:
                found = await connection.call(
                    "POST", "/worker/v1/builds:claim", claim_of(name, 25.0)
                )
                if not found:
                    continue
                claimed[found["document"]["id"]] = time.monotonic()
                if len(claimed) == builds:
                    ended.set()
                await self._ends(connection, found)

        tasks = [asyncio.create_task(waits(f"i{number}")) for number in range(WORKERS)]
        await asyncio.sleep(5.0)
        for _ in range(builds):
            began = time.monotonic()
            (build,) = await asyncio.to_thread(queue, server, 1)
            created[build] = began
            await asyncio.sleep(0.1)
        await asyncio.wait_for(ended.wait(), 60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [claimed[build] - began for build, began in created.items()]

    def slowest(self) -> str:
        """The p99 of each kind of request but claims."""
        kinds = {kind: p99(taken) for kind, taken in self.taken.items() if len(taken) > 100}
        return ", ".join(f"{kind} {taken * 1000:.0f} ms" for kind, taken in kinds.items())

    async def _works(self, name: str, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        connection = Connection(self._where, self._token)
        while self._left > 0:
            self._left -= 1
            began = time.monotonic()
            found = await connection.call("POST", "/worker/v1/builds:claim", claim_of(name, 25.0))
            if not found:
                raise NotPossible("a build waits, and no worker gets it")
            self.claims.append(time.monotonic() - began)
            await self._runs(connection, found)
        connection.close()

    async def _runs(self, connection: Connection, found: dict) -> None:
        """Begin the build, report its steps, renew its lease, send a line a second, end it."""
        document, fence = found["document"], found["fence"]
        path = f"/worker/v1/builds/{document['id']}"
        await self._timed(
            "begin", connection, "POST", f"{path}:begin?fence={fence}&incarnation=1:1"
        )
        signals = asyncio.create_task(self._hears(path, fence))
        working = {**document, "status": "WORKING", "startTime": instant()}
        await self._timed("document", connection, "PUT", f"{path}/document?fence={fence}", working)
        offset, renewed = 0, time.monotonic()
        end = time.monotonic() + BUILD_S
        number = 0
        while time.monotonic() < end:
            line = b"a line of a fake build that says what most lines say: little\n"
            record = index_of(offset + len(line), number + 1)
            log = f"{path}/log?fence={fence}&offset={offset}"
            await self._timed("log", connection, "PUT", log, record + line)
            offset, number = offset + len(line), number + 1
            if number in (3, 6):
                states = [{"status": "SUCCESS"}] * (number // 3)
                steps = [
                    {**step, **state}
                    for step, state in zip(document["steps"], states, strict=False)
                ]
                working = {**working, "steps": [*steps, *document["steps"][len(steps) :]]}
                where = f"{path}/document?fence={fence}"
                await self._timed("document", connection, "PUT", where, working)
            if time.monotonic() - renewed > RENEW_S:
                renewed = time.monotonic()
                await self._timed("renew", connection, "POST", f"{path}:renew?fence={fence}")
            await asyncio.sleep(1.0)
        await self._ends(connection, {**found, "document": working}, begin=False)
        signals.cancel()
        await asyncio.gather(signals, return_exceptions=True)

    async def _ends(self, connection: Connection, found: dict, *, begin: bool = True) -> None:
        document, fence = found["document"], found["fence"]
        path = f"/worker/v1/builds/{document['id']}"
        if begin:
            await connection.call("POST", f"{path}:begin?fence={fence}&incarnation=1:1")
        ended = {**document, "status": "SUCCESS", "finishTime": instant()}
        ended.setdefault("startTime", ended["finishTime"])
        await self._timed("document", connection, "PUT", f"{path}/document?fence={fence}", ended)

    async def _hears(self, path: str, fence: int) -> None:
        connection = Connection(self._where, self._token)
        try:
            while True:
                await connection.call("GET", f"{path}/signals?fence={fence}&wait=25")
        finally:
            connection.close()

    async def _timed(self, kind: str, connection: Connection, *request: object) -> None:
        began = time.monotonic()
        await connection.call(*request)
        self.taken.setdefault(kind, []).append(time.monotonic() - began)


def log_throughput(rounds: int) -> list[Result]:
    """A log that grows as fast as its worker can send it."""
    lines = b"".join(b"%063d\n" % number for number in range(CHUNK_BYTES // 64))
    taken, alone, used = [], [], []
    wrong = 0
    with (
        tempfile.TemporaryDirectory(prefix="buildrunner-bench-") as folder,
        serving(folder) as (server, text, _),
    ):
        token_file = os.path.join(folder, "token")
        with open(token_file, "w", encoding="ascii") as file:
            file.write(text)
        connection = connect(server.url, token_file, "")
        queue_ = RemoteQueue(connection, send_log=lambda *_: None)
        for number in range(rounds):
            queue(server, 1)
            answer = connection.answer(
                "POST", "/worker/v1/builds:claim", body=claim_of(f"l{number}", 0)
            ).json()
            lease = Lease(answer["document"]["id"], answer["fence"])
            own = os.path.join(folder, "own", lease.build_id)
            queue_.set_process(lease, "1:1")
            sender = LogSender(queue_, lease, own, queue_.begun(lease))
            file_sink = LogFileSink(own)
            log = SentLog(file_sink, sender)
            before = processor_s(server.pid)
            began = time.monotonic()
            sender.start()
            for _ in range(LOG_BYTES // len(lines)):
                log.write(LogChunk(lines, at=datetime.now(UTC), step=0, output=len(lines)))
            sender.send_all()
            taken.append(time.monotonic() - began)
            used.append(processor_s(server.pid) - before)
            log.close()
            kept = os.path.join(server.folder, "logs", lease.build_id, "log.txt")
            wrong += sum_of(kept) != sum_of(os.path.join(own, "log.txt"))
            alone.append(timed(lambda kept=kept: copied(kept, os.path.join(folder, "copy"))))
            os.unlink(os.path.join(own, "log.txt"))
        connection.close()
    mib = LOG_BYTES >> 20
    per_50_mb = [one * 50e6 / LOG_BYTES for one in taken]
    return [
        Result(
            name=f"a log of {mib} MiB to the server: 50 MB take",
            target=1000.0,
            value=statistics.median(per_50_mb) * 1000,
            unit="ms",
            ours_s=statistics.median(taken),
            theirs_s=statistics.median(alone),
            rounds=rounds,
            note=f"{LOG_BYTES / statistics.median(taken) / 1e6:.0f} MB/s; right: a copy of the file"
            f" with fsync; {statistics.median(used):.1f} s of the server's processor",
            samples=per_50_mb,
        ),
        Result("logs that differ at worker and server", 0.0, float(wrong), unit="logs"),
    ]


def sum_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copied(path: str, to: str) -> None:
    """Copy a file, and wait for the disk."""
    shutil.copyfile(path, to)
    with open(to, "rb") as file:
        os.fsync(file.fileno())
    os.unlink(to)


def steps(rounds: int) -> Result:
    """The same build by a worker over HTTPS and by the server's own worker."""
    with tempfile.TemporaryDirectory(prefix="buildrunner-bench-") as folder:
        here = Server(os.path.join(folder, "here"), 1)
        there = Server(os.path.join(folder, "there"), 0, None, "none")
        token_file = os.path.join(folder, "token")
        with open(token_file, "w", encoding="ascii") as file:
            file.write(token(there.folder))
        argv = [BUILDRUNNER, "worker", "--server", there.url, "--token-file", token_file]
        argv += ["--sandbox", "host", "--data", os.path.join(folder, "worker")]
        with open(os.path.join(folder, "worker.log"), "wb") as log:
            worker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            return compare(
                "20 no-op steps by a remote worker / by the server's own",
                1.1,
                lambda: build_s(there),
                lambda: build_s(here),
                rounds=rounds,
                note="from create to the end of the build; host sandbox",
            )
        finally:
            worker.terminate()
            worker.wait()
            there.stop()
            here.stop()


def build_s(server: Server) -> float:
    """Seconds from the creation of a build of 20 steps to its end, as the server has them."""
    build_id = server.create({"steps": no_op(20)})
    if (status := server.wait(build_id)) != "SUCCESS":
        raise NotPossible(f"the build of 20 steps is {status}")
    build = server.call(f"/v1/projects/bench/builds/{build_id}")
    created, ended = (datetime.fromisoformat(build[one]) for one in ("createTime", "finishTime"))
    return (ended - created).total_seconds()


def claim_of(name: str, wait_s: float) -> dict:
    return {"worker": name, "limit": 1, "waitS": wait_s}


def instant() -> str:
    return datetime.now(UTC).isoformat()


def index_of(end: int, lines: int) -> bytes:
    """The index of a piece of one chunk."""
    at_us = int(time.time() * 1_000_000)
    return (1).to_bytes(4, "little") + IndexRecord(end, lines, at_us, 0, 1).packed()


class Connection:
    """One connection of a worker; a request at a time."""

    def __init__(self, where, text: str) -> None:
        self._where = where
        self._token = text
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, method: str, path: str, body: object = None) -> dict:
        """The answer; empty for one without content."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._where.hostname, self._where.port)
        reader, writer = self._streams
        content = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._where.netloc}\r\n"
            f"Authorization: Bearer {self._token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        sizes = [line for line in lines if line.startswith(b"content-length:")]
        answer = await reader.readexactly(int(sizes[0][15:])) if sizes else b""
        if not lines[0].startswith(b"http/1.1 2"):
            raise NotPossible(f"{method} {path}: {lines[0].decode()} {answer.decode()}")
        return json.loads(answer) if answer else {}

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


class Probe:
    """Times of a transaction that changes one row, ten in a second, in PostgreSQL's own words."""

    def __init__(self, postgres: PostgresServer) -> None:
        import psycopg

        self._connection = psycopg.connect(postgres.make_database(), autocommit=True)
        self._connection.execute("CREATE TABLE probe (n bigint)")
        self._connection.execute("INSERT INTO probe VALUES (0)")
        self._taken: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.1):
            began = time.monotonic()
            self._connection.execute("UPDATE probe SET n = n + 1")
            self._taken.append(time.monotonic() - began)

    def stop(self) -> list[float]:
        self._stopped.set()
        self._thread.join()
        self._connection.close()
        return self._taken
