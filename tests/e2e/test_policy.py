"""The policy of a server, and the networks of one project's builds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.web.serving import Serving, serving

pytestmark = pytest.mark.docker

POLICY = """
[policy.rules]
step-images = 'images.all(i, i.startsWith("buildrunner-tests/"))'
[projects.apart.sandbox]
egress_deny = ["0.0.0.0/0"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, docker_engine: object) -> Iterator[Serving]:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    folder = tmp_path_factory.mktemp("server")
    config = folder / "config" / "buildrunner" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(POLICY)
    with serving(folder) as running:
        yield running


def built(server: Serving, project: str, image: str, script: str) -> tuple[str, str]:
    """Run a build of one step: its status, and why it is so."""
    build = server.create(project, {"steps": [{"name": image, "script": script}]})
    server.ended(project, build)
    document = server.http.get(f"/v1/projects/{project}/builds/{build}").json()
    return document["status"], document.get("statusDetail", "")


def test_a_build_that_breaks_a_rule_does_not_begin(server: Serving, busybox: str) -> None:
    assert built(server, "p", busybox, "true") == ("SUCCESS", "")
    status, detail = built(server, "p", "somebody/else", "true")
    assert status == "FAILURE"
    assert "the policy of this server refuses the build: the rule step-images is false" in detail


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_project_can_have_other_networks(server: Serving, busybox: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outwards:
        outwards.connect(("192.0.2.1", 9))
        address = outwards.getsockname()[0]
    web = ThreadingHTTPServer(("0.0.0.0", 0), Quiet)
    Thread(target=web.serve_forever, daemon=True).start()
    ask = f"wget -q -O /dev/null http://{address}:{web.server_address[1]}/"
    try:
        assert built(server, "p", busybox, ask)[0] == "SUCCESS"
        refused = server.create("apart", {"steps": [{"name": busybox, "script": ask}]})
        assert server.ended("apart", refused) == "FAILURE"
        log = server.http.get(f"/buildrunner/v1/projects/apart/builds/{refused}/log").text
        assert "Connection refused" in log  # and no "timed out" after two minutes
    finally:
        web.shutdown()
        web.server_close()


def test_a_server_with_a_wrong_rule_does_not_start(tmp_path: Path) -> None:
    config = tmp_path / "buildrunner" / "config.toml"
    config.parent.mkdir()
    config.write_text("[policy.rules]\nbroken = 'images.all('\n")
    done = subprocess.run(
        [sys.executable, "-m", "buildrunner", "serve", "--port", "0", "--data", tmp_path / "data"],
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "BUILDRUNNER_DATABASE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "policy.rules.broken: " in done.stderr
    assert "is no CEL expression" in done.stderr
