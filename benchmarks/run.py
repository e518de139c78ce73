"""The command: runs benchmarks, prints the table, writes the figures as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable

from benchmarks.machine import NotPossible, docker, ensure_image
from benchmarks.measure import Result

# Name on the command line -> module and function; in this order.
BENCHMARKS = {
    "startup": ("benchmarks.startup", "measure"),
    "validation": ("benchmarks.validation", "measure"),
    "steps": ("benchmarks.steps", "measure"),
    "logs": ("benchmarks.logs", "measure"),
    "source": ("benchmarks.source", "measure"),
    "git": ("benchmarks.git", "measure"),
    "unpack": ("benchmarks.unpack", "measure"),
    "push": ("benchmarks.push", "measure"),
    "store": ("benchmarks.store", "measure"),
    "pages": ("benchmarks.pages", "measure"),
    "nested": ("benchmarks.nested", "measure"),
    "pushed": ("benchmarks.pushed", "measure"),
    "server": ("benchmarks.server", "measure"),
    "deliveries": ("benchmarks.deliveries", "measure"),
    "viewers": ("benchmarks.viewers", "measure"),
    "chatty": ("benchmarks.chatty", "measure"),
    "big-log": ("benchmarks.big_log", "measure"),
    "workers": ("benchmarks.workers", "measure"),
    "claims": ("benchmarks.claims", "measure"),
    "many-steps": ("benchmarks.steps", "measure_many"),
    "kubernetes": ("benchmarks.kubernetes", "measure"),
}
ON_A_CLUSTER = {"kubernetes"}
WITHOUT_ENGINE = {"startup", "validation", "store", "pages", "big-log", "claims"}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 whatever the figures are; 3 when something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed figures as ratios, measured side by side."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="the same as --rounds 2")
    parser.add_argument("--json", default="build/bench.json", help="where the figures go")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    names = options.names or [name for name in BENCHMARKS if name not in ON_A_CLUSTER]
    results: list[Result] = []
    failed = False
    print_row("", "value", "target", "ours", "theirs", "")
    for name in names:
        try:
            if name not in WITHOUT_ENGINE:
                ensure_image()
            found = benchmark(name)(2 if options.quick else options.rounds)
        except (NotPossible, RuntimeError) as error:
            failed = True
            print(f"{name}: NOT MEASURED: {error}", flush=True)
            continue
        results += found
        for result in found:
            show(result)
    write(options.json, results)
    return 3 if failed else 0


def benchmark(name: str) -> Callable[[int], list[Result]]:
    module, function = BENCHMARKS[name]
    found: Callable[[int], list[Result]] = getattr(importlib.import_module(module), function)
    return found


def show(result: Result) -> None:
    print_row(
        result.name,
        number(result.value, result.unit),
        f"<= {number(result.target, result.unit)}",
        seconds(result.ours_s),
        seconds(result.theirs_s),
        "  ".join(filter(None, ("met" if result.met else "MISSED", result.note))),
    )


def print_row(*cells: str) -> None:
    name, value, target, ours, theirs, verdict = cells
    print(f"{name:<52} {value:>9} {target:>11} {ours:>9} {theirs:>9}  {verdict}", flush=True)


def number(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.2f}x"
    return f"{value:.1f}{unit}" if unit.startswith("%") else f"{value:.0f} {unit}"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def write(path: str, results: list[Result]) -> None:
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(
            {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "python": platform.python_version(),
                "kernel": platform.release(),
                "cpus": os.cpu_count(),
                "engine": engine_version(),
                "load": os.getloadavg(),
                "results": [dataclasses.asdict(result) | {"met": result.met} for result in results],
            },
            file,
            indent=2,
        )
    print(f"\n{path}", file=sys.stderr)


def engine_version() -> str:
    try:
        return docker("version", "--format", "{{.Server.Version}}")
    except (NotPossible, OSError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
