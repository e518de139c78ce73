"""Builds on another machine: a server without an engine, and a worker that knows no database."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.chaos.kill_bench import Gate
from tests.conftest import DEADLINE_S
from tests.e2e.test_serve import api, serve  # noqa: F401  (a fixture)

pytestmark = pytest.mark.docker

NO_BUILDS = ("--sandbox", "none", "--auth", "none")


class Working:
    """``buildrunner worker`` in a process of its own."""

    def __init__(self, serving, folder, *args, name="w1", pool="", env=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        token = folder / "token"
        if not token.exists():
            create = ["tokens", "create", name, "--worker", "--data", str(serving.data)]
            create += ["--pool", pool] if pool else []
            token.write_bytes(subprocess.check_output([*BUILDRUNNER, *create], env=environ()))
        flags = ["--server", serving.url, "--token-file", str(token), "--data", str(self.data)]
        self.log = folder / "worker.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*BUILDRUNNER, "worker", *flags, "--sandbox", "host", *args],
                stdout=log,
                stderr=log,
                env=environ(**(env or {})),
            )

    def build_processes(self, build):
        """The processes that run a build of this worker."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if path.readlink() == self.data / "run" / build:
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it has ended, or is another user's
        return found

    @contextlib.contextmanager
    def is_lost(self, build):
        """Kill the worker, and freeze the processes of its build; yields their ids."""
        pids = self.build_processes(build)
        assert pids
        self.process.kill()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield pids
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def ended(self):
        code = self.process.wait(timeout=DEADLINE_S)
        return code, self.log.read_text()


BUILDRUNNER = [sys.executable, "-m", "buildrunner"]


def environ(**more):
    return {**os.environ, "BUILDRUNNER_DATABASE": "", **more}


@pytest.fixture
def server(serve, tmp_path):  # noqa: F811  (the fixture)
    def start(*args, **options):
        serving = serve(*NO_BUILDS, *args, data=tmp_path / "server", **options)
        serving.data = tmp_path / "server"
        return serving

    return start


@pytest.fixture
def work(tmp_path):
    running = []

    def start(serving, *args, folder="worker", **options):
        working = Working(serving, tmp_path / folder, *args, **options)
        running.append(working)
        return working

    yield start
    for working in running:
        if working.process.poll() is None:
            working.process.terminate()
            working.process.wait(timeout=DEADLINE_S)


def create(http, image, *scripts, **build):
    steps = [{"name": image, "args": ["sh", "-c", script]} for script in scripts]
    made = http.post("/v1/projects/p/builds", json={"steps": steps, **build})
    assert made.status_code == 200, made.text
    return made.json()["metadata"]["build"]["id"]


def shown(http, build):
    return http.get(f"/v1/projects/p/builds/{build}").json()


def log_of(http, build):
    return http.get(f"/buildrunner/v1/projects/p/builds/{build}/log").text


def until(holds, seconds=DEADLINE_S):
    """Wait, with few requests: each writes a line of the server's log, which nobody reads here."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.5)


def until_status(http, build, *statuses, seconds=DEADLINE_S):
    end = time.monotonic() + seconds
    while (status := shown(http, build)["status"]) not in statuses:
        assert time.monotonic() < end, (status, log_of(http, build))
        time.sleep(0.5)
    return shown(http, build)


ENDED = ("SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED")


def test_a_build_is_the_same_as_on_the_server_but_for_times_and_ids(
    server,
    serve,  # noqa: F811  (the fixture)
    work,
    busybox,
    tmp_path,
):
    scripts = ("echo one; echo two; printf three", "echo $BUILD_ID; ls -a /workspace", "exit 3")
    remote, local = server(), serve("--sandbox", "host", "--auth", "none", data=tmp_path / "local")
    work(remote)
    logs, documents = [], []
    for serving in (remote, local):
        with api(serving) as http:
            build = create(http, busybox, *scripts)
            document = until_status(http, build, *ENDED)
            logs.append(log_of(http, build).replace(build, "ID"))
            documents.append(document)
            events = http.get(f"/buildrunner/v1/projects/p/builds/{build}/events").json()["events"]
            assert [one["sequence"] for one in events] == list(range(1, len(events) + 1))
    assert logs[0] == logs[1]
    remote_build, local_build = documents
    for name in ("status", "failureInfo", "statusDetail"):
        assert remote_build.get(name) == local_build.get(name)
    assert [one["status"] for one in remote_build["steps"]] == ["SUCCESS", "SUCCESS", "FAILURE"]
    assert "warnings" not in remote_build
    assert "warnings" not in local_build


def test_a_failed_build_goes_on_from_a_step_on_another_worker(server, work, busybox):
    serving = server()
    first = work(serving, folder="one", name="w1")
    volume = [{"name": "cache", "path": "/cache"}]
    steps = [
        {"name": busybox, "args": ["sh", "-c", script], "volumes": volume}
        for script in (
            "echo of the workspace > file; echo of the volume > /cache/file; echo begun",
            "cat file /cache/file; test -e tried || { touch tried; exit 3; }",
        )
    ]
    with api(serving) as http:
        made = http.post("/v1/projects/p/builds", json={"steps": steps}).json()
        build = made["metadata"]["build"]["id"]
        failed = until_status(http, build, *ENDED)
        assert (failed["status"], failed.get("warnings")) == ("FAILURE", None)
        first.process.terminate()
        first.ended()
        work(serving, folder="two", name="w2")
        answer = http.post(f"/v1/projects/p/builds/{build}:retry", params={"fromStep": "1"})
        again = answer.json()["metadata"]["build"]["id"]
        done = until_status(http, again, *ENDED)
        log = log_of(http, again)
    assert done["status"] == "SUCCESS", log
    assert "of the workspace" in log
    assert "of the volume" in log
    assert "begun" not in log


def test_a_build_whose_workspace_is_gone_says_so(server, work, busybox):
    serving = server()
    first = work(serving)
    with api(serving) as http:
        build = create(http, busybox, "exit 3")
        until_status(http, build, *ENDED)
        first.process.terminate()
        first.ended()
        path = f"/v1/projects/p/builds/{build}:retry"
        answer = http.post(path, params={"fromStep": "0"})
        again = answer.json()["metadata"]["build"]["id"]
        shutil.rmtree(serving.data / "workspaces" / build)
        work(serving)
        done = until_status(http, again, *ENDED)
        log = log_of(http, again)
    assert done["status"] == "FAILURE"
    assert f"the workspace of build {build} is no longer kept" in log
    assert "run the whole build again" in log


def test_a_nested_build_on_a_worker_gets_what_its_server_signs(server, work, busybox, tmp_path):
    subprocess.run([*BUILDRUNNER, "builders", "install", "engine"], check=True)
    config = tmp_path / "config" / "buildrunner" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[storage.folders]\n"gs://made" = "file://{tmp_path}/made"\n')
    (tmp_path / "made").mkdir()
    serving = server()
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    work(serving, "--sandbox", "nested", env=home)
    audience = "https://cloud.example/provider"
    script = (
        'wget -q -O - --header "Metadata-Flavor: Google" '
        f'"$BUILDRUNNER_IDENTITY_URL?audience={audience}"; echo made > /workspace/made.txt'
    )
    with api(serving) as http:
        objects = {"location": "gs://made/here", "paths": ["made.txt"]}
        steps = [{"name": busybox, "script": script}]
        build = {"steps": steps, "artifacts": {"objects": objects}}
        trigger = {"name": "signed", "build": build}
        made = http.post("/v1/projects/p/triggers", json=trigger).json()["id"]
        path = f"projects/p/triggers/{made}"
        settings = {"identity": {"audiences": [audience]}}
        assert http.put(f"/buildrunner/v1/{path}/settings", json=settings).status_code == 200
        started = http.post(f"/v1/{path}:run", json={}).json()
        build = started["metadata"]["build"]["id"]
        ended = until_status(http, build, *ENDED, seconds=240)
        assert ended["status"] == "SUCCESS", log_of(http, build)
        assert ended.get("warnings", []) == []
        token = next(word for word in log_of(http, build).split() if word.startswith("eyJ"))
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        assert (claims["build_id"], claims["aud"]) == (build, audience)
        found = http.get(f"/buildrunner/v1/projects/p/builds/{build}/provenance")
        statement = json.loads(base64.b64decode(found.json()["payload"]))
        (subject,) = statement["subject"]
        assert "/made/here/made.txt#" in subject["name"]
        assert subject["digest"] == {"sha256": hashlib.sha256(b"made\n").hexdigest()}
        trigger = statement["predicate"]["buildDefinition"]["internalParameters"]["trigger"]
        assert trigger == {"id": made, "name": "signed"}


def test_a_submitted_folder_and_a_secret_reach_the_worker(server, work, busybox, tmp_path):
    settings = tmp_path / "config" / "buildrunner"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text('[secrets]\n"projects/p/secrets/key" = "env:THE_KEY"\n')
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "THE_KEY": "hunter2-of-the-server"}
    serving = server(env=env)
    work(serving, env={"XDG_CONFIG_HOME": str(tmp_path / "nothing")})
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "hello.txt").write_text("from the folder\n")
    (folder / "cloudbuild.yaml").write_text(
        f"""
steps:
- name: {busybox}
  args: [sh, -c, 'cat hello.txt; echo "key $$KEY"; echo -n $$KEY | wc -c']
  secretEnv: [KEY]
availableSecrets:
  secretManager:
  - versionName: projects/p/secrets/key/versions/latest
    env: KEY
"""
    )
    done = subprocess.run(
        [*BUILDRUNNER, "--server", serving.url, "submit", "--project", "p", str(folder)],
        capture_output=True,
        text=True,
        env=environ(BUILDRUNNER_TOKEN="", BUILDRUNNER_SERVER=""),
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from the folder" in done.stdout
    assert "21" in done.stdout
    assert "hunter2" not in done.stdout


def test_a_source_takes_no_more_of_the_worker_s_disk_than_the_worker_allows(
    server, work, busybox, tmp_path
):
    """Attack: a source of 2 GiB, which the server's limit allows, fills the smaller disk."""
    folder = tmp_path / "made"
    folder.mkdir()
    with (folder / "large.zip").open("wb") as archive:
        archive.truncate(2 << 30)
    config = tmp_path / "config" / "buildrunner" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[storage.folders]\n"gs://made" = "file://{folder}"\n')
    serving = server("--max-build-disk-gib", "100")
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    work(serving, "--max-build-disk-gib", "1", env=env)
    source = {"storageSource": {"bucket": "made", "object": "large.zip"}}
    with api(serving) as http:
        build = create(http, busybox, "true", source=source)
        document = until_status(http, build, *ENDED)
    assert document["status"] == "FAILURE"
    assert "a source may have 1.0 GiB" in str(document["failureInfo"])


def test_a_cancel_arrives_at_once(server, work, busybox):
    serving = server()
    work(serving)
    with api(serving) as http:
        build = create(http, busybox, "echo begun; sleep 600")
        until(lambda: "begun" in log_of(http, build))
        http.post(f"/v1/projects/p/builds/{build}:cancel", json={})
        begin = time.monotonic()
        document = until_status(http, build, *ENDED)
        assert document["status"] == "CANCELLED"
        assert time.monotonic() - begin < 10
        assert "buildrunner_builds_ended_total" in http.get("/metrics").text


def test_a_worker_of_one_build_ends_with_it(server, work, busybox):
    serving = server()
    with api(serving) as http:
        other = create(http, busybox, "true")
        build = create(http, busybox, "exit 1")
        code, said = work(serving, "--build", build).ended()
        assert (code, shown(http, build)["status"]) == (0, "FAILURE")
        assert shown(http, other)["status"] == "QUEUED"
        code, said = work(serving, "--build", build, folder="again", name="w2").ended()
        assert code == 0
        assert f"build {build} does not wait any more" in said
        code, _ = work(serving, "--once", folder="once", name="w3").ended()
        assert (code, shown(http, other)["status"]) == (0, "SUCCESS")


def test_a_process_that_is_killed_is_resumed_without_losing_a_line(server, work, busybox):
    serving = server()
    working = work(serving)
    lines = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.02; done"
    with api(serving) as http:
        build = create(http, busybox, "echo first", lines)
        until(lambda: "line 20" in log_of(http, build))
        for pid in working.build_processes(build):
            os.kill(pid, signal.SIGKILL)
        document = until_status(http, build, *ENDED)
        assert document["status"] == "SUCCESS", log_of(http, build)
        found = re.findall(r"line (\d+)\n", log_of(http, build))
        assert found == [str(number) for number in range(200)]
        assert log_of(http, build).count("first\n") == 1


def test_a_server_that_restarts_in_the_middle_of_a_log_misses_no_byte(server, work, busybox):
    serving = server()
    port = str(urlsplit(serving.url).port)
    work(serving)
    # 16 MB of lines of 64 bytes, all of them different.
    script = (
        "i=0; while [ $i -lt 64 ]; do"
        " awk -v b=$((i*4000)) 'BEGIN{for(n=0;n<4000;n++)printf \"%063d\\n\",b+n}';"
        " i=$((i+1)); sleep 0.1; done"
    )
    expected = hashlib.sha256()
    for number in range(256_000):
        expected.update(b"%063d\n" % number)
    with api(serving) as http:
        build = create(http, busybox, script)
        until(lambda: f"{20_000:063d}" in log_of(http, build))
    serving.process.kill()
    serving.process.wait()
    time.sleep(3)
    serving = server("--port", port)
    with api(serving) as http:
        document = until_status(http, build, *ENDED)
        assert document["status"] == "SUCCESS"
        text = log_of(http, build)
        own = [line + "\n" for line in text.splitlines() if re.fullmatch(r"\d{63}", line)]
        assert hashlib.sha256("".join(own).encode()).hexdigest() == expected.hexdigest()


def test_a_worker_with_a_token_that_was_revoked_says_so(server, work):
    serving = server()
    folder = serving.data.parent / "worker"
    working = work(serving)
    until(lambda: "works for" in working.log.read_text())
    subprocess.run(
        [*BUILDRUNNER, "tokens", "revoke", "w1", "--data", str(serving.data)],
        check=True,
        env=environ(),
    )
    working.process.terminate()
    working.ended()
    code, said = work(serving).ended()
    assert code == 2
    assert "the token is no worker's, is unknown or was revoked" in said
    assert folder.exists()


def test_a_build_of_a_lost_worker_ends_with_the_true_reason(server, work, busybox):
    serving = server()
    working = work(serving)
    with api(serving) as http:
        build = create(http, busybox, "echo begun; sleep 600")
        until(lambda: "begun" in log_of(http, build))
        with working.is_lost(build) as pids:
            document = until_status(http, build, *ENDED, seconds=120)
            before = log_of(http, build)
        assert document["status"] == "INTERNAL_ERROR"
        assert "was lost: it was last heard of at" in document["statusDetail"]
        until(lambda: not any(map(is_running, pids)))  # it was told, and ended itself
        assert log_of(http, build) == before
        assert shown(http, build)["status"] == "INTERNAL_ERROR"


@pytest.fixture
def gate(registry):
    found = Gate(registry.address)
    yield found
    found.close()


@pytest.fixture
def pulled(busybox, gate):
    """An image that only the registry behind the gate has."""
    name = f"{gate.address}/again:{uuid.uuid4().hex}"
    for command in (("tag", busybox, name), ("push", name), ("rmi", name)):
        subprocess.run(["docker", *command], check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)


def test_a_build_whose_worker_is_lost_in_its_first_pull_runs_again(server, work, gate, pulled):
    serving = server()
    lost = work(serving, folder="lost", name="w1")
    gate.shut()
    with api(serving) as http:
        build = create(http, pulled, "echo it runs")
        assert gate.held.wait(60)

        def step():
            return shown(http, build)["steps"][0]

        until(lambda: step().get("status") == "WORKING")
        assert "endTime" not in step()["pullTiming"]
        with lost.is_lost(build) as pids:
            work(serving, folder="other", name="w2")
            until(lambda: "before any step ran. It begins again.\n" in log_of(http, build))
            gate.open()
            document = until_status(http, build, *ENDED)
        assert document["status"] == "SUCCESS", log_of(http, build)
        assert log_of(http, build).count("it runs\n") == 1
        until(lambda: not any(map(is_running, pids)))


def test_a_build_whose_trigger_wants_it_runs_again_after_a_worker_was_lost(server, work, busybox):
    serving = server()
    lost = work(serving, folder="lost", name="w1")
    steps = [
        {"name": busybox, "args": ["echo", "from the beginning"]},
        {"name": busybox, "args": ["sh", "-c", "echo begun; sleep 600"]},
    ]
    with api(serving) as http:
        triggers = "projects/p/triggers"
        made = http.post(f"/v1/{triggers}", json={"name": "t", "build": {"steps": steps}})
        assert made.status_code == 200, made.text
        settings = f"/buildrunner/v1/{triggers}/t/settings"
        assert http.put(settings, json={"onLost": "rerun"}).status_code == 200
        started = http.post(f"/v1/{triggers}/t:run", json={}).json()
        build = started["metadata"]["build"]["id"]
        until(lambda: "begun" in log_of(http, build))
        with lost.is_lost(build) as pids:
            work(serving, folder="other", name="w2")
            until(lambda: log_of(http, build).count("begun") == 2, seconds=150)
            log = log_of(http, build)
            steps = shown(http, build)["steps"]
            assert http.post(f"/v1/projects/p/builds/{build}:cancel").status_code == 200
            document = until_status(http, build, *ENDED)
        assert log.count("from the beginning\n") == 2
        assert "was lost: it was last heard of at" in log
        assert "It begins again.\n" in log
        assert "before any step ran" not in log
        assert [step["status"] for step in steps] == ["SUCCESS", "WORKING"]
        assert document["status"] == "CANCELLED"
        until(lambda: not any(map(is_running, pids)))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
