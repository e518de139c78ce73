"""`buildrunner submit` to a real server that runs real builds."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from tests.e2e.submit_bench import Bench, Done, interrupt, read_until
from tests.fixtures_git import git

pytestmark = pytest.mark.docker

SLOW = """
steps:
- name: IMAGE
  id: slow
  script: |
    for n in 1 2 3 4 5 6 7 8 9; do echo line $n; sleep 0.3; done
- {name: IMAGE, args: [echo, afterwards]}
"""


class Serving:
    """A server in a process of its own, with tokens."""

    def __init__(self, data, environ):
        self.data = data
        self._environ = environ
        self.url = self.token = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self):
        port = self.url.rpartition(":")[2] or "0"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "buildrunner", "serve", "--port", port),
                *("--data", str(self.data), "--sandbox", "host", "--max-builds", "2"),
            ],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        first = self.token == ""
        for line in self._process.stdout:
            if found := re.search(r"https?://[\d.]+:\d+", line):
                self.url = found[0]
            if found := re.search(r"brt_[\w-]+", line):
                self.token = found[0]
            if self.url and (self.token or not first):
                return

    def kill(self):
        assert self._process
        self._process.kill()
        self._process.communicate()

    def stop(self):
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def serving(tmp_path_factory, docker_engine, busybox):
    folder = tmp_path_factory.mktemp("serving")
    environ = {
        **os.environ,
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "DOCKER_CONFIG": str(folder / "docker"),
    }
    serving = Serving(folder / "data", environ)
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture
def bench(serving, tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    bench = Bench(folder, tmp_path / "data", docker_engine, busybox)
    bench.environ["BUILDRUNNER_SERVER"] = serving.url
    bench.environ["BUILDRUNNER_TOKEN"] = serving.token
    return bench


def waiting(bench, build_id):
    """What a build waits for."""
    server, token = (bench.environ[f"BUILDRUNNER_{name}"] for name in ("SERVER", "TOKEN"))
    url = f"{server}/buildrunner/v1/projects/local-project/builds/{build_id}/waiting"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["text"]


def until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"it never happens that {what}"
        threading.Event().wait(0.1)


def text_of(log):
    """A log without what differs from build to build."""
    log = re.sub(r"(?s)\nFETCHSOURCE\n.*?BUILD\n", "\nFETCHSOURCE\nBUILD\n", log)
    return re.sub(r'starting build "[^"]+"', "starting build", log)


def test_a_triggered_build_is_the_same_here_and_there(bench, tmp_path):
    bench.write(
        "cloudbuild.yaml",
        """
steps:
- name: IMAGE
  env: ['FACTS=$TRIGGER_NAME $REPO_FULL_NAME $BRANCH_NAME [$TAG_NAME] $_UNSET${_OWN:-none}']
  script: |
    echo "$FACTS"
    ls -d .git docs dist 2>&1 | sort
substitutions: {_UNUSED: x}
""",
    )
    for folder in ("docs", "dist"):
        (bench.folder / folder).mkdir()
        bench.write(f"{folder}/file", "")
    bench.write(".gcloudignore", "docs\n")
    bench.write(".gitignore", "dist\n")
    git(bench.folder, "init", "-q", "-b", "topic", ".")
    git(bench.folder, "remote", "add", "origin", "https://example.com/acme/app.git")
    git(bench.folder, "add", "-A")
    git(bench.folder, "commit", "-q", "-m", "first")
    trigger = tmp_path / "trigger.yaml"
    trigger.write_text("{name: t, filename: cloudbuild.yaml, substitutions: {_OWN: $BRANCH_NAME}}")
    for flags, facts in (
        (("--triggered",), " acme/app topic [] none"),
        (("--trigger", str(trigger)), "t acme/app topic [] topic"),
    ):
        remote = bench.run("submit", ".", *flags)
        assert remote.code == 0, remote.err
        local = bench.run("submit", ".", "--local", *flags)
        assert local.code == 0, local.err
        assert text_of(remote.out) == text_of(local.out)
        assert f"\n{facts}\n" in remote.out
        assert "ls: dist: No such file or directory\n" in remote.out
        assert "\n.git\ndocs\n" in remote.out


def test_a_remote_build_looks_and_exits_as_a_local_one(bench):
    bench.write(
        "cloudbuild.yaml",
        """
steps:
- {name: IMAGE, id: look, script: 'cat greeting; test -x run; readlink link; ls -d empty'}
- {name: IMAGE, args: [readlink, up]}
- {name: IMAGE, args: [echo, $_WHO of $PROJECT_ID]}
substitutions: {_WHO: nobody}
""",
    )
    bench.write("greeting", "hello\n")
    bench.write("run", "")
    (bench.folder / "run").chmod(0o755)
    (bench.folder / "link").symlink_to("greeting")
    (bench.folder / "up").symlink_to("../..")
    (bench.folder / "empty").mkdir()
    flags = ("--substitutions", "_WHO=somebody", "--project", "mine")
    remote = bench.run("submit", ".", *flags)
    assert remote.code == 0, remote.err
    local = bench.run("submit", ".", "--local", *flags)
    assert local.code == 0, local.err
    assert text_of(remote.out) == text_of(local.out)
    assert "Step #1: ../..\n" in remote.out
    assert "Step #2: somebody of mine\n" in remote.out
    assert re.search(r"^Created \[http.*/projects/mine/.*\]\.$", remote.err, re.MULTILINE)
    assert "Logs are available at [ http" in remote.err
    assert re.search(r"^Build \S+ SUCCESS in", remote.err, re.MULTILINE)
    assert re.search(r"^#0 look  SUCCESS", remote.err, re.MULTILINE)
    assert bench.left_behind(remote.build_id) == []


def test_only_what_changed_travels(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [cat, b]}]\n")
    bench.write("a", os.urandom(20).hex())
    bench.write("b", os.urandom(20).hex())
    assert "Uploading 3 of 3 files" in bench.run("submit").err
    bench.write("b", "changed\n")
    again = bench.run("submit")
    assert "Uploading 1 of 3 files (8 bytes)" in again.err
    assert "\nchanged\n" in again.out


def test_names_of_any_bytes_travel(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'cat l*; wc -c [f-k]*'}]\n")
    for name in (b"g\xff\xfe", b"h" * 255, b"i\nj"):
        (bench.folder / os.fsdecode(name)).write_bytes(name)
    (bench.folder / os.fsdecode(b"l\xe9")).symlink_to(os.fsdecode(b"g\xff\xfe"))
    done = bench.run("submit")
    assert done.code == 0, done.err
    assert " 261 total" in done.out


@pytest.mark.parametrize(
    ("config", "code", "verdict"),
    [
        ("steps: [{name: IMAGE, script: 'echo no; exit 3'}]\n", 1, "FAILURE"),
        (
            "steps: [{name: IMAGE, script: 'trap exit TERM; sleep 60 & wait'}]\ntimeout: 1s\n",
            4,
            "TIMEOUT",
        ),
    ],
)
def test_what_goes_wrong_exits_as_here(bench, config, code, verdict):
    bench.write("cloudbuild.yaml", config)
    done = bench.run("submit")
    assert done.code == code
    assert re.search(rf"^Build \S+ {verdict} in", done.err, re.MULTILINE)
    assert f"builds log --server {bench.environ['BUILDRUNNER_SERVER']} " in done.err
    assert "--from" not in done.err


def test_the_commands_that_a_failure_names_hold_in_any_project(bench):
    bench.write(
        "cloudbuild.yaml",
        """
steps:
- {name: IMAGE, script: 'echo made > made'}
- {name: IMAGE, id: look at it, script: 'cat made; exit 4'}
""",
    )
    done = bench.run("submit", "--project", "another")
    said = dict(re.findall(r"^  (whole log|from here):  buildrunner (.*)$", done.err, re.MULTILINE))
    assert bench.run(*shlex.split(said["whole log"])).out == done.out
    assert " --from 'look at it'" in said["from here"]
    retried = bench.run(*shlex.split(said["from here"]))
    assert retried.code == 0, retried.err
    follow = ("log", "--follow", "--project", "another", retried.out.strip())
    assert 'Step #1 - "look at it": made\n' in bench.run("builds", *follow).out


def test_a_wrong_config_is_refused_before_anything_travels(bench):
    bench.write("cloudbuild.yaml", "steps: [{nam: IMAGE}]\n")
    done = bench.run("submit")
    assert done.code == 2
    assert "cloudbuild.yaml:1:10: steps[0].nam" in done.err
    assert "Uploading" not in done.err


def test_ctrl_c_cancels_the_build_on_the_server(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'echo ready; sleep 600'}]\n")
    process = bench.start("submit")
    seen = read_until(process, "ready\n")
    done = interrupt(process)
    assert done.code == 130
    assert "Cancelling ..." in done.err
    assert "Cancelled [http" in done.err
    build_id = Done(0, seen, "").build_id
    assert bench.builds("describe", build_id)["status"] == "CANCELLED"
    assert bench.left_behind(build_id) == []


def test_a_server_that_is_killed_and_comes_back_costs_no_line(bench, serving):
    bench.write("cloudbuild.yaml", SLOW)
    process = bench.start("submit")
    seen = read_until(process, "line 3")
    serving.kill()
    serving.start()
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    lines = (seen + out).splitlines()
    assert [line for line in lines if ": line " in line] == [
        f'Step #0 - "slow": line {n}' for n in range(1, 10)
    ]
    assert lines[-3:] == ["Finished Step #1", "PUSH", "DONE"]
    assert lines.count("Step #1: afterwards") == 1
    assert "was lost; trying again" in err


def test_async_returns_the_id_which_can_be_followed(bench):
    bench.write("cloudbuild.yaml", SLOW)
    started = bench.run("submit", "--async")
    assert started.code == 0
    build_id = started.out.strip()
    followed = bench.run("builds", "log", "--follow", build_id[:13])
    assert followed.code == 0
    assert followed.out.endswith("PUSH\nDONE\n")
    assert followed.out.count("line 9") == 1
    assert bench.run("builds", "log", build_id).out == followed.out
    assert bench.builds("describe", build_id)["status"] == "SUCCESS"
    listed = bench.builds("list", "--filter", f'build_id="{build_id}"')
    assert [build["id"] for build in listed] == [build_id]
    again = bench.run("builds", "retry", build_id)
    assert again.code == 0
    assert bench.run("builds", "cancel", again.out.strip()).code == 0
    assert bench.run("builds", "approve", build_id).code == 2


def test_a_build_that_waits_says_why(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'sleep 600'}]\n")
    first = [bench.run("submit", "--async").out.strip() for _ in range(2)]
    process = bench.start("submit")
    assert process.stderr
    for line in process.stderr:
        if line.startswith("Waiting: "):
            break
    else:
        raise AssertionError("it never said why it waits")
    assert bench.run("builds", "cancel", *first).code == 0
    read_until(process, "BUILD")
    assert interrupt(process).code == 130


def test_a_pool_of_the_command_line_is_that_of_the_build(bench):
    bench.write(
        "cloudbuild.yaml", "steps: [{name: IMAGE, script: echo}]\noptions: {pool: {name: x86}}\n"
    )
    name = "projects/local-project/locations/global/workerPools/arm"
    build = bench.run("submit", "--async", "--worker-pool", name).out.strip()
    assert bench.builds("describe", build)["options"]["pool"] == {"name": name}


def test_the_queue_is_told_what_is_urgent_and_what_is_superseded(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'sleep 600'}]\n")
    running = [bench.run("submit", "--async").out.strip() for _ in range(2)]
    for one in running:
        until(lambda one=one: bench.builds("describe", one)["status"] == "WORKING", "it runs")
    usual = bench.run("submit", "--async", "--group", "deploy").out.strip()
    urgent = bench.run("submit", "--async", "--priority", "5").out.strip()
    assert "number 2" in waiting(bench, usual)
    assert "number 1" in waiting(bench, urgent)
    newer = bench.run("submit", "--async", "--group", "deploy", "--supersede", "cancel_queued")
    assert bench.builds("describe", usual)["status"] == "CANCELLED"
    assert bench.run("builds", "cancel", *running, urgent, newer.out.strip()).code == 0


def test_json_output_has_events_lines_and_the_result(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\n")
    done = bench.run("submit", "--output", "json")
    assert done.code == 0
    entries = [json.loads(line) for line in done.out.splitlines()]
    assert entries[-1]["event"] == "result"
    assert entries[-1]["exitCode"] == 0
    assert entries[-1]["build"]["status"] == "SUCCESS"
    logged = [(entry["step"], entry["text"]) for entry in entries if entry["event"] == "log"]
    assert logged[-3:] == [(0, "hello"), (None, "PUSH"), (None, "DONE")]
    assert {"buildStarted", "stepFinished", "buildFinished"} <= {e["event"] for e in entries}


def test_a_log_that_nobody_may_keep_is_shown_and_gone(bench, serving):
    bench.write(
        "cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hush]}]\noptions: {logging: NONE}\n"
    )
    done = bench.run("submit")
    assert done.code == 0
    assert "\nhush\n" in done.out
    assert bench.run("builds", "log", done.build_id).code == 2
    folder = serving.data / "logs" / done.build_id
    until(lambda: not (folder / "log.txt").exists(), "the log is removed")
    said = bench.run("builds", "log", done.build_id)
    assert "was removed" in said.err
    assert "logging: NONE" in said.err


def test_a_login_is_checked_kept_and_forgotten(bench, serving):
    for name in ("BUILDRUNNER_SERVER", "BUILDRUNNER_TOKEN"):
        del bench.environ[name]

    def login(token):
        process = subprocess.run(
            [sys.executable, "-m", "buildrunner", "login", serving.url, "--project", "mine"],
            input=token,
            env=bench.environ,
            capture_output=True,
            text=True,
        )
        return process.returncode, process.stderr

    code, err = login("nonsense\n")
    assert (code, "unknown or was revoked" in err) == (2, True)
    code, err = login(f"{serving.token}\n")
    assert (code, "Logged in to" in err) == (0, True)
    assert serving.token not in err
    who = bench.run("whoami")
    assert "chosenBy: buildrunner login" in who.out
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, $PROJECT_ID]}]\n")
    assert "\nmine\n" in bench.run("submit").out
    assert bench.run("logout").code == 0
    assert bench.run("whoami").code == 2
