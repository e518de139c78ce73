"""Identity tokens, as the steps of a server's builds get them in nested sandboxes."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from buildrunner.containers.docker.engine import DockerEngine
from tests.e2e.submit_bench import Bench
from tests.web.serving import Serving, serving

pytestmark = pytest.mark.docker

AUDIENCE = "https://cloud.example/provider"
ASK = 'wget -q -O - --header "Metadata-Flavor: Google"'
TOKEN = f'{ASK} "$BUILDRUNNER_IDENTITY_URL?audience={AUDIENCE}"'


@pytest.fixture(scope="module", autouse=True)
def engine_image(docker_engine: DockerEngine) -> None:
    argv = [sys.executable, "-m", "buildrunner", "builders", "install", "engine"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("server"), "--max-builds", "2") as running:
        yield running


def run_trigger(server: Serving, image: str, settings: dict[str, object]) -> tuple[str, str, str]:
    """Run a new trigger whose build asks for a token: the build's id, status and log."""
    trigger = {
        "name": f"t{uuid.uuid4().hex[:8]}",
        "build": {"steps": [{"name": image, "script": TOKEN}]},
    }
    made = server.http.post("/v1/projects/p/triggers", json=trigger)
    assert made.status_code == 200, made.text
    path = f"/projects/p/triggers/{made.json()['id']}"
    set_ = server.http.put(f"/buildrunner/v1{path}/settings", json=settings)
    assert set_.status_code == 200, set_.text
    started = server.http.post(f"/v1{path}:run", json={})
    assert started.status_code == 200, started.text
    build = started.json()["metadata"]["build"]["id"]
    status = server.ended("p", build)
    log = server.http.get(f"/buildrunner/v1/projects/p/builds/{build}/log").text
    return build, status, log


def test_a_step_gets_a_token_that_the_server_s_published_keys_verify(
    server: Serving, busybox: str
) -> None:
    build, status, log = run_trigger(server, busybox, {"identity": {"audiences": [AUDIENCE]}})
    assert status == "SUCCESS", log
    token = next(word for word in log.split() if word.startswith("eyJ"))
    keys = jwt.PyJWKClient(f"{server.url}/.well-known/jwks.json")
    claims = jwt.decode(
        token,
        keys.get_signing_key_from_jwt(token),
        algorithms=["RS256"],
        audience=AUDIENCE,
        issuer=server.url,
    )
    assert (claims["build_id"], claims["project_id"]) == (build, "p")
    assert claims["sub"].startswith("project:p:trigger:")


def test_a_step_without_an_allowed_audience_gets_none(server: Serving, busybox: str) -> None:
    other = {"identity": {"audiences": ["https://other.example"]}}
    _, status, log = run_trigger(server, busybox, other)
    assert (status, "403" in log) == ("FAILURE", True), log
    _, status, log = run_trigger(server, busybox, {})
    assert status == "FAILURE"
    assert "eyJ" not in log


def test_a_local_build_in_a_sandbox_has_a_metadata_server_too(
    tmp_path: Path, docker_engine: DockerEngine, busybox: str
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    bench = Bench(folder, tmp_path / "data", docker_engine, busybox)
    path = "http://metadata.google.internal/computeMetadata/v1/project/project-id"
    ask = f"wget -q -O - --header 'Metadata-Flavor: Google' {path}"
    bench.write("cloudbuild.yaml", f"steps:\n- name: IMAGE\n  script: |\n    {ask}; echo\n")
    done = bench.run(
        *("submit", "--no-source", "--sandbox", "nested"), *("--metadata-server", "--project", "p7")
    )
    assert done.code == 0, done.err
    assert "p7" in done.out.splitlines()
