"""The server as a person meets it: a process, its words, its end."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading

import httpx
import pytest

from buildrunner.store.sql.store import open_store
from tests.conftest import DEADLINE_S, wait_until
from tests.fixtures_postgres import running_postgres

STEPS = {"steps": [{"name": "busybox", "args": ["echo", "hello $PROJECT_ID"]}]}


class Serving:
    """``buildrunner serve`` in a process of its own."""

    def __init__(self, *args, data, env=None):
        environ = {**os.environ, "BUILDRUNNER_DATABASE": "", **(env or {})}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "buildrunner",
                "serve",
                "--port",
                "0",
                "--data",
                str(data),
                *args,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            text=True,
        )
        self.said = ""
        watchdog = threading.Timer(DEADLINE_S, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                self.said += line
                if line.startswith("Submit a folder"):
                    break
        finally:
            watchdog.cancel()
        found = re.search(r"serves (\S+) ", self.said)
        self.url = found.group(1) if found else ""
        token = re.search(r"brt_\S+", self.said)
        self.token = token.group() if token else ""

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        rest, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, self.said + rest, errors


@pytest.fixture
def serve(tmp_path):
    running = []

    def start(*args, data=tmp_path / "data", env=None):
        serving = Serving(*args, data=data, env=env)
        running.append(serving)
        return serving

    yield start
    for serving in running:
        if serving.process.poll() is None:
            serving.process.kill()
        serving.process.communicate()


@pytest.fixture(scope="module")
def postgres_url():
    server = running_postgres()
    yield server.make_database()
    server.remove()


def api(serving):
    headers = {"Authorization": f"Bearer {serving.token}"} if serving.token else {}
    return httpx.Client(base_url=serving.url, headers=headers, timeout=DEADLINE_S)


def test_the_first_start_shows_an_admin_s_token_and_no_later_one_does(serve, tmp_path):
    first = serve("--sandbox", "host")
    assert first.token
    with api(first) as http:
        assert http.get("/buildrunner/v1/whoami").json()["scopes"] == ["admin"]
        assert http.get("/readyz").json()["status"] == "ready"
    code, _, errors = first.stop()
    assert code == 0
    assert first.token not in errors
    again = serve("--sandbox", "host")
    assert not again.token
    again.token = first.token
    with api(again) as http:
        assert http.get("/buildrunner/v1/whoami").json()["name"] == "admin"
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert first.token.encode() not in path.read_bytes()


def test_a_server_that_runs_no_builds_is_ready_without_an_engine(serve, tmp_path):
    away = {"DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock"}
    serving = serve("--sandbox", "none", "--auth", "none", env=away)
    with api(serving) as http:
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()["problems"]) == (200, [])
        made = http.post("/v1/projects/p/builds", json=STEPS).json()
        build = made["metadata"]["build"]["id"]
        why = http.get(f"/buildrunner/v1/projects/p/builds/{build}/waiting").json()
        assert why["kind"] == "no_worker"
        assert http.get(f"/v1/projects/p/builds/{build}").json()["status"] == "QUEUED"
    code, _, errors = serving.stop()
    assert (code, "no-engine.sock" in errors) == (0, False)


@pytest.mark.docker
def test_a_build_runs_and_its_log_can_be_followed(serve, busybox):
    serving = serve("--sandbox", "host", "--auth", "none")
    with api(serving) as http:
        steps = {"steps": [{"name": busybox, "args": ["echo", "hello $PROJECT_ID"]}]}
        made = http.post("/v1/projects/p/builds", json=steps).json()
        build = made["metadata"]["build"]["id"]
        with http.stream("GET", f"/buildrunner/v1/projects/p/builds/{build}/log/stream") as stream:
            followed = "".join(stream.iter_text())
        assert "hello p" in followed
        assert http.get(f"/v1/projects/p/builds/{build}").json()["status"] == "SUCCESS"
        counted = 'buildrunner_builds_ended_total{status="SUCCESS"} 1.0'
        wait_until(lambda: counted in http.get("/metrics").text)  # counted once it is saved


def ended(http, made):
    """The build of an operation, once its log has ended."""
    build = made.json()["metadata"]["build"]["id"]
    with http.stream("GET", f"/buildrunner/v1/projects/p/builds/{build}/log/stream") as stream:
        followed = "".join(stream.iter_text())
    return http.get(f"/v1/projects/p/builds/{build}").json(), followed


@pytest.mark.docker
def test_a_trigger_builds_the_config_of_its_repository(serve, busybox, tmp_path):
    folder = tmp_path / "repository"
    (folder / "ci").mkdir(parents=True)
    config = {
        "steps": [{"name": busybox, "args": ["echo", "$BRANCH_NAME-$_X-$TRIGGER_NAME"]}],
        "substitutions": {"_X": "file"},
    }
    (folder / "ci" / "build.json").write_text(json.dumps(config))
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    trigger = {
        "name": "t",
        "filename": "ci/build.json",
        "sourceToBuild": {"uri": f"file://{folder}", "ref": "refs/heads/main"},
        "substitutions": {"_X": "trigger"},
    }
    serving = serve("--sandbox", "host", "--auth", "none", "--allow-private-sources")
    with api(serving) as http:
        assert http.post("/v1/projects/p/triggers", json=trigger).status_code == 200
        build, log = ended(http, http.post("/v1/projects/p/triggers/t:run"))
        assert build["status"] == "SUCCESS", log
        assert "main-trigger-t" in log
        assert build["steps"][0]["args"] == ["echo", "main-trigger-t"]
        commit = build["sourceProvenance"]["resolvedGitSource"]["revision"]
        assert build["substitutions"]["COMMIT_SHA"] == commit

        (folder / "more").write_text("")
        again, _ = ended(http, http.post(f"/v1/projects/p/builds/{build['id']}:retry"))
        assert again["substitutions"]["COMMIT_SHA"] == commit


@pytest.mark.docker
def test_values_that_the_service_sets_can_be_given_by_api(serve, busybox):
    body = {
        "steps": [{"name": busybox, "args": ["echo", "on $BRANCH_NAME"]}],
        "substitutions": {"BRANCH_NAME": "dev"},
    }
    with api(serve("--sandbox", "host", "--auth", "none")) as http:
        build, log = ended(http, http.post("/v1/projects/p/builds", json=body))
    assert build["status"] == "SUCCESS", log
    assert "on dev" in log


@pytest.mark.docker
def test_what_the_server_may_not_fetch_from_is_not_fetched(serve, busybox):
    step = {"name": busybox, "args": ["true"]}
    inside = {"gitSource": {"url": "http://localhost/r"}}
    with api(serve("--sandbox", "host", "--auth", "none")) as http:
        answer = http.post("/v1/projects/p/builds", json={"steps": [step], "source": inside})
    assert answer.status_code == 400
    assert "builds may not reach" in answer.json()["error"]["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_success_though_somebody_follows_a_log(serve, number):
    serving = serve("--sandbox", "host", "--auth", "none", "--max-builds", "1")
    with api(serving) as http:
        trigger = {"name": "t", "build": STEPS, "approvalConfig": {"approvalRequired": True}}
        http.post("/v1/projects/p/triggers", json=trigger)
        made = http.post("/v1/projects/p/triggers/t:run").json()["metadata"]["build"]["id"]
        with http.stream("GET", f"/buildrunner/v1/projects/p/builds/{made}/log/stream") as stream:
            lines = stream.iter_lines()
            assert next(lines)
            code, _, errors = serving.stop(number)
    assert code == 0, errors
    assert "Traceback" not in errors


@pytest.mark.docker
def test_a_server_that_drains_sees_its_builds_to_their_end(serve, busybox, tmp_path):
    serving = serve("--sandbox", "host", "--auth", "none", "--drain", "100")
    step = {"name": busybox, "args": ["sh", "-c", "echo begun; sleep 2; echo done"]}
    with api(serving) as http:
        made = http.post("/v1/projects/p/builds", json={"steps": [step]}).json()
        build = made["metadata"]["build"]["id"]
        with http.stream("GET", f"/buildrunner/v1/projects/p/builds/{build}/log/stream") as stream:
            followed, requested = "", False
            for text in stream.iter_text():
                followed += text
                if "begun" in followed and not requested:
                    serving.process.send_signal(signal.SIGTERM)
                    requested = True
    # The API answered while it drained: the log came to its end.
    assert "event: end" in followed
    _, errors = serving.process.communicate(timeout=DEADLINE_S)
    assert serving.process.returncode == 0, errors
    store = open_store(f"sqlite:///{tmp_path}/data/server.db")
    assert store.builds.find(build).status == "SUCCESS"
    store.close()


def refused(*args, **env):
    done = subprocess.run(
        [sys.executable, "-m", "buildrunner", *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--auth", "none", "--host", "0.0.0.0"], "every user who can connect"),
        (["--port", "70000"], "--port takes a number up to 65535"),
        (["--max-builds", "-1"], "--max-builds takes a number from 0 on"),
        (["--spare-sandboxes", "-1"], "--spare-sandboxes takes a number from 0 on"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "none.pem can't be read"),
        (["--public-url", "builds"], "--public-url takes https://HOST"),
        (["--host", "no such host"], "is no address"),
        (["--database", "mysql://x"], "mysql"),
        (["--sandbox", "vm"], "--sandbox"),
        (["--sandbox", "none", "--max-builds", "2"], "leave out --max-builds"),
    ],
)
def test_what_can_not_be_is_one_sentence(tmp_path, args, text):
    code, errors = refused("serve", "--data", str(tmp_path), "--port", "0", *args)
    assert code == 2, errors
    assert text in errors


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, errors = refused("serve", "--data", str(tmp_path), "--port", str(port))
    assert code == 2
    assert f"port {port} of 127.0.0.1 is taken" in errors


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    code, errors = refused("serve", "--data", str(tmp_path / "file" / "data"), "--port", "0")
    assert code == 3
    assert str(tmp_path / "file") in errors


def test_one_folder_has_one_server(serve, tmp_path):
    serve("--sandbox", "host")
    code, errors = refused("serve", "--data", str(tmp_path / "data"), "--port", "0")
    assert code == 3
    assert "another server" in errors


def test_tokens_and_audit_work_beside_the_server(serve, tmp_path):
    place = ["--data", str(tmp_path / "data")]
    code, errors = refused("tokens", "list", *place)
    assert code == 2
    assert "there is no server" in errors
    serving = serve("--sandbox", "host")

    def run(*args):
        done = subprocess.run(
            [sys.executable, "-m", "buildrunner", *args, *place],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    serving.token = run("tokens", "create", "ci", "--scope", "read", "--project", "p").strip()
    with api(serving) as http:
        assert http.get("/v1/projects/p/builds").status_code == 200
        assert http.get("/v1/projects/q/builds").status_code == 403
        assert "ci" in run("tokens", "list")
        run("tokens", "revoke", "ci")
        assert http.get("/v1/projects/p/builds").status_code == 401
    audit = run("audit")
    assert [line.split()[3] for line in audit.splitlines()[1:]] == [
        "tokens.revoke",
        "tokens.create",
        "tokens.create",
    ]


def test_the_server_s_log_can_be_json_and_holds_no_token(serve):
    serving = serve("--sandbox", "host", "--log-format", "json")
    with api(serving) as http:
        http.get("/v1/projects/p/builds?pageSize=3")
    _, _, errors = serving.stop()
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    (request,) = [line["request"] for line in lines if "request" in line]
    assert request["path"] == "/v1/projects/p/builds?pageSize=3"
    assert (request["method"], request["code"], request["caller"]) == ("GET", 200, "admin")
    assert serving.token not in errors


def test_https_by_flags(serve, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    serving = serve("--sandbox", "host", "--tls-cert", str(cert), "--tls-key", str(key))
    assert serving.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(cert))
    with httpx.Client(base_url=serving.url, verify=context, timeout=DEADLINE_S) as http:
        assert http.get("/healthz").json() == {"status": "ok"}


def test_the_database_may_be_postgresql(serve, postgres_url):
    serving = serve("--sandbox", "host", env={"BUILDRUNNER_DATABASE": postgres_url})
    with api(serving) as http:
        assert http.get("/readyz").json() == {"status": "ready", "problems": []}
    store = open_store(postgres_url)
    assert [token.name for token in store.tokens.all()] == ["admin"]
    store.close()
