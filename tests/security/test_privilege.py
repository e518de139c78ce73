"""A config can only lower what its place grants: every way to ask for more, tried for real."""

import json

import msgspec
import pytest
from msgspec.structs import replace

from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.reading.decode import decode_message
from buildrunner.worker.program import ServerPlanning, ServerProgram, request_of
from tests.e2e.submit_bench import Bench
from tests.security.server_build import PROBE, PrivilegedPlace, ServerBuild, hostile_repository

pytestmark = pytest.mark.docker

ASKS = {"dockerDaemon": "PRIVILEGED"}


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


def config(image, **fields):
    return {"steps": [{"name": image, "script": PROBE}], **fields}


def planning(build, settings, engine):
    place = PrivilegedPlace(engine)
    request = request_of(build.stored, settings, privileged_place=True)
    program = ServerProgram(None, settings, {})
    return ServerPlanning(request, program.place(build.stored, settings, place))


def ran_without_rights(log):
    return "ran\n" in log and "HAS-SOCKET" not in log and "CAN-MOUNT" not in log


def test_a_fork_s_config_gets_no_privileged_steps(docker_engine, busybox, tmp_path):
    source, _ = hostile_repository(tmp_path, config(busybox, options=ASKS))
    build = ServerBuild(
        docker_engine,
        tmp_path,
        {"source": source},
        untrusted=True,
        labels={"config_file": "cloudbuild.yaml"},
    )
    outcome = build.run()
    assert outcome.status is Status.SUCCESS, build.log.text
    assert ran_without_rights(build.log.text)
    assert (build.plan.privileged, build.plan.docker_socket) == (False, False)
    assert any("PRIVILEGED has no effect" in text for text in outcome.warnings)


def test_a_place_that_makes_steps_privileged_does_not_for_a_stranger(
    docker_engine, busybox, tmp_path
):
    build = ServerBuild(docker_engine, tmp_path, config(busybox), untrusted=True)
    assert build.run().status is Status.SUCCESS, build.log.text
    assert ran_without_rights(build.log.text)


def test_a_plan_that_was_changed_on_disk_gets_nothing_when_its_build_is_resumed(
    docker_engine, busybox, tmp_path
):
    build = ServerBuild(docker_engine, tmp_path, config(busybox, options=ASKS), untrusted=True)
    requested = planning(build, build.settings, docker_engine)
    planned = requested.plan(None)
    forged = msgspec.structs.replace(planned.plan, privileged=True, docker_socket=True)
    resumed = requested.prepared(decode_message(Build, build.stored.request).value, forged)
    assert (resumed.plan.privileged, resumed.plan.docker_socket) == (False, False)


@pytest.mark.parametrize("daemon", ["PRIVILEGED", "NON_PRIVILEGED", "DOCKER_DAEMON_UNSPECIFIED"])
def test_no_config_undoes_no_docker_socket(bench, daemon):
    bench.write("cloudbuild.yaml", json.dumps(config("IMAGE", options={"dockerDaemon": daemon})))
    done = bench.run("submit", ".", "--no-docker-socket")
    assert done.code == 0, done.out + done.err
    assert ran_without_rights(done.out)
    assert ("PRIVILEGED has no effect" in done.err) == (daemon == "PRIVILEGED")
    dry = bench.run("submit", ".", "--no-docker-socket", "--dry-run", "--format", "json")
    assert (json.loads(dry.out)["privileged"], json.loads(dry.out)["docker_socket"]) == (
        False,
        False,
    )


def test_a_config_alone_makes_no_privileged_steps(bench):
    bench.write("cloudbuild.yaml", json.dumps(config("IMAGE", options=ASKS)))
    done = bench.run("submit", ".", "--dry-run", "--format", "json")
    assert json.loads(done.out)["privileged"] is False
    assert "--privileged grants it" in done.err
    allowed = bench.run("submit", ".", "--dry-run", "--format", "json", "--privileged")
    assert json.loads(allowed.out)["privileged"] is True


def test_settings_that_forbid_privilege_hold_in_a_place_that_gives_it(
    docker_engine, busybox, tmp_path
):
    build = ServerBuild(docker_engine, tmp_path, config(busybox, options=ASKS))
    settings = replace(build.settings, privileged=False, docker_socket=False)
    planned = planning(build, settings, docker_engine).plan(None)
    assert (planned.plan.privileged, planned.plan.docker_socket) == (False, False)
