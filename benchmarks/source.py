"""A local folder of 5,000 files on its way into the workspace."""

from __future__ import annotations

import os
import threading
import time
import uuid

from benchmarks.machine import IMAGE, docker, make_tree, volume, work_folder
from benchmarks.measure import Result, compare, run
from buildrunner import wiring
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.sources.local_folder import LocalFolder
from buildrunner.workspace.volume import FolderWorkspace

FILES = 5_000


def measure(rounds: int) -> list[Result]:
    engine = wiring.container_engine()
    ways: set[str] = set()
    with work_folder() as folder:
        source = os.path.join(folder, "source")
        make_tree(source, FILES)
        engine.info()

        def prepare(*, copy: bool) -> float:
            build = f"bench-{uuid.uuid4().hex[:12]}"
            start = time.perf_counter()
            workspace = FolderWorkspace(LocalFolder(source), copy=copy)
            try:
                ready = workspace.prepare(engine, build, {LABEL_BUILD: build}, threading.Event())
                elapsed = time.perf_counter() - start
                ways.add(ready.way)
            finally:
                workspace.release()
            return elapsed

        def docker_cp() -> float:
            with volume() as name:
                container = docker("create", "-v", f"{name}:/workspace", IMAGE, "true")
                try:
                    start = time.perf_counter()
                    run(["docker", "cp", f"{source}/.", f"{container}:/workspace"])
                    return time.perf_counter() - start
                finally:
                    docker("rm", container)

        results = [
            compare(
                f"{FILES:,} files as a layer / docker cp",
                0.3,
                lambda: prepare(copy=False),
                docker_cp,
                rounds=rounds,
            )
        ]
        if "overlay" not in ways:
            results[0].note = "this engine or user can't: they were copied"
        results.append(
            compare(
                f"{FILES:,} files as an archive / docker cp",
                1.1,
                lambda: prepare(copy=True),
                docker_cp,
                rounds=rounds,
            )
        )
    engine.close()
    return results
