"""An archive of 5,000 files on its way into the workspace."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator

from benchmarks.machine import docker, make_tree, volume, work_folder
from benchmarks.measure import Result, compare, run
from buildrunner import wiring
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.workspace.shared_files import lay_apart

FILES = 5_000


def measure(rounds: int) -> list[Result]:
    engine = wiring.container_engine()
    with work_folder() as folder:
        source = os.path.join(folder, "source")
        make_tree(source, FILES)
        archives = pack(source)
        engine.info()
        results = []
        for ending, archive in archives.items():
            ways: set[str] = set()
            # GNU tar knows no zip: the same files, as much compressed
            yardstick = archives[".tgz" if ending == ".zip" else ending]

            def ours(archive: str = archive, ways: set[str] = ways) -> float:
                build = f"bench-{uuid.uuid4().hex[:12]}"
                workspace = wiring.archive_workspace(archive)
                cancel = threading.Event()
                try:
                    start = time.perf_counter()
                    ready = workspace.prepare(engine, build, {LABEL_BUILD: build}, cancel)
                    elapsed = time.perf_counter() - start
                    ways.add(ready.way)
                    return elapsed
                finally:
                    workspace.release()

            def theirs(archive: str = yardstick) -> float:
                with volume() as name, target_folder(name, folder) as target:
                    start = time.perf_counter()
                    run(["tar", "-xf", archive, "-C", target])
                    return time.perf_counter() - start

            name = f"{FILES:,} files of a {ending} archive / tar -x of a {yardstick[-4:]}"
            result = compare(name, 1.3, ours, theirs, rounds=rounds)
            if "direct" not in ways:
                result.note = "this engine or user can't write there: the engine unpacked"
            results.append(result)
    engine.close()
    return results


def pack(source: str) -> dict[str, str]:
    """Archives of a folder, by their endings."""
    archives = {ending: f"{source}{ending}" for ending in (".tgz", ".tar", ".zip")}
    run(["tar", "-czf", archives[".tgz"], "-C", source, "."])
    run(["tar", "-cf", archives[".tar"], "-C", source, "."])
    shutil.make_archive(source, "zip", source)
    return archives


@contextlib.contextmanager
def target_folder(volume_name: str, folder: str) -> Iterator[str]:
    """Where `tar` unpacks: in a volume, too, if that can be written to.

    How long it takes to make a file depends on the place: ext4 looks for an inode near the folder's
    own, and passes one by one over those that were freed in the last minutes.
    """
    place = docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume_name)
    lay_apart(place)  # as ours: nothing but the unpacking is compared
    if os.access(place, os.W_OK):
        yield place
    else:
        with tempfile.TemporaryDirectory(dir=folder) as target:
            yield target
