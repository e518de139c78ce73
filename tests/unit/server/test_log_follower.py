"""Whoever waits for a log is woken when it grows, and only then."""

import asyncio
from datetime import UTC, datetime

from buildrunner.engine.events import StepStarted
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.events import EventLog
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.server.logs.live import LogFollower

NOW = datetime(2024, 5, 31, tzinfo=UTC)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_log_that_begins_grows_or_gets_an_event_wakes(tmp_path):
    async def scene():
        with LogFollower(0.01).watch(str(tmp_path / "b")) as watch:
            sink = LogFileSink(str(tmp_path / "b"))
            events = EventLog(str(tmp_path / "b"))
            for change in (
                lambda: sink.write(LogChunk(b"x\n", 0, NOW)),
                lambda: sink.write(LogChunk(b"y\n", 0, NOW)),
                lambda: events.on_event(StepStarted(at=NOW, step=0)),
            ):
                version = watch.version
                change()
                assert await watch.changed(version, 30)
                assert watch.version > version

    run(scene())


def test_nothing_wakes_nobody(tmp_path):
    async def scene():
        with LogFollower(0.01).watch(str(tmp_path)) as watch:
            assert not await watch.changed(watch.version, 0.1)

    run(scene())


def test_what_happened_before_the_wait_is_not_missed(tmp_path):
    async def scene():
        with LogFollower(0.01).watch(str(tmp_path)) as watch:
            version = watch.version
            watch.wake()
            assert await watch.changed(version, 0)

    run(scene())


def test_all_who_wait_are_woken_and_nobody_looks_when_nobody_watches(tmp_path):
    async def scene():
        follower = LogFollower(0.01)
        sink = LogFileSink(str(tmp_path))

        async def view():
            with follower.watch(str(tmp_path)) as watch:
                ready.release()
                return await watch.changed(watch.version, 30)

        ready = asyncio.Semaphore(0)
        viewers = [asyncio.create_task(view()) for _ in range(50)]
        for _ in viewers:
            await ready.acquire()
        sink.write(LogChunk(b"x\n", 0, NOW))
        assert await asyncio.gather(*viewers) == [True] * 50
        while follower._task is not None:
            await asyncio.sleep(0)
        assert follower._watches == {}
        with follower.watch(str(tmp_path)) as watch:
            sink.write(LogChunk(b"y\n", 0, NOW))
            assert await watch.changed(watch.version, 30)

    run(scene())


def test_closing_wakes_all_for_the_last_time(tmp_path):
    async def scene():
        follower = LogFollower(0.01)
        with follower.watch(str(tmp_path)) as watch:
            waiting = asyncio.create_task(watch.changed(watch.version, 60))
            await asyncio.sleep(0)
            follower.close()
            assert await waiting
            assert watch.closed
        with follower.watch(str(tmp_path)) as late:
            assert late.closed
            assert await late.changed(late.version, 60)

    run(scene())
