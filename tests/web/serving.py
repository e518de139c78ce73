"""`buildrunner serve`, as a person has it: a process, a token, builds that run in containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import drain, stop

LAST_WORDS = "Submit a folder"


class Serving:
    """The server.

    Attributes:
        url: where it listens.
        token: what its first start printed; good for everything.
        http: a client with that token.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        argv = [sys.executable, "-m", "buildrunner", "serve", "--port", "0"]
        argv += ["--data", str(folder / "data"), "--spare-sandboxes", "0", *arguments]
        environ = {
            **os.environ,
            "XDG_CONFIG_HOME": str(folder / "config"),
            "BUILDRUNNER_DATABASE": "",
        }
        self.process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ
        )
        said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said += line.decode()
            if said.rpartition("\n")[0].rpartition("\n")[2].startswith(LAST_WORDS):
                break
        # A pipe that nobody reads is full one day, and then the server stands still.
        self._drain = threading.Thread(target=drain, args=(self.process.stdout,))
        self._drain.start()
        found = re.search(r"serves (\S+) ", said)
        assert found, said
        self.url = found[1]
        token = re.search(r"brt_\S+", said)
        self.token = token[0] if token else ""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def create(self, project: str, build: dict[str, Any]) -> str:
        """Queue a build; its id."""
        answer = self.http.post(f"/v1/projects/{project}/builds", json=build)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["metadata"]["build"]["id"])

    def ended(self, project: str, build_id: str) -> str:
        """Wait for the end of a build, on its stream of events; its status."""
        path = f"/buildrunner/v1/projects/{project}/builds/{build_id}/events"
        with self.http.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
            for line in answer.iter_lines():
                if line.startswith("event: end"):
                    break
        return str(self.http.get(f"/v1/projects/{project}/builds/{build_id}").json()["status"])

    def close(self) -> None:
        self.http.close()
        stop(self.process)
        self._drain.join()


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Serving]:
    """A server, until the block ends."""
    server = Serving(folder, *arguments)
    try:
        yield server
    finally:
        server.close()
