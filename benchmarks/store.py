"""A server's builds in SQLite: full against (nearly) empty, p99 of single calls in turn."""

from __future__ import annotations

import contextlib
import http.client
import os
import statistics
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from sqlalchemy import insert

from benchmarks.machine import NotPossible, work_folder
from benchmarks.measure import Result, timed
from benchmarks.viewers import serving
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import NewBuild
from buildrunner.store.sql.database import Database
from buildrunner.store.sql.migrate import migrate
from buildrunner.store.sql.rows import new_row, tags_of
from buildrunner.store.sql.schema import build_tags, builds
from buildrunner.store.sql.store import ServerStore, open_store

QUEUED, FINISHED = 10_000, 100_000
PAGE = 50
CALLS = 100  # a round
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = 5_000

Side = TypeVar("Side")


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder:
        full = store(folder, "full", finished=FINISHED, queued=QUEUED)
        # As many as a page holds: what a list of 50 costs is mostly its 50 documents.
        small = store(folder, "small", finished=PAGE - 10, queued=10)
        store(folder, "empty", finished=0, queued=0).close()
        sides = {
            "list 50": lambda one: one.builds.page("p", page_size=PAGE),
            "get": lambda one: one.builds.get("p", "b000007"),
            "list 50 of a tag": lambda one: one.builds.page("p", filter='tags="ci"'),
            "list 50 not queued": lambda one: one.builds.page("p", filter='status!="QUEUED"'),
            "list ongoing, none": lambda one: one.builds.page(
                "p", filter='status="WORKING" OR status="PENDING"'
            ),
            "why waiting": lambda one: one.queue.why_waiting(last_of[one], now=BEGIN, limit=9),
        }
        last_of = {full: f"b{FINISHED + QUEUED - 1:06}", small: f"b{PAGE - 1:06}"}
        results = [
            compare_p99(f"{name}: 110,000 builds / {PAGE}", 3.0, act, full, small, rounds)
            for name, act in sides.items()
        ]
        results.append(
            compare_p99("claim and end: 110,000 builds / 50", 3.0, run_one, full, small, rounds)
        )
        for one in (full, small):
            one.close()
        return [*measure_api(folder, rounds), *results]


def measure_api(folder: str, rounds: int) -> list[Result]:
    """What clients see; there an empty list costs something, too."""
    with api(folder, "full") as full, api(folder, "empty") as empty, api(folder, "small") as small:
        return [
            compare_p99(
                "API list of 50: 110,000 builds / none at all",
                3.0,
                lambda one: one.get("?pageSize=50"),
                full,
                empty,
                rounds,
            ),
            compare_p99(
                f"API get: 110,000 builds / {PAGE}",
                3.0,
                lambda one: one.get("/b000007"),
                full,
                small,
                rounds,
            ),
        ]


class Api:
    """One connection to a server."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def get(self, path: str) -> bytes:
        """An answer about builds."""
        self._connection.request("GET", f"/v1/projects/p/builds{path}")
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise NotPossible(f"{path}: {body!r}")
        return body

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def api(folder: str, name: str) -> Iterator[Api]:
    """A server on one of the databases. There is no engine for it, so that it begins no build."""
    environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/none"}
    data = os.path.join(folder, f"server-{name}")
    database = f"sqlite:///{folder}/{name}.db"
    with serving(data, "--database", database, environment=environment) as (url, _):
        client = Api(url)
        try:
            yield client
        finally:
            client.close()


def run_one(store: ServerStore) -> None:
    """One build's way through the queue, as far as the store sees it; a new one takes its place."""
    claimed = store.queue.claim("w", now=BEGIN, lease_s=30, limit=1)
    assert claimed is not None
    build, lease = claimed
    ended = {**build.document, "status": "SUCCESS", "finishTime": encode_instant(BEGIN)}
    store.queue.record(lease, ended)
    again = {**build.document, "id": build.id + "+"}
    store.builds.create(NewBuild(document=again, request={}, expires_at=BEGIN))


def compare_p99(
    name: str,
    target: float,
    act: Callable[[Side], object],
    full: Side,
    small: Side,
    rounds: int,
) -> Result:
    """The 99th percentiles of single calls, taken in turn."""
    samples: dict[Side, list[float]] = {full: [], small: []}
    for one in samples:
        act(one)
    for _ in range(rounds * CALLS):
        for one, taken in samples.items():
            taken.append(timed(lambda one=one: act(one) and None))
    p99 = [statistics.quantiles(taken, n=100)[98] for taken in samples.values()]
    medians = [statistics.median(taken) * 1000 for taken in samples.values()]
    return Result(
        name,
        target,
        p99[0] / p99[1],
        ours_s=p99[0],
        theirs_s=p99[1],
        rounds=rounds * CALLS,
        note=f"p99; medians {medians[0]:.2f} and {medians[1]:.2f} ms",
    )


def store(folder: str, name: str, *, finished: int, queued: int) -> ServerStore:
    address = f"sqlite:///{folder}/{name}.db"
    database = Database(address)
    migrate(database)
    for begin in range(0, finished + queued, BATCH):
        numbers = range(begin, min(begin + BATCH, finished + queued))
        rows = [new_row(new_build(number, waits=number >= finished)) for number in numbers]
        tags = [
            {
                "build_id": row["id"],
                "tag": tag,
                "project_id": "p",
                "create_time": row["create_time"],
            }
            for row in rows
            for tag in tags_of(msgspec.json.decode(row["document"]))
        ]
        with database.write() as connection:
            connection.execute(insert(builds), rows)
            connection.execute(insert(build_tags), tags)
    database.close()
    os.sync()
    return open_store(address)


def new_build(number: int, *, waits: bool) -> NewBuild:
    """A build as large as a usual one is: four steps, some 2 kB."""
    steps: list[dict[str, Any]] = [
        {"name": "gcr.io/cloud-builders/docker", "args": ["build", "-t", f"app:{number}", "."]}
    ] * 4
    created = BEGIN + timedelta(seconds=number)
    document: dict[str, Any] = {
        "id": f"b{number:06}",
        "projectId": "p",
        "createTime": encode_instant(created),
        "status": "QUEUED" if waits else ("SUCCESS", "FAILURE")[number % 10 == 0],
        "steps": steps,
        "tags": ["ci", f"commit-{number % 2000}"],
        "substitutions": {f"_VARIABLE_{one}": "value" * 10 for one in range(12)},
        "buildTriggerId": f"trigger-{number % 20}",
        "logUrl": "https://builds.example.com/" + "x" * 80,
    }
    if not waits:
        document["startTime"] = encode_instant(created + timedelta(seconds=1))
        document["finishTime"] = encode_instant(created + timedelta(seconds=60))
    return NewBuild(
        document=document,
        request={"steps": steps},
        expires_at=created + timedelta(days=3650),
        group=f"trigger:{number % 20}",
        group_limit=2,
    )
