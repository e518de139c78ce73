"""The builds of `tests/scenarios` end in Pods as they end in a nested sandbox."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest

from buildrunner.spec.reading.decode import load_build
from buildrunner.spec.writing import encode_duration, encode_message
from tests.e2e.test_corpus_runs import CORPUS
from tests.e2e.test_serve import api, serve  # noqa: F401  (a fixture)
from tests.kubernetes.test_pools import (  # noqa: F401  (fixtures)
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
AT_A_TIME = 4


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


# Configs of `tests/corpus` whose lines have a certain order: no two steps run at once.
CONFIGS = (
    "02_several_steps",
    "07_script",
    "09_directories",
    "10_environment",
    "11_home_persists",
    "12_step_volumes",
    "13_global_volumes",
    "14_step_outputs",
    "17_allow_failure",
    "22_unknown_program",
    "26_built_ins",
)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# A new Pod has no images, and a nested sandbox has those of its machine.
OF_IMAGES = re.compile(
    r"^(Step #\d+[^:]*: )?(Pulling image|Digest|Status: Downloaded|Already have image).*\n",
    re.MULTILINE,
)


def result(cluster, server, name, **options):  # noqa: F811
    """The end of a build of a config, and its log, without ids and lines about images."""
    loaded = load_build((CORPUS / f"{name}.yaml").read_bytes(), file=name)
    body = encode_message(loaded.build)
    body["options"] = {**body.get("options", {}), **options}
    build, log = ended(cluster, server, submitted(server, body), 240)
    ends = [(step.get("status"), step.get("exitCode")) for step in build["steps"]]
    facts = build["status"], build.get("statusDetail"), build.get("failureInfo"), ends
    return UUID.sub("ID", repr(facts)), OF_IMAGES.sub("", UUID.sub("ID", log))


@pytest.fixture
def nested(serve, busybox, tmp_path):  # noqa: F811
    """A client of a server on this machine, whose builds run in nested sandboxes."""
    (tmp_path / "buildrunner").mkdir()
    (tmp_path / "buildrunner" / "config.toml").write_text(
        f'[images.aliases]\nbusybox = "{busybox}"\n'
    )
    flags = ("--sandbox", "nested", "--max-builds", "1")
    serving = serve(*flags, env={"XDG_CONFIG_HOME": str(tmp_path)})
    with api(serving) as http:
        yield http
    assert serving.stop()[0] == 0


def test_a1_logs_and_results_in_a_pod_are_those_of_a_nested_sandbox(cluster, server, nested):  # noqa: F811
    for name in CONFIGS:
        expected = result(cluster, nested, name)
        assert result(cluster, server, name, **of_pool(pool="wide")["options"]) == expected
