"""How soon a server's build starts, and whether many chatty ones lose a line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from itertools import zip_longest

from benchmarks.machine import IMAGE, NotPossible
from benchmarks.measure import BUILDRUNNER, Result, compare

_BUILDS = 20
_LINES = 20_000
_DEADLINE_S = 300.0
_ENDED = {"SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED"}


class Server:
    """`buildrunner serve` in a folder of its own."""

    def __init__(
        self,
        folder: str,
        max_builds: int,
        environ: dict[str, str] | None = None,
        sandbox: str = "host",
        *flags: str,
    ) -> None:
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        output = os.path.join(folder, "serve.log")
        argv = [sys.executable, "-m", "buildrunner", "serve", "--port", "0", "--auth", "none"]
        argv += ["--data", folder, "--sandbox", sandbox, *flags]
        argv += ["--max-builds", str(max_builds)] if max_builds else []
        with open(output, "wb") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
            )
        self.url = self._wait_for_url(output)

    def _wait_for_url(self, output: str) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with open(output) as file:
                said = file.read()
            found = re.search(r"http://127\.0\.0\.1:\d+", said)
            if found:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{found[0]}/readyz").close()
                    token = re.search(r"brt_\S+", said)  # with the flag --auth=tokens
                    self._token = token[0] if token else ""
                    return found[0]
            time.sleep(0.05)
        raise NotPossible("the server does not start")

    def call(self, path: str, body: object = None, method: str | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def create(self, build: object) -> str:
        return self.call("/v1/projects/bench/builds", build)["metadata"]["build"]["id"]

    def wait(self, build_id: str) -> str:
        end = time.monotonic() + _DEADLINE_S
        while time.monotonic() < end:
            status = self.call(f"/v1/projects/bench/builds/{build_id}")["status"]
            if status in _ENDED:
                return status
            time.sleep(0.05)
        raise NotPossible(f"build {build_id} does not end")

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def serving(max_builds: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="buildrunner-bench-") as folder:
        server = Server(folder, max_builds)
        try:
            yield server
        finally:
            server.stop()


class StepStarts:
    """The moments at which the engine starts steps."""

    def __init__(self) -> None:
        shown = '{{.TimeNano}} {{index .Actor.Attributes "buildrunner.build"}}'
        argv = ["docker", "events", "--filter", "event=start", "--format", shown]
        self._process = subprocess.Popen(
            [*argv, "--filter", "label=buildrunner.step"], stdout=subprocess.PIPE, text=True
        )

    def of(self, build_id: str) -> float:
        """When the next step of that build started; others build on this engine, too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            moment, _, build = line.strip().partition(" ")
            if build == build_id:
                return int(moment) / 1e9
        raise NotPossible("the engine tells of no more starts")

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def measure(rounds: int) -> list[Result]:
    return [start_latency(rounds), chatty_builds()]


def start_latency(rounds: int) -> Result:
    build = {"steps": [{"name": IMAGE, "args": ["true"]}]}
    starts = StepStarts()
    with serving(2) as server, tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, "cloudbuild.json")
        with open(config, "w") as file:
            json.dump(build, file)

        def by_server() -> float:
            begun = time.time()
            build_id = server.create(build)
            taken = starts.of(build_id) - begun
            server.wait(build_id)
            time.sleep(1.0)  # what comes after a build is not the next one's
            return taken

        def by_submit() -> float:
            argv = [BUILDRUNNER, "submit", "--no-source", "--config", config]
            begun = time.time()
            with subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as process:
                assert process.stdout is not None
                found = re.search(r'starting build "([^"]+)"', process.stdout.readline())
                if found is None:
                    raise NotPossible("submit says nothing of its build")
                taken = starts.of(found[1]) - begun
                process.stdout.read()
            time.sleep(1.0)
            return taken

        try:
            return compare(
                "API create to first step / local submit",
                1.3,
                by_server,
                by_submit,
                rounds=rounds,
                note="host sandbox",
            )
        finally:
            starts.close()


def chatty_builds() -> Result:
    script = f"n=0; while [ $n -lt {_LINES} ]; do n=$((n+1)); echo line $n of a chatty build; done"
    with serving(_BUILDS) as server:
        begun = time.monotonic()
        ids = [
            server.create({"steps": [{"name": IMAGE, "script": script}]}) for _ in range(_BUILDS)
        ]
        bad = sum(server.wait(build_id) != "SUCCESS" for build_id in ids)
        took = time.monotonic() - begun
        wrong = bad * _LINES + sum(_wrong_lines(server.folder, build_id) for build_id in ids)
    rate = _BUILDS * _LINES / took
    return Result(
        name=f"{_BUILDS} chatty builds: lines lost or doubled",
        target=0.0,
        value=float(wrong),
        unit="lines",
        ours_s=took,
        note=f"{rate:,.0f} lines/s in all, from create to the last end",
    )


def _wrong_lines(folder: str, build_id: str) -> int:
    with open(os.path.join(folder, "logs", build_id, "log.txt")) as file:
        text = file.read()
    found = [int(n) for n in re.findall(r"^line (\d+) of a chatty build$", text, re.MULTILINE)]
    return sum(one != wanted for one, wanted in zip_longest(found, range(1, _LINES + 1)))
