"""kill -9 of the server, of a build's process, of both, at every phase of a build.

Afterwards a server is there again, and: the build ends in exactly one final state with a true
reason, no stored byte of its log is lost or doubled, no step ran twice, nothing is left behind.
"""

import os
import re
import signal
from pathlib import Path

import pytest

from buildrunner.containers.process_owner import is_alive, pid_of
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.worker.recovery import MAX_ATTEMPTS
from tests.chaos.kill_bench import now, step_container, until
from tests.fixtures_git import git

pytestmark = pytest.mark.docker

VICTIMS = ("server", "execute", "both")
# What every `make test` tries; `make chaos` tries all.
QUICK = {("chatty step", "both"), ("between steps", "execute"), ("queued", "server")}

RAN = "echo $0 ran >> /workspace/ran"
QUIET = f"{RAN}; echo waiting; until [ -e /workspace/go ]; do sleep 0.05; done; echo line 1 end"
# The pauses bound the log, which a server that starts slowly must catch up with.
CHATTY = f"""{RAN}
n=0; until [ -e /workspace/go ]; do
  n=$((n+1)); echo line $n end; [ $((n % 100)) != 0 ] || sleep 0.01
done
echo $n > /workspace/count"""
COUNT = "echo runs: $(grep -c ran /workspace/ran)"


def kill(bench, build_id, victim, *, max_builds=4):
    """Kill, and have a server again."""
    if victim in ("server", "both"):
        bench.kill_server()
    if victim in ("execute", "both"):
        bench.kill_execute(build_id)
    if victim in ("server", "both"):
        bench.start(max_builds=max_builds)


def case(phase, function):
    return [
        pytest.param(
            function,
            victim,
            id=f"{phase}-{victim}",
            marks=[] if (phase, victim) in QUICK else [pytest.mark.chaos],
        )
        for victim in VICTIMS
    ]


def quiet_step(bench, victim):
    build_id = bench.create(QUIET, f"{RAN}; {COUNT}")
    bench.wait_for_log(build_id, "waiting\n")
    kill(bench, build_id, victim)
    bench.wait_for_event(build_id, "StepRunning", 1)
    bench.let_go(build_id, 0)
    return build_id, 1, "runs: 2"


def chatty_step(bench, victim):
    build_id = bench.create(CHATTY, f"{RAN}; {COUNT}; echo lines: $(cat /workspace/count)")
    bench.wait_for_log(build_id, "line 2000 end")
    kill(bench, build_id, victim)
    bench.let_go(build_id, 0)
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", document
    lines = int(bench.log(build_id).rpartition("lines: ")[2].split()[0])
    return build_id, lines, "runs: 2"


def between_steps(bench, victim):
    steps = [f"{RAN}; echo line {n} end" for n in range(1, 6)]
    build_id = bench.create(*steps, COUNT)
    bench.wait_for_event(build_id, "StepFinished", 2)
    kill(bench, build_id, victim)
    return build_id, 5, "runs: 5"


def queued(bench, victim):
    before = bench.create(QUIET)
    bench.wait_for_log(before, "waiting\n")
    build_id = bench.create(f"{RAN}; echo line 1 end", COUNT)
    kill(bench, before, victim, max_builds=1)
    bench.wait_for_event(before, "StepRunning", 1)
    assert bench.status(build_id) == "QUEUED"
    bench.let_go(before, 0)
    assert bench.wait_for_end(before)["status"] == "SUCCESS", bench.account(before)
    return build_id, 1, "runs: 1"


@pytest.mark.parametrize(("phase", "victim"), case("queued", queued))
def test_a_build_that_waits_runs_when_its_turn_comes(bench, phase, victim):
    bench.start(max_builds=1)
    build_id, lines, runs = phase(bench, victim)
    assert bench.wait_for_end(build_id)["status"] == "SUCCESS", bench.account(build_id)
    assert f"{runs}\n" in bench.check_log(build_id, lines=lines)
    for one in bench.builds:
        bench.check_nothing_left(one)


@pytest.mark.parametrize(
    ("phase", "victim"),
    [
        *case("quiet step", quiet_step),
        *case("chatty step", chatty_step),
        *case("between steps", between_steps),
    ],
)
def test_a_build_goes_on_to_its_end_as_if_nothing_had_been(bench, phase, victim):
    bench.start()
    build_id, lines, runs = phase(bench, victim)
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", bench.account(build_id)
    log = bench.check_log(build_id, lines=lines)
    assert f"{runs}\n" in log
    assert log.endswith("PUSH\nDONE\n")
    assert {step["status"] for step in document["steps"]} == {"SUCCESS"}
    bench.check_nothing_left(build_id)


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_a_kill_right_behind_each_event_of_a_build(bench):
    """What was asked of the engine at that moment is under way still, and is not done twice."""
    bench.start(max_builds=8)
    steps = [*(f"{RAN}; echo line {n} end" for n in (1, 2)), COUNT]
    whole = bench.create(*steps)
    assert bench.wait_for_end(whole)["status"] == "SUCCESS"
    alive = {bench.create(*steps): at for at in range(1, len(bench.events(whole)))}

    def kill_who_is_there():
        for build_id, at in list(alive.items()):
            if len(bench.events(build_id)) >= at:
                del alive[build_id]
                bench.kill_execute(build_id, must=False)
        return not alive

    until(kill_who_is_there, "the last event", deadline_s=200)
    for build_id in bench.builds:
        assert bench.wait_for_end(build_id)["status"] == "SUCCESS", bench.account(build_id)
        log = bench.log(build_id)
        assert re.findall(r"line (\d) end$", log, re.MULTILINE) == ["1", "2"], log
        assert "runs: 2\n" in log
        assert log.count("starting build") == 1 + log.count("It begins again.\n")
        bench.check_nothing_left(build_id)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "greeting").write_text("hello\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def git_source(folder):
    return {"gitSource": {"url": f"file://{folder}", "revision": "main"}}


def test_a_build_of_a_git_commit_goes_on_with_that_commit(bench, repository):
    bench.start()
    steps = (QUIET, f"{RAN}; cat greeting; echo $COMMIT_SHA; {COUNT}")
    build_id = bench.create(
        *steps, source=git_source(repository), options={"automapSubstitutions": True}
    )
    bench.wait_for_log(build_id, "waiting\n")
    kill(bench, build_id, "both")
    bench.let_go(build_id, 0)
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", bench.account(build_id)
    log = bench.check_log(build_id, lines=1)
    assert "hello\n" in log
    assert git(repository, "rev-parse", "HEAD").strip() in log
    assert "runs: 2\n" in log
    bench.check_nothing_left(build_id)


def test_a_build_whose_checkout_was_changed_meanwhile_is_not_silently_wrong(bench, repository):
    bench.start()
    build_id = bench.create(QUIET, RAN, source=git_source(repository))
    bench.wait_for_log(build_id, "waiting\n")
    bench.kill_server()
    bench.kill_execute(build_id)
    checkout = Path(bench.notes(build_id).planned().checkout)
    checkout.with_name(f"{checkout.name}.json").unlink()  # as whoever changes it does first
    bench.start()
    document = bench.wait_for_end(build_id)
    assert document["status"] == "INTERNAL_ERROR", bench.account(build_id)
    assert "was changed while no process of the build lived" in document["statusDetail"]
    bench.check_log_once(build_id)
    bench.check_nothing_left(build_id)


def test_a_process_whose_build_was_taken_stops_at_once_and_touches_nothing(bench, docker_engine):
    bench.start()
    build_id = bench.create(QUIET)
    bench.wait_for_log(build_id, "waiting\n")
    owner = bench.process(build_id)
    container = step_container(docker_engine, build_id)
    taken, lease = bench.store.queue.claim_again(build_id, "another server", now=now(), lease_s=600)
    os.kill(pid_of(owner), signal.SIGTERM)  # look
    until(lambda: not is_alive(owner), "its end")
    bench.wake()
    bench.let_go(build_id, 0)
    assert bench.stored(build_id).fence == lease.fence
    assert bench.status(build_id) == "WORKING"
    assert [one.id for one in docker_engine.find_containers({LABEL_BUILD: build_id})] == [container]
    bench.store.queue.record(lease, {**taken.document, "status": "CANCELLED"})
    bench.stop_server()
    bench.start()  # its first act is a sweep
    bench.check_nothing_left(build_id)


def test_a_process_that_dies_again_and_again_is_not_started_for_ever(bench):
    bench.start()
    build_id = bench.create(QUIET)
    bench.wait_for_log(build_id, "waiting\n")
    seen = set()
    for _ in range(MAX_ATTEMPTS):
        until(lambda: bench.process(build_id) not in seen and is_alive(bench.process(build_id)))
        seen.add(bench.process(build_id))
        bench.kill_execute(build_id)
    document = bench.wait_for_end(build_id)
    assert document["status"] == "INTERNAL_ERROR"
    assert document["statusDetail"] == (
        f"the process of this build died {MAX_ATTEMPTS} times, the last time because it was killed "
        "by signal 9 (SIGKILL)"
    )
    assert bench.log(build_id).endswith(f"ERROR\nERROR: {document['statusDetail']}\n")
    bench.check_nothing_left(build_id)
