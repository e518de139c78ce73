"""An archive of 5,000 files on its way into the workspace."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import uuid

from benchmarks.machine import make_tree, work_folder
from benchmarks.measure import Result, compare, run
from buildrunner import wiring
from buildrunner.containers.engine_types import LABEL_BUILD

FILES = 5_000


def measure(rounds: int) -> list[Result]:
    engine = wiring.container_engine()
    with work_folder() as folder:
        source = os.path.join(folder, "source")
        make_tree(source, FILES)
        engine.info()
        results = []
        for ending, flags in ((".tgz", "-czf"), (".tar", "-cf")):
            archive = os.path.join(folder, f"source{ending}")
            run(["tar", flags, archive, "-C", source, "."])

            def unpack(archive: str = archive) -> float:
                build = f"bench-{uuid.uuid4().hex[:12]}"
                workspace = wiring.archive_workspace(archive)
                try:
                    start = time.perf_counter()
                    workspace.prepare(engine, build, {LABEL_BUILD: build}, threading.Event())
                    return time.perf_counter() - start
                finally:
                    workspace.release()

            def tar(archive: str = archive) -> float:
                target = tempfile.mkdtemp(dir=folder)
                start = time.perf_counter()
                run(["tar", "-xf", archive, "-C", target])
                elapsed = time.perf_counter() - start
                shutil.rmtree(target)
                return elapsed

            name = f"{FILES:,} files of a {ending} archive / tar -x"
            results.append(compare(name, 1.3, unpack, tar, rounds=rounds))
    engine.close()
    return results
