"""How soon after a `git push` the image is in the registry, with a server's default sandbox."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import time
import urllib.error
import urllib.request
import uuid

from benchmarks.machine import IMAGE, NotPossible, docker, work_folder
from benchmarks.measure import BUILDRUNNER, Result, run
from benchmarks.push import registry
from benchmarks.server import Server
from buildrunner.sandboxes.nested.folders import SandboxFolders

_TARGET_MS = 1000
_DEADLINE_S = 60.0
_TRIGGER = """
name: pushed
repositoryEventConfig: {repository: app, push: {branch: ^main$}}
filename: cloudbuild.yaml
"""
_CONFIG = """
steps:
- name: gcr.io/cloud-builders/docker
  args: [build, -t, '%(name)s:$SHORT_SHA', .]
images: ['%(name)s:$SHORT_SHA']
"""


def measure(rounds: int) -> list[Result]:
    run([BUILDRUNNER, "builders", "install", "docker", "engine"])
    with work_folder() as folder, registry(folder) as address:
        repository = _Repository(folder, address)
        data = os.path.join(folder, "data")
        server = Server(data, 2, repository.environ, "nested", "--allow-private-sources")
        try:
            repository.connect(server.url)
            sandboxes = SandboxFolders(data)
            ours, theirs = [], []
            for number in range(rounds + 1):  # the first one sends the base
                _wait_for_spare(sandboxes)
                ours.append(repository.pushed())
                if number:
                    theirs.append(repository.by_hand())
                else:
                    repository.by_hand()
        finally:
            server.stop()
            repository.forget()
    times = [one * 1000 for one in ours[1:]]
    return [
        Result(
            "git push to image in the registry, nested",
            _TARGET_MS,
            statistics.median(times),
            unit="ms",
            ours_s=statistics.median(ours[1:]),
            theirs_s=statistics.median(theirs),
            rounds=rounds,
            note=f"other side: docker build and push by hand; first push {ours[0]:.1f} s",
            samples=times,
        )
    ]


class _Repository:
    """A bare repository, a clone of it, and what is built of it."""

    def __init__(self, folder: str, address: str) -> None:
        self._bare = os.path.join(folder, "app.git")
        self._clone = os.path.join(folder, "app")
        self._folder = folder
        self._address = address
        self._made: list[str] = []
        homes = {
            f"XDG_{name}_HOME": os.path.join(folder, name.lower())
            for name in ("DATA", "CONFIG", "CACHE")
        }
        self.environ = {**os.environ, **homes}

    def connect(self, server: str) -> None:
        environ = {**self.environ, "BUILDRUNNER_SERVER": server}
        self._git("init", "-q", "--bare", "-b", "main", self._bare)
        run([BUILDRUNNER, "triggers", "install-hook", self._bare], environment=environ)
        trigger = self._write(self._folder, "trigger.yaml", _TRIGGER)
        argv = [BUILDRUNNER, "triggers", "import", "--source", trigger, "--project", "bench"]
        run(argv, environment=environ)
        self._git("init", "-q", "-b", "main", self._clone)
        self._git("-C", self._clone, "remote", "add", "origin", self._bare)
        self._write(self._clone, "Dockerfile", f"FROM {IMAGE}\nCOPY new /new\n")
        self._write(self._clone, "cloudbuild.yaml", _CONFIG % {"name": f"{self._address}/app"})

    def pushed(self) -> float:
        """From the end of a push to the image."""
        self._change()
        self._git("-C", self._clone, "add", "--all")
        self._git("-C", self._clone, "commit", "-qm", "change")
        self._git("-C", self._clone, "push", "-q", "origin", "main")
        start = time.perf_counter()
        commit = self._git("-C", self._clone, "rev-parse", "--short=7", "HEAD").strip()
        while not self._has(commit):
            if time.perf_counter() - start > _DEADLINE_S:
                raise NotPossible("the image of a push does not come")
            time.sleep(0.005)
        return time.perf_counter() - start

    def by_hand(self) -> float:
        """The same work on the engine at hand, with nothing around it."""
        self._change()
        name = f"{self._address}/by-hand:{len(self._made)}"
        self._made.append(name)
        start = time.perf_counter()
        docker("build", "--quiet", "--tag", name, self._clone)
        docker("push", "--quiet", name)
        return time.perf_counter() - start

    def forget(self) -> None:
        if self._made:
            docker("rmi", "--force", *self._made)

    def _change(self) -> None:
        self._write(self._clone, "new", uuid.uuid4().hex)

    def _has(self, tag: str) -> bool:
        with contextlib.suppress(urllib.error.HTTPError):
            url = f"http://{self._address}/v2/app/manifests/{tag}"
            kind = "application/vnd.docker.distribution.manifest.v2+json"
            urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": kind})).close()
            return True
        return False

    def _git(self, *arguments: str) -> str:
        argv = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.com", *arguments]
        done = subprocess.run(argv, env=self.environ, check=True, capture_output=True, text=True)
        return done.stdout

    @staticmethod
    def _write(folder: str, name: str, text: str) -> str:
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path


def _wait_for_spare(sandboxes: SandboxFolders) -> None:
    """Pushes come one by one: a server has had its time after the one before."""
    end = time.monotonic() + _DEADLINE_S
    while not any(
        os.path.exists(os.path.join(sandboxes.notes(place), "spare.json"))
        for place in sandboxes.spares()
    ):
        if time.monotonic() > end:
            raise NotPossible("the server has no sandbox ready")
        time.sleep(0.05)
