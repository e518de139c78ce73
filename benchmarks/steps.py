"""Steps: what a container more costs, alone, in a row and side by side."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time

from benchmarks.machine import IMAGE, volume, work_folder
from benchmarks.measure import BUILDRUNNER, Result, compare, run, timed


def config(folder: str, name: str, steps: list[dict[str, object]]) -> str:
    """A config file (JSON is YAML)."""
    path = os.path.join(folder, f"{name}.yaml")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"steps": steps}, file)
    return path


def no_op(count: int) -> list[dict[str, object]]:
    return [{"name": IMAGE, "args": ["true"]} for _ in range(count)]


def submit(path: str) -> float:
    """Peak memory of the whole command in MiB."""
    return run([BUILDRUNNER, "submit", path, "--no-source"])


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder, volume() as name:
        container = ["docker", "run", "--rm", "-v", f"{name}:/workspace", IMAGE]

        def containers(count: int) -> None:
            for _ in range(count):
                run([*container, "true"])

        def at_once(count: int) -> None:
            started = [
                subprocess.Popen([*container, "sleep", "1"], stdin=subprocess.DEVNULL)
                for _ in range(count)
            ]
            if any(process.wait() for process in started):
                raise RuntimeError("docker run failed")

        one = config(folder, "one", no_op(1))
        twenty = config(folder, "twenty", no_op(20))
        half = [{"name": IMAGE, "args": ["sleep", "0.5"]} for _ in range(20)]
        twenty_that_last = config(folder, "half", half)
        ten = config(
            folder,
            "ten",
            [{"name": IMAGE, "args": ["sleep", "1"], "waitFor": ["-"]} for _ in range(10)],
        )
        return [
            compare(
                "1 no-op step / docker run --rm",
                1.6,
                lambda: void(submit(one)),
                lambda: containers(1),
                rounds=3 * rounds,
            ),
            compare(
                "20 no-op steps / 20 docker run --rm",
                0.50,
                lambda: void(submit(twenty)),
                lambda: containers(20),
                rounds=rounds,
            ),
            compare(
                "20 steps of 0.5 s / their work alone",
                1.05,
                lambda: void(submit(twenty_that_last)),
                lambda: time.sleep(20 * 0.5),
                rounds=rounds,
            ),
            compare(
                "10 parallel sleep 1 / 10 docker run --rm &",
                1.0,
                lambda: void(submit(ten)),
                lambda: at_once(10),
                rounds=rounds,
            ),
        ]


def measure_many(rounds: int) -> list[Result]:
    """Time and memory per step, from 10 to 300 steps."""
    with work_folder() as folder:
        few = config(folder, "few", no_op(10))
        many = config(folder, "many", no_op(300))
        base = config(folder, "base", no_op(1))
        memory: dict[str, list[float]] = {few: [], many: []}
        submit(few)

        def seconds(path: str) -> float:
            def build() -> None:
                peak = submit(path)
                if path in memory:
                    memory[path].append(peak)

            return timed(build)

        ratios, slopes = [], []
        for _ in range(max(1, rounds // 2)):
            start = statistics.median(seconds(base) for _ in range(3))
            per_step_few = (statistics.median(seconds(few) for _ in range(3)) - start) / 9
            per_step_many = (seconds(many) - start) / 299
            ratios.append(per_step_many / per_step_few)
            slopes.append((per_step_many, per_step_few))
        growth = statistics.median(memory[many]) - statistics.median(memory[few])
        return [
            Result(
                "time per step, 300 steps / 10 steps",
                1.15,
                statistics.median(ratios),
                ours_s=statistics.median(slope[0] for slope in slopes),
                theirs_s=statistics.median(slope[1] for slope in slopes),
                rounds=len(ratios),
                note="the first step's time taken off both",
                samples=ratios,
            ),
            Result(
                "memory, 300 steps - 10 steps",
                10.0,
                growth,
                unit="MiB",
                rounds=len(ratios),
                note=f"peak with 300 steps {statistics.median(memory[many]):.0f} MiB",
            ),
        ]


def void(_: object) -> None:
    """Drop a figure that is not a time."""
