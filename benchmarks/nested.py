"""What an engine of a build's own costs: one no-op build in a nested sandbox and on the host."""

from __future__ import annotations

import os
import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from benchmarks.machine import IMAGE, NotPossible, work_folder
from benchmarks.measure import BUILDRUNNER, Result, run
from buildrunner import wiring
from buildrunner.errors import EngineError
from buildrunner.settings import Settings

OVERHEAD_MS = 1500
_CONFIG = f"steps: [{{name: '{IMAGE}', entrypoint: /bin/true}}]\n"


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder:
        source = os.path.join(folder, "source")
        os.mkdir(source)
        with open(os.path.join(source, "cloudbuild.yaml"), "w", encoding="utf-8") as file:
            file.write(_config())

        def submit(kind: str) -> Callable[[], float]:
            def once() -> float:
                start = time.perf_counter()
                run([BUILDRUNNER, "submit", source, "--sandbox", kind, "--quiet"])
                return time.perf_counter() - start

            return once

        pairs = [in_turn(submit("nested"), submit("host"), number) for number in range(rounds + 1)]
        return [
            overhead("one no-op build: nested less host", OVERHEAD_MS, pairs[1:]),
            answers(os.path.join(folder, "sandboxes"), rounds),
        ]


def _config() -> str:
    """A step that does nothing, in whatever the image has."""
    return _CONFIG if _runs("/bin/true") else _CONFIG.replace("/bin/true", "true")


def _runs(program: str) -> bool:
    with suppress(RuntimeError):
        run(["docker", "run", "--rm", "--entrypoint", program, IMAGE])
        return True
    return False


def in_turn(
    nested: Callable[[], float], host: Callable[[], float], number: int
) -> tuple[float, float]:
    if number % 2:
        second = host()
        return nested(), second
    return nested(), host()


def overhead(name: str, target_ms: float, pairs: list[tuple[float, float]]) -> Result:
    differences = [(a - b) * 1000 for a, b in pairs]
    return Result(
        name,
        target_ms,
        statistics.median(differences),
        unit="ms",
        ours_s=statistics.median(a for a, _ in pairs),
        theirs_s=statistics.median(b for _, b in pairs),
        rounds=len(pairs),
        samples=differences,
    )


def answers(folder: str, rounds: int) -> Result:
    """From nothing to an engine that has all of the host's images, and answers."""
    times: list[float] = []
    removals: list[float] = []
    sandbox = wiring.sandbox("nested", data_folder=folder, labels={}, settings=Settings())
    try:
        for _ in range(rounds + 1):
            build_id = f"bench-{uuid.uuid4().hex[:12]}"
            start = time.perf_counter()
            place = sandbox.open(build_id)
            try:
                if place.engine.find_image(IMAGE) is None:
                    raise NotPossible(f"the nested engine has no {IMAGE}")
                times.append((time.perf_counter() - start) * 1000)
            finally:
                place.close()
                start = time.perf_counter()
                sandbox.remove(build_id)
                removals.append((time.perf_counter() - start) * 1000)
    except EngineError as error:
        raise NotPossible(str(error)) from error
    finally:
        sandbox.close()
    return Result(
        "a nested engine, until it answers",
        OVERHEAD_MS,
        statistics.median(times[1:]),
        unit="ms",
        rounds=rounds,
        note=f"removed in {statistics.median(removals[1:]):.0f} ms",
        samples=times[1:],
    )
