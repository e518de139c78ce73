"""An image whose last layer changed, on its way to a registry that has the others."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator

from benchmarks.machine import IMAGE, NotPossible, docker, work_folder
from benchmarks.measure import Result, compare, run
from buildrunner import wiring
from buildrunner.engine.cancellation import Clock
from buildrunner.engine.log.pipeline import LogPipeline
from buildrunner.engine.publishing import ImagePush
from buildrunner.logs.files.log_file import LogFileSink

_BASE_LAYERS = 4
_BASE_MIB = 16
_LAST_MIB = 8
_CONFIG = (
    "version: 0.1\n"
    "storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
    "http: {{addr: '127.0.0.1:0'}}\n"
)


def measure(rounds: int) -> list[Result]:
    with work_folder() as folder, registry(folder) as address, _images(folder) as images:
        engine = wiring.container_engine()
        log_folder = os.path.join(folder, "log")
        os.makedirs(log_folder)

        def ours() -> float:
            name = images.changed(f"{address}/ours")
            sink = LogFileSink(log_folder)
            log = LogPipeline(sink, Clock(), lambda _: None)
            push = ImagePush(
                engine, log, halt=threading.Event(), clock=Clock(), report=lambda _: None
            )
            start = time.perf_counter()
            push.push_all([name])
            elapsed = time.perf_counter() - start
            log.close()
            sink.close()
            if push.pushed[0].layers_pushed != 1:
                raise RuntimeError(f"{push.pushed[0].layers_pushed} layers were pushed, not one")
            return elapsed

        def theirs() -> float:
            name = images.changed(f"{address}/theirs")
            start = time.perf_counter()
            run(["docker", "push", name])
            return time.perf_counter() - start

        for side in ("ours", "theirs"):  # the layers that both have from now on
            run(["docker", "push", images.changed(f"{address}/{side}")])
        try:
            result = compare(
                f"push of {_LAST_MIB} MiB on top of {_BASE_LAYERS * _BASE_MIB} / docker push",
                1.1,
                ours,
                theirs,
                rounds=max(rounds, 15),  # a short thing, whose times scatter
            )
        finally:
            engine.close()
        return [result]


class _Images:
    """Images with the same layers but for the last."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, "context")
        self.names = [f"buildrunner-bench/push:{uuid.uuid4().hex[:12]}"]
        os.makedirs(self._folder)
        lines = [f"FROM {IMAGE}", "LABEL buildrunner-bench=push"]
        for number in range(_BASE_LAYERS):
            self._random(f"base-{number}", _BASE_MIB)
            lines.append(f"COPY base-{number} /")
        self._build(self.names[0], lines)

    def changed(self, repository: str) -> str:
        """Name of an image whose last layer no other has."""
        name = f"{repository}:latest"
        self._random("last", _LAST_MIB)
        self._build(name, [f"FROM {self.names[0]}", "COPY last /"])
        if name not in self.names:
            self.names.append(name)
        return name

    def _random(self, name: str, size_mib: int) -> None:
        with open(os.path.join(self._folder, name), "wb") as file:
            file.write(os.urandom(size_mib * 1024 * 1024))

    def _build(self, name: str, lines: list[str]) -> None:
        with open(os.path.join(self._folder, "Dockerfile"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines))
        docker("build", "--quiet", "--tag", name, self._folder)


@contextlib.contextmanager
def _images(folder: str) -> Iterator[_Images]:
    images = _Images(folder)
    try:
        yield images
    finally:
        docker("rmi", "--force", *images.names)
        docker("image", "prune", "--force", "--filter", "label=buildrunner-bench=push")


@contextlib.contextmanager
def registry(folder: str) -> Iterator[str]:
    """A registry of its own; its address. Its log is drained."""
    program = shutil.which("docker-registry")
    if program is None:
        raise NotPossible("a push needs the program docker-registry: apt-get install it")
    config = os.path.join(folder, "registry.yml")
    with open(config, "w", encoding="utf-8") as file:
        file.write(_CONFIG.format(folder=folder))
    process = subprocess.Popen(
        [program, "serve", config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", ""), "OTEL_TRACES_EXPORTER": "none"},
        text=True,
    )
    assert process.stderr is not None
    log = process.stderr
    try:
        line = next((line for line in log if "listening on" in line), "")
        if not line:
            raise NotPossible("the registry does not start")
        threading.Thread(target=log.read, daemon=True).start()
        yield "127.0.0.1:" + line.split("127.0.0.1:")[1].split('"')[0].split()[0]
    finally:
        process.terminate()
        process.wait()
