"""Every example, on a real engine and with a real registry, as a user would run it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# The public images of the examples, served by our builder images: no registry is needed.
ALIASES = ("debian:bookworm-slim=buildrunner/base",)


@pytest.fixture(scope="module", autouse=True)
def builder_images(docker_engine) -> None:
    answer = buildrunner("builders", "install")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def buildrunner(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "buildrunner", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


class Run:
    """A finished build: its events, its log lines by step, and its Build resource."""

    def __init__(self, output: str) -> None:
        self.events = [json.loads(line) for line in output.splitlines()]
        (self.result,) = (event for event in self.events if event["event"] == "result")
        self.build: dict[str, Any] = self.result["build"]
        self.steps = {step["id"]: step for step in self.build["steps"]}

    def log(self, step: str) -> list[str]:
        prefix = f'Step #{list(self.steps).index(step)} - "{step}": '
        lines = (event["text"] for event in self.events if event["event"] == "log")
        return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]

    def when(self, step: str, edge: str) -> str:
        return self.steps[step]["timing"][edge]


@pytest.fixture
def submit(tmp_path: Path):
    def run(folder: Path, *flags: str, exit_code: int = 0) -> Run:
        aliases = (flag for alias in ALIASES for flag in ("--image-alias", alias))
        answer = buildrunner(
            "submit", str(folder), "--output", "json", *aliases, *flags,
            XDG_DATA_HOME=str(tmp_path),
        )  # fmt: skip
        assert answer.returncode == exit_code, answer.stdout[-6000:] + answer.stderr[-2000:]
        return Run(answer.stdout)

    return run


def test_the_service_is_built_tested_and_pushed(submit, registry) -> None:
    image = f"{registry.address}/service"
    values = f"_PYTHON=buildrunner/python,_REGISTRY={registry.address}"
    try:
        run = submit(EXAMPLES, "--substitutions", values)
    finally:
        subprocess.run(["docker", "rmi", "--force", f"{image}:latest"], capture_output=True)
    assert {step["status"] for step in run.steps.values()} == {"SUCCESS"}
    assert "Ran 4 tests" in "\n".join(run.log("unit-test"))
    assert run.log("integration-test")[-1] == "the service renders a list over HTTP"
    # They wait for the same step, and for nothing else: they ran at the same time.
    assert run.when("lint", "startTime") < run.when("unit-test", "endTime")
    assert run.when("unit-test", "startTime") < run.when("lint", "endTime")
    # As on the hosted service, the tag `latest` is told under both of its names.
    digests = {pushed["name"]: pushed["digest"] for pushed in run.build["results"]["images"]}
    in_registry = digest_in(registry.address, "service", "latest")
    assert digests == {image: in_registry, f"{image}:latest": in_registry}


def digest_in(registry: str, repository: str, tag: str) -> str:
    kinds = "application/vnd.docker.distribution.manifest.v2+json"
    request = urllib.request.Request(
        f"http://{registry}/v2/{repository}/manifests/{tag}",
        method="HEAD",
        headers={"Accept": kinds},
    )
    with urllib.request.urlopen(request) as answer:
        return answer.headers["Docker-Content-Digest"]


def test_a_service_that_fails_its_integration_test_fails_the_build_and_is_stopped(
    submit, registry, tmp_path
) -> None:
    broken = tmp_path / "source"
    subprocess.run(["cp", "-r", str(EXAMPLES), str(broken)], check=True)
    app = broken / "service" / "app.py"
    app.write_text(app.read_text().replace('"/health"', '"/well"'))
    test = broken / "tests" / "test_app.py"
    test.write_text(test.read_text().replace('"/health"', '"/well"'))
    check = broken / "integration" / "check.py"
    check.write_text(check.read_text().replace("WAIT_LIMIT_S = 60", "WAIT_LIMIT_S = 1"))
    values = f"_PYTHON=buildrunner/python,_REGISTRY={registry.address},_TAG=broken"
    run = submit(broken, "--substitutions", values, exit_code=1)
    subprocess.run(
        ["docker", "rmi", "--force", f"{registry.address}/service:broken"], capture_output=True
    )
    assert run.steps["integration-test"]["status"] == "FAILURE"
    assert run.steps["stop"]["status"] == "FAILURE"
    assert "The integration test failed." in run.log("stop")
    assert not run.build["results"].get("images")
    name = f"service-{run.build['id']}"
    running = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"name={name}"], capture_output=True, text=True
    )
    assert running.stdout == ""


def test_parallel_steps_follow_the_graph(submit) -> None:
    run = submit(EXAMPLES / "parallel")
    assert run.log("joined")[-1] == "joined 1000 numbers"
    assert run.when("fetch", "endTime") <= run.when("left", "startTime")
    assert run.when("left", "startTime") < run.when("right", "endTime")
    assert run.when("right", "startTime") < run.when("left", "endTime")
    assert run.when("alone", "startTime") < run.when("fetch", "endTime")


def test_step_outputs_are_kept_with_the_results(submit) -> None:
    run = submit(EXAMPLES / "outputs")
    outputs = [base64.b64decode(text) for text in run.build["results"]["buildStepOutputs"]]
    size = (EXAMPLES / "outputs" / "cloudbuild.yaml").stat().st_size
    assert outputs == [str(size).encode(), b"", b'{"version": "1.2.3"}']


def test_a_volume_is_shared_by_the_steps_that_name_it(submit) -> None:
    run = submit(EXAMPLES / "volumes")
    assert run.log("use")[-1] == "expensive"
    assert run.log("without")[-1] == "this step has no cache"


def test_forgiven_failures_leave_the_build_a_success(submit) -> None:
    run = submit(EXAMPLES / "allow-failure")
    statuses = [(step["status"], step.get("exitCode", 0)) for step in run.steps.values()]
    assert statuses == [("FAILURE", 7), ("FAILURE", 3), ("SUCCESS", 0)]
    assert run.build["status"] == "SUCCESS"
    assert run.log("report")[-1] == "there are changes"


def test_scripts_get_variables_by_the_environment(submit) -> None:
    run = submit(EXAMPLES / "script", "--substitutions", "_GREETING=good morning")
    assert run.log("shell")[-1] == "project local-project, greeting good morning"
    assert run.log("bash-with-arrays")[-1] == "3 names, the last is three, price $5"
    assert run.log("by-env") == [*run.log("by-env")[:-1], run.log("shell")[-1]]


def test_a_node_library_is_installed_tested_and_packed(submit) -> None:
    run = submit(EXAMPLES / "node")
    assert any(line.endswith("pass 3") for line in run.log("test"))
    assert run.log("pack")[-1] == "roman-numerals-example-1.0.0.tgz"


def test_a_c_program_is_compiled_twice_at_once_and_tested(submit) -> None:
    run = submit(EXAMPLES / "c", "--substitutions", "_GCC=buildrunner/gcc")
    assert run.when("release", "startTime") < run.when("checked", "endTime")
    assert run.when("checked", "startTime") < run.when("release", "endTime")
    assert run.steps["test"]["status"] == "SUCCESS"


def test_every_example_is_tested_here() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/cloudbuild.yaml")}
    here = {"parallel", "outputs", "volumes", "allow-failure", "script", "node", "c"}
    deploys = {"deploy-kubernetes", "deploy-run", "deploy-app-engine", "deploy-functions"}
    assert folders == here | deploys  # test_deploy_examples runs the latter


def test_all_configs_are_valid() -> None:
    configs = [
        str(path)
        for path in (*EXAMPLES.rglob("cloudbuild.yaml"), *ROOT.glob("steps/*/cloudbuild.yaml"))
    ]
    answer = buildrunner("validate", "--strict", *configs)
    assert answer.returncode == 0, answer.stdout + answer.stderr
