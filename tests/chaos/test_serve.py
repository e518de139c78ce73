"""As a user has it: `buildrunner serve` is killed in mid-build and started again."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.spec.model.build import FINAL_STATUSES
from tests.chaos.kill_bench import DEADLINE_S, let_go, until

pytestmark = pytest.mark.docker

QUIET = (
    "echo ran >> /workspace/ran; echo waiting; until [ -e /workspace/go ]; do sleep 0.05; done; "
    "echo runs: $$(grep -c ran /workspace/ran)"
)


class Served:
    """`buildrunner serve` in a folder."""

    def __init__(self, folder, sandbox):
        self.folder = folder
        self._sandbox = sandbox
        self._environ = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
        self.process = None
        self.url = ""

    def start(self):
        argv = [sys.executable, "-m", "buildrunner", "serve", "--port", "0", "--auth", "none"]
        argv += ["--data", str(self.folder), "--sandbox", self._sandbox]
        output = self.folder / "serve.log"
        with open(output, "wb") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ
            )
        found = until(lambda: re.search(r"http://127\.0\.0\.1:\d+", output.read_text()))
        self.url = found[0]
        until(self._is_ready, "the server's start")

    def _is_ready(self):
        assert self.process.poll() is None, (self.folder / "serve.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except OSError:
            return False

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return answer.read()

    def submit(self, build):
        answer = json.loads(self.call("POST", "/v1/projects/p/builds", build))
        return answer["metadata"]["build"]["id"]

    def build(self, build_id):
        return json.loads(self.call("GET", f"/v1/projects/p/builds/{build_id}"))

    def log(self, build_id):
        path = self.folder / "logs" / build_id / "log.txt"
        return path.read_text() if path.exists() else ""

    def stop(self, number):
        self.process.send_signal(number)
        self.process.wait(DEADLINE_S)


@pytest.fixture
def serve(tmp_path):
    started = []

    def start(sandbox):
        folder = tmp_path / "served"
        folder.mkdir()
        served = Served(folder, sandbox)
        started.append(served)
        served.start()
        return served

    yield start
    for served in started:
        served.stop(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_build_goes_on_while_its_server_is_replaced(serve, docker_engine, busybox, number):
    served = serve("host")
    build_id = served.submit({"steps": [{"name": busybox, "script": QUIET.replace("$$", "$")}]})
    until(lambda: "waiting\n" in served.log(build_id), "the step's start")
    served.stop(number)
    served.start()
    assert served.build(build_id)["status"] == "WORKING"
    let_go(docker_engine, build_id)
    build = until(
        lambda: (b := served.build(build_id))["status"] in FINAL_STATUSES and b, "the build's end"
    )
    assert build["status"] == "SUCCESS", (served.folder / "serve.log").read_text()
    assert served.log(build_id).count("waiting\n") == 1
    assert "runs: 1\n" in served.log(build_id)
    assert not docker_engine.list_owned({LABEL_BUILD: build_id}).containers


def test_a_second_server_on_the_same_folder_is_refused(serve):
    served = serve("host")
    argv = [sys.executable, "-m", "buildrunner", "serve", "--port", "0", "--auth", "none"]
    second = subprocess.run(
        [*argv, "--data", str(served.folder)], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert second.returncode == 3
    assert re.fullmatch(
        rf"error: another server \(process {served.process.pid}\) works in .*\n"
        r"  stop it first, or give this one a folder of its own with --data\n",
        second.stderr,
    ), second.stderr
