"""A Git repository of 5,000 files on its way into the workspace."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
import uuid

from benchmarks.machine import make_tree, work_folder
from benchmarks.measure import Result, compare, run
from buildrunner import wiring
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.settings import GitSettings, Settings
from buildrunner.spec.model.source import GitSource, Source

FILES = 5_000


def measure(rounds: int) -> list[Result]:
    engine = wiring.container_engine()
    with work_folder() as folder:
        served = os.path.join(folder, "served")
        make_tree(served, FILES)
        make_repository(served)
        # Not a path: then git would not speak its protocol, but copy files.
        source = Source(git_source=GitSource(url=f"file://{served}"))
        engine.info()

        def fetch(cache: str) -> float:
            build = f"bench-{uuid.uuid4().hex[:12]}"
            cancel = threading.Event()
            settings = Settings(git=GitSettings(cache=cache))
            start = time.perf_counter()
            place = wiring.git_place(settings)
            checkout = wiring.fetch_git_source(source, settings, place, cancel=cancel)
            workspace = wiring.git_workspace(checkout)
            try:
                workspace.prepare(engine, build, {LABEL_BUILD: build}, cancel)
                return time.perf_counter() - start
            finally:
                workspace.release()

        def cold() -> float:
            cache = tempfile.mkdtemp(dir=folder)
            try:
                return fetch(cache)
            finally:
                shutil.rmtree(cache)

        def clone() -> float:
            target = tempfile.mkdtemp(dir=folder)
            start = time.perf_counter()
            run(["git", "clone", "--quiet", "--depth", "1", f"file://{served}", target])
            elapsed = time.perf_counter() - start
            shutil.rmtree(target)
            return elapsed

        kept = os.path.join(folder, "kept")
        results = [
            compare(
                f"{FILES:,} files of a repository / git clone --depth 1",
                1.15,
                cold,
                clone,
                rounds=rounds,
            ),
            compare(
                f"{FILES:,} files of a cached one / git clone --depth 1",
                0.5,
                lambda: fetch(kept),
                clone,
                rounds=rounds,
            ),
        ]
        number = 0

        def changed() -> float:
            nonlocal number
            number += 1
            with open(os.path.join(served, "changed"), "w", encoding="ascii") as file:
                file.write(str(number))
            commit(served)
            return fetch(kept)

        results.append(
            compare(
                f"{FILES:,} files, one changed since / git clone --depth 1",
                0.5,
                changed,
                clone,
                rounds=rounds,
            )
        )
    engine.close()
    return results


def make_repository(folder: str) -> None:
    subprocess.run(["git", "init", "--quiet", "-b", "main", folder], check=True)
    commit(folder)


def commit(folder: str) -> None:
    author = ("-c", "user.name=bench", "-c", "user.email=bench@example.test")
    for arguments in (("add", "-A"), (*author, "commit", "--quiet", "-m", "change")):
        subprocess.run(["git", "-C", folder, *arguments], check=True)
