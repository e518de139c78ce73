"""`buildrunner builds`: what ran here can be read again."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from tests.e2e.submit_bench import Bench, read_until

pytestmark = pytest.mark.docker

SLOW = "steps: [{name: IMAGE, script: 'echo ready; exec sleep 600'}]\n"


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


@pytest.fixture
def finished(bench):
    bench.write(
        "cloudbuild.yaml",
        """
steps: [{name: IMAGE, id: one, script: 'echo hello; printf made > $BUILDER_OUTPUT/output'}]
tags: [mine]
""",
    )
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    return done


def test_the_table_is_gclouds(bench, finished):
    header, row = bench.run("builds", "list").out.splitlines()
    assert header.split() == ["ID", "CREATE_TIME", "DURATION", "SOURCE", "IMAGES", "STATUS"]
    assert re.fullmatch(
        rf"{finished.build_id}  \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  \d+S +-  +-  +SUCCESS", row
    )
    assert bench.run("builds", "describe", finished.build_id, "--format", "table").out == (
        f"{header}\n{row}\n"
    )


def test_a_build_is_described_as_yaml_and_json(bench, finished):
    as_yaml = yaml.safe_load(bench.run("builds", "describe", finished.build_id[:8]).out)
    as_json = bench.builds("describe", finished.build_id)
    assert as_yaml == as_json
    assert as_json["status"] == "SUCCESS"
    assert as_json["tags"] == ["mine"]
    project = as_json["projectId"]
    assert as_json["name"] == f"projects/{project}/locations/global/builds/{finished.build_id}"
    log = Path(unquote(as_json["logUrl"].removeprefix("file://")))
    assert log.read_text() == finished.out
    assert set(as_json["timing"]) >= {"BUILD", "FETCHSOURCE"}
    assert as_json["steps"][0]["status"] == "SUCCESS"
    assert as_json["steps"][0]["timing"]["startTime"] < as_json["finishTime"]
    assert as_json["results"]["buildStepOutputs"] == ["bWFkZQ=="]


def test_the_log_is_the_one_that_was_shown(bench, finished):
    assert bench.run("builds", "log", finished.build_id[:8]).out == finished.out


def test_lists_can_be_filtered_and_cut(bench, finished):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'exit 1'}]\n")
    bench.run("submit", ".")
    assert [b["status"] for b in bench.builds("list")] == ["FAILURE", "SUCCESS"]
    assert [b["status"] for b in bench.builds("list", "--limit", "1")] == ["FAILURE"]
    assert [b["id"] for b in bench.builds("list", "--filter", "status=SUCCESS")] == [
        finished.build_id
    ]
    wanted = 'status="SUCCESS" AND NOT tags="nightly"'
    ids = bench.run("builds", "list", "--filter", wanted, "--format", "value(id, status)")
    assert ids.out == f"{finished.build_id}\tSUCCESS\n"
    described = bench.run("builds", "describe", finished.build_id, "--format=value(status)")
    assert described.out == "SUCCESS\n"
    bench.run("submit", ".", "--region", "europe-west1")
    there = bench.builds("list", "--region", "europe-west1", "--page-size", "1")
    assert [b["name"].split("/")[3] for b in there] == ["europe-west1"]
    assert len(bench.builds("list", "--region", "global")) == 2
    bad = bench.run("builds", "list", "--page-size", "0")
    assert (bad.code, bad.out) == (2, "")
    assert "--page-size takes a number from 1 on, not 0" in bad.err
    several = bench.run("builds", "list", "--region", "global", "--format", "yaml").out
    assert len(list(yaml.safe_load_all(several))) == 2


def test_no_builds_are_said_to_be_none(bench):
    done = bench.run("builds", "list")
    assert (done.code, done.out, done.err) == (0, "", "Listed 0 builds.\n")
    assert json.loads(bench.run("builds", "list", "--format", "json").out) == []


def test_a_running_build_is_followed_and_cancelled_from_elsewhere(bench):
    bench.write("cloudbuild.yaml", SLOW)
    running = bench.start("submit", ".")
    seen = read_until(running, "ready\n")
    build_id = re.search(r'"([^"]+)"', seen)[1]
    while not bench.builds("list", "--ongoing"):
        pass  # its process writes it within a moment
    follower = bench.start("builds", "log", "--follow", build_id[:8])
    assert read_until(follower, "ready\n") == seen
    cancelled = bench.run("builds", "cancel", build_id[:8])
    assert (cancelled.code, cancelled.err) == (0, f"Cancelled [{build_id}].\n")
    rest, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    followed, _ = follower.communicate(timeout=60)
    assert followed == rest
    assert follower.returncode == 0
    assert bench.left_behind(build_id) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "none"], 'there is no build "none" here'),
        (["log", "none"], 'there is no build "none" here'),
        (["cancel", "none"], 'there is no build "none" here'),
        (["list", "--filter", "bogus=x"], "bogus"),
        (["list", "--format", "csv(id)"], "csv(id) is none of table, json, yaml, value(FIELD)"),
        (["list", "--limit", "0"], "--limit takes a number from 1 on"),
    ],
)
def test_what_is_not_there_is_refused(bench, arguments, message):
    done = bench.run("builds", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_finished_build_can_not_be_cancelled(bench, finished):
    done = bench.run("builds", "cancel", finished.build_id)
    assert done.code == 2
    assert "has ended already, with status SUCCESS" in done.err
