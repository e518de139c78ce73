"""Requests that wait for a change: it costs few reads, and none of them misses it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from buildrunner.server.http.changes import Changes, OnlyThis
from buildrunner.server.http.errors import ApiError
from buildrunner.server.loop import Signal
from buildrunner.store.model.builds import Lease

LONGEST_S = 20.0


async def stays() -> bool:
    return False


class Queue:
    """Builds for which requests of one line wait."""

    def __init__(self) -> None:
        self.changed = Signal()
        self.builds: list[str] = []
        self.looked: list[str] = []
        self.full: set[str] = set()
        self.running: set[Lease] = set()
        self.reads = 0
        self.changes = Changes(self.changed, self._undisturbed, hears_all=lambda: True)

    def _undisturbed(self) -> set[Lease]:
        self.reads += 1
        return set(self.running)

    def claim(self, worker: str, seconds: float = LONGEST_S) -> Awaitable[str | None]:
        async def look() -> str | None:
            self.looked.append(worker)
            if self.builds and worker in self.full:
                raise OnlyThis
            return self.builds.pop() if self.builds else None

        waits = self.changes.wait_for(look, seconds, line="l", caller="c", is_gone=stays)
        return asyncio.ensure_future(waits)

    async def until_waiting(self, number: int) -> None:
        while self.changes.waiting < number or len(self.looked) < number:
            await asyncio.sleep(0)
        self.looked.clear()

    def change(self, *builds: str) -> None:
        self.builds += builds
        self.changed()


def run(test: Callable[[Queue], Awaitable[None]]) -> None:
    async def within_time() -> None:
        await asyncio.wait_for(test(Queue()), LONGEST_S)

    asyncio.run(within_time())


def test_one_request_of_a_line_looks_after_a_change() -> None:
    async def test(queue: Queue) -> None:
        waits = [queue.claim(f"w{number}") for number in range(50)]
        await queue.until_waiting(50)
        queue.change()
        while not queue.looked:
            await asyncio.sleep(0)
        queue.change("b")
        assert await waits[0] == "b"
        while len(queue.looked) < 3:
            await asyncio.sleep(0)
        assert queue.looked == ["w0", "w0", "w1"]

    run(test)


def test_as_many_requests_look_as_there_are_builds_and_one_more() -> None:
    async def test(queue: Queue) -> None:
        waits = [queue.claim(f"w{number}") for number in range(50)]
        await queue.until_waiting(50)
        queue.change("c", "b", "a")
        assert [await one for one in waits[:3]] == ["a", "b", "c"]
        while len(queue.looked) < 4:
            await asyncio.sleep(0)
        assert queue.looked == ["w0", "w1", "w2", "w3"]

    run(test)


def test_a_request_that_finds_nothing_for_a_reason_of_its_own_holds_up_no_other() -> None:
    async def test(queue: Queue) -> None:
        queue.full = {"w0", "w1"}
        waits = [queue.claim(f"w{number}") for number in range(4)]
        await queue.until_waiting(4)
        queue.change("b")
        assert await waits[2] == "b"

    run(test)


def test_the_next_request_looks_when_the_first_one_leaves() -> None:
    async def test(queue: Queue) -> None:
        first, second = queue.claim("w0", 0.05), queue.claim("w1")
        await queue.until_waiting(2)
        queue.builds.append("b")  # a change that nobody heard of
        queue.full = {"w0"}
        assert await first is None
        assert await second == "b"

    run(test)


def test_looks_of_one_caller_hold_up_no_other() -> None:
    """One token had 990 requests in 990 lines: a claim of another project took 39 seconds."""

    async def test(queue: Queue) -> None:
        begun: list[int] = []

        def slow(line: int) -> Awaitable[str | None]:
            async def look() -> str | None:
                begun.append(line)
                await asyncio.Event().wait()
                return None

            waits = queue.changes.wait_for(look, LONGEST_S, line=line, caller="evil", is_gone=stays)
            return asyncio.ensure_future(waits)

        many = [slow(line) for line in range(50)]
        while len(begun) < 2:
            await asyncio.sleep(0)
        queue.builds.append("b")
        assert await queue.claim("w0") == "b"
        assert begun == [0, 1]
        assert len(many) == 50

    run(test)


def test_a_caller_waits_in_a_bounded_number_of_lines() -> None:
    async def test(queue: Queue) -> None:
        async def nothing() -> None:
            return None

        def wait(line: int, caller: str = "c") -> Awaitable[None]:
            waits = queue.changes.wait_for(
                nothing, LONGEST_S, line=line, caller=caller, is_gone=stays
            )
            return asyncio.ensure_future(waits)

        waits = [wait(line) for line in range(100)]
        while queue.changes.waiting < 100:
            await asyncio.sleep(0)
        with pytest.raises(ApiError, match="100 different things"):
            await wait(100)
        waits += [wait(99), wait(100, "another")]
        while queue.changes.waiting < 102:
            await asyncio.sleep(0)
        queue.changes.close()
        assert set(await asyncio.gather(*waits)) == {None}
        assert queue.changes.waiting == 0

    run(test)


def test_a_change_costs_one_read_for_all_workers_that_wait_for_a_cancel() -> None:
    async def test(queue: Queue) -> None:
        leases = [Lease(f"b{number}", number) for number in range(50)]
        queue.running = set(leases)
        cancelled: set[Lease] = set()

        def wait(lease: Lease) -> Awaitable[bool | None]:
            async def look() -> bool | None:
                queue.looked.append(lease.build_id)
                return lease in cancelled or None

            waits = queue.changes.wait_while_undisturbed(lease, look, LONGEST_S, caller="c")
            return asyncio.ensure_future(waits)

        waits = [wait(lease) for lease in leases]
        await queue.until_waiting(50)
        while not queue.reads:
            await asyncio.sleep(0)
        before = queue.reads
        cancelled.add(leases[7])
        queue.running.remove(leases[7])
        queue.changed()
        assert await waits[7] is True
        assert queue.looked == ["b7"]
        assert queue.reads - before <= 2
        queue.changes.close()
        assert not any([await one for one in waits[:7]])

    run(test)
