"""Server time of every page of the dashboard over 100,000 builds.

Server and client are one process; its processor time counts, so that whoever else works on the
machine does not: nothing of a page waits for anything but the processor.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import msgspec
from sqlalchemy import insert

from benchmarks.machine import work_folder
from benchmarks.measure import Result, timed
from buildrunner.engine.events import StepFinished, StepStarted
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.events import EventLog
from buildrunner.logs.files.log_file import LogFileSink, log_folder
from buildrunner.plan.build_plan import new_build_id
from buildrunner.server.app import create_app
from buildrunner.server.context import ServerContext, ServerSettings
from buildrunner.server.http.listener import Listener, listen_on
from buildrunner.server.loop import Signal
from buildrunner.server.metrics import Metrics
from buildrunner.sources.uploads import SourceUploads
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import NewBuild
from buildrunner.store.sql.database import Database
from buildrunner.store.sql.migrate import migrate
from buildrunner.store.sql.rows import new_row, tags_of
from buildrunner.store.sql.schema import build_tags, builds
from buildrunner.store.sql.store import open_store

BUILDS, TRIGGERS, STEPS = 100_000, 20, 8
LINES = 200_000
FAILED = f"b{BUILDS - 20:06}"
PROJECT = "p"
BATCH = 5_000
LIMIT_S = 0.050
NOW = datetime(2026, 6, 1, tzinfo=UTC)

PAGES = {
    "builds": f"/builds?project={PROJECT}",
    "builds of a status": f"/builds?project={PROJECT}&status=FAILURE",
    "builds of a trigger": f"/builds?project={PROJECT}&trigger=TRIGGER",
    "builds of a branch": f"/builds?project={PROJECT}&branch=topic-7",
    "builds, a search": f"/builds?project={PROJECT}&q=commit-42",
    "builds, a search for nothing": f"/builds?project={PROJECT}&q=nosuchword",
    "builds, a filter": f"/builds?project={PROJECT}&filter={quote('substitutions._NOPE=1')}",
    "failed build": f"/builds/{PROJECT}/{FAILED}",
    "waterfall": f"/builds/{PROJECT}/{FAILED}?view=waterfall",
    "graph": f"/builds/{PROJECT}/{FAILED}?view=graph",
    "inputs": f"/builds/{PROJECT}/{FAILED}?view=inputs",
    "results": f"/builds/{PROJECT}/{FAILED}?view=results",
    "log": f"/builds/{PROJECT}/{FAILED}/log",
    "triggers": f"/triggers?project={PROJECT}",
    "trigger": f"/triggers/{PROJECT}/TRIGGER",
    "deliveries": "/deliveries",
    "trends": f"/trends?project={PROJECT}",
    "trends of a trigger": f"/trends?project={PROJECT}&trigger=TRIGGER",
    "trends of a branch": f"/trends?project={PROJECT}&branch=main",
    "trends of a rare branch": f"/trends?project={PROJECT}&branch=topic-7",
    "trends of trigger and branch": f"/trends?project={PROJECT}&trigger=TRIGGER&branch=main",
    "system": "/system",
}


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder, _server(folder) as (port, trigger):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        return [
            _page(connection, name, path.replace("TRIGGER", trigger), rounds)
            for name, path in PAGES.items()
        ]


def _page(connection: http.client.HTTPConnection, name: str, path: str, rounds: int) -> Result:
    size = 0

    def load() -> None:
        nonlocal size
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}: {body[:200]!r}")
        size = len(body)

    load()
    samples, walls = [], []
    for _ in range(rounds * 10):
        begun = time.process_time()
        walls.append(timed(load))
        samples.append(time.process_time() - begun)
    taken = statistics.median(samples)
    return Result(
        f"page of {name}, {BUILDS:,} builds / 50 ms",
        1.0,
        taken / LIMIT_S,
        ours_s=taken,
        rounds=len(samples),
        note=f"processor time; {statistics.median(walls) * 1000:.0f} ms by the clock,"
        f" {size / 1000:.0f} kB",
    )


@contextlib.contextmanager
def _server(folder: str) -> Iterator[tuple[int, str]]:
    address = f"sqlite:///{folder}/server.db"
    database = Database(address)
    migrate(database)
    store = open_store(address)
    triggers = [_trigger(store, number) for number in range(TRIGGERS)]
    _fill(database, triggers)
    database.close()
    _write_log(folder)
    listening = listen_on("127.0.0.1", 0)
    context = ServerContext(
        store=store,
        settings=ServerSettings(auth=False, default_project=PROJECT),
        data_folder=folder,
        uploads=SourceUploads(os.path.join(folder, "sources")),
        metrics=Metrics(),
        clock=lambda: NOW,
        new_id=new_build_id,
        wake=Signal(),
        worker_alive=lambda: True,
        secret=lambda version: version,
    )
    listener = Listener(create_app(context), listening)
    thread = threading.Thread(target=listener.run, name="pages")
    thread.start()
    listener.wait_until_ready()
    try:
        yield listening.getsockname()[1], triggers[3]
    finally:
        listener.stop()
        thread.join()
        store.close()


def _trigger(store: Any, number: int) -> str:
    trigger_id = f"t{number:02}"
    store.triggers.create(
        PROJECT,
        "global",
        {
            "id": trigger_id,
            "name": f"nightly-{number}",
            "createTime": encode_instant(NOW),
            "build": {"steps": [{"name": "busybox"}]},
            "cron": {"schedule": "30 2 * * *", "timeZone": "Europe/Vienna"},
        },
    )
    return trigger_id


def _fill(database: Database, triggers: list[str]) -> None:
    for begin in range(0, BUILDS, BATCH):
        rows = [new_row(_build(number, triggers)) for number in range(begin, begin + BATCH)]
        tags = [
            {
                "build_id": row["id"],
                "tag": tag,
                "project_id": PROJECT,
                "create_time": row["create_time"],
            }
            for row in rows
            for tag in tags_of(msgspec.json.decode(row["document"]))
        ]
        with database.write() as connection:
            connection.execute(insert(builds), rows)
            connection.execute(insert(build_tags), tags)
    os.sync()


def _build(number: int, triggers: list[str]) -> NewBuild:
    """Eight steps with times, some 4 kB: what the build of a service looks like."""
    created = NOW - timedelta(minutes=BUILDS - number)
    trigger = triggers[number % len(triggers)]
    failed = number % 10 == 0
    steps = [
        {
            "name": "gcr.io/cloud-builders/docker",
            "id": f"step-{one}",
            "args": ["build", "-t", f"app:{number}", "."],
            "status": "FAILURE" if failed and one == STEPS - 1 else "SUCCESS",
            "timing": {
                "startTime": encode_instant(created + timedelta(seconds=5 * one)),
                "endTime": encode_instant(created + timedelta(seconds=5 * one + 4)),
            },
            **({"exitCode": 2} if failed and one == STEPS - 1 else {}),
        }
        for one in range(STEPS)
    ]
    document: dict[str, Any] = {
        "id": f"b{number:06}",
        "projectId": PROJECT,
        "createTime": encode_instant(created),
        "startTime": encode_instant(created + timedelta(seconds=1)),
        "finishTime": encode_instant(created + timedelta(seconds=60 + number % 13)),
        "status": "FAILURE" if failed else "SUCCESS",
        "steps": steps,
        "tags": ["ci", f"commit-{number % 2000}"],
        "substitutions": {
            **{f"_VARIABLE_{one}": "value" * 10 for one in range(12)},
            "BRANCH_NAME": "main" if number % 3 else f"topic-{number % 2000}",
            "COMMIT_SHA": f"{number // 2:040x}",
            "TRIGGER_NAME": f"nightly-{number % len(triggers)}",
        },
        "buildTriggerId": trigger,
        "logUrl": "https://builds.example.com/" + "x" * 80,
    }
    if failed:
        document["failureInfo"] = {"type": "USER_BUILD_STEP", "detail": "build step 7 failed"}
    return NewBuild(
        document=document,
        request={"steps": steps},
        expires_at=created + timedelta(days=3650),
        group=f"trigger:{trigger}",
    )


def _write_log(folder: str) -> None:
    """The log and the events of the failed build."""
    place = log_folder(folder, FAILED)
    log, events = LogFileSink(place), EventLog(place)
    for step in range(STEPS):
        events.on_event(StepStarted(at=NOW, step=step))
        for begin in range(0, LINES // STEPS, 1000):
            text = "".join(f"compiling module {begin + one}: ok\n" for one in range(1000))
            log.write(LogChunk(text.encode(), step, NOW))
        last = step == STEPS - 1
        if last:
            log.write(LogChunk(b"cart_test.c:88: error: expected 42, got 37\n", step, NOW))
        events.on_event(
            StepFinished(
                at=NOW,
                step=step,
                status="FAILURE" if last else "SUCCESS",
                exit_code=2 if last else 0,
                last_lines=("cart_test.c:88: error: expected 42, got 37",) if last else (),
            )
        )
    log.close()
    events.close()
