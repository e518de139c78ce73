"""The builds of `tests/scenarios` end in Pods as they end in a nested sandbox."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest

from buildrunner.spec.reading.decode import load_build
from buildrunner.spec.writing import encode_duration, encode_message
from tests.kubernetes.test_pools import (  # noqa: F401  (fixtures)
    cluster,
    found,
    installed,
    of_pool,
    server,
)
from tests.kubernetes.test_workers import ended, submitted
from tests.scenarios.test_scenarios import SCENARIOS, Run

# `test_pools::test_a12_...` has a limit of the memory.
FOLDERS = [folder for folder in SCENARIOS if folder.name != "26_out_of_memory"]
PULLED = timedelta(seconds=30)  # the engine of a new Pod has no images
AT_A_TIME = 8


def request(folder):
    """The request that runs a scenario in a Pod."""
    build = load_build((folder / "cloudbuild.yaml").read_bytes(), file="cloudbuild.yaml").build
    body = encode_message(build)
    body["options"] = {**body.get("options", {}), **of_pool(pool="wide")["options"]}
    if build.timeout and build.timeout < PULLED:
        body["timeout"] = encode_duration(PULLED)
    return body


def problem(cluster, server, folder):  # noqa: F811
    """Run a scenario; return how its end differs from the expected one, empty if it does not."""
    run = Run(folder)
    build_id = submitted(server, request(folder))
    if awaited := set(run.expected.get("cancelWhenRunning", ())):
        cluster.until(lambda: awaited <= working(server, build_id), folder.name, 240)
        server.post(f"/v1/projects/shop/builds/{build_id}:cancel")
    build, log = ended(cluster, server, build_id, 240)
    seen = build["status"], [step.get("status", "QUEUED") for step in build["steps"]]
    if seen != (run.expected["status"], run.expected["steps"]):
        return f"{folder.name}: {seen}\n{log}"
    said = run.expected.get("log", ())
    run.expected["log"] = [part for part in said if not part.startswith("Already have image")]
    run.sink.data = log.encode()
    try:
        run.check_log(log)
    except AssertionError as error:
        return f"{folder.name}: {error}"
    return ""


def working(server, build_id):  # noqa: F811
    """The indexes of the steps that run."""
    steps = found(server, build_id)["steps"]
    return {number for number, step in enumerate(steps) if step.get("status") == "WORKING"}


@pytest.mark.timeout(1800)  # thirty Pods
def test_a2_every_scenario_ends_in_a_pod_as_in_a_nested_sandbox(cluster, server):  # noqa: F811
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        problems = list(filter(None, threads.map(partial(problem, cluster, server), FOLDERS)))
    assert not problems, "\n".join(problems)
