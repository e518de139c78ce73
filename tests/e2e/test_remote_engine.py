"""An engine behind ``ssh://``: the real sshd in front of this machine's engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from tests.fixtures_git import SshServer

pytestmark = pytest.mark.docker

DOCKER = "gcr.io/cloud-builders/docker"


@pytest.fixture
def environ(tmp_path: Path, docker_engine: DockerEngine) -> Iterator[dict[str, str]]:
    """Environment of commands that reach the engine by ssh only."""
    assert docker_engine.info().socket_path == "/var/run/docker.sock"  # what sshd's docker takes
    server = SshServer(tmp_path, tmp_path / "sshd")
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    options = f"-F none -i {server.key} -o UserKnownHostsFile={server.known_hosts}"
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh {options} "$@"\n')
    ssh.chmod(0o755)
    address = server.url("").rpartition(str(tmp_path))[0]
    yield {
        **os.environ,
        "PATH": f"{ssh.parent}:{os.environ['PATH']}",
        "DOCKER_HOST": address,
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    server.close()


def buildrunner(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "buildrunner", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_build_runs_there_with_its_source_and_gives_its_workspace_back(
    environ: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "name").write_text("from here")
    steps = [
        {"name": DOCKER, "entrypoint": "sh", "args": ["-c", "docker ps --quiet; cat name > copy"]},
        {"name": DOCKER, "args": ["run", "-v", "/workspace:/x", "buildrunner/base", "true"]},
    ]
    (source / "cloudbuild.yaml").write_text(json.dumps({"steps": steps}))
    answer = buildrunner(
        environ, "submit", str(source), "--write-workspace", str(tmp_path / "result")
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Copied to the engine" in answer.stdout
    assert (tmp_path / "result" / "copy").read_text() == "from here"
    assert "Step #1 mounts /workspace into a container of its own" in answer.stderr
    assert "--sandbox nested" not in answer.stderr


@pytest.mark.parametrize("command", [["submit", "."], ["serve", "--port", "0"]])
def test_a_nested_sandbox_is_refused_at_the_start_with_a_cure(
    environ: dict[str, str], command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cloudbuild.yaml").write_text('{"steps": [{"name": "buildrunner/base"}]}')
    where = ["--data", str(tmp_path / "server")]
    if command[0] == "submit":
        where = ["--config", str(tmp_path / "cloudbuild.yaml")]
    answer = buildrunner(environ, *command, *where, "--sandbox", "nested")
    assert answer.returncode == 3
    assert "starting build" not in answer.stdout
    assert "it does not share this machine's files" in answer.stderr
    assert "Use --sandbox host, or an engine that runs as root on this machine." in answer.stderr
