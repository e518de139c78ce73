"""A real ``git push`` to a bare repository, whose hook tells a real server, which builds it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import DEADLINE_S
from tests.fixtures_git import HttpServer, Repository, closing, git
from tests.fixtures_google import write_certificate
from tests.http_receivers import receiver


class Place:
    """A server's process, its user's folders, and a bare repository.

    Attributes:
        http: a client of the server.
        repository: the bare repository, and a working copy.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "XDG_DATA_HOME": str(folder / "xdg-data"),
            "XDG_CONFIG_HOME": str(folder / "xdg-config"),
            "XDG_CACHE_HOME": str(folder / "xdg-cache"),
            "BUILDRUNNER_DATABASE": "",
            "BUILDRUNNER_SERVER": "",
        }
        self.repository = Repository(folder, "app.git")
        self.url = ""
        self.http = httpx.Client()
        self._process: subprocess.Popen[str] | None = None

    def serve(self, port: int = 0, reconcile_every: int = 0) -> None:
        """Start the server."""
        command = [
            *(sys.executable, "-m", "buildrunner", "serve"),
            *("--port", str(port), "--data", str(self.folder / "data")),
            *("--sandbox", "host", "--auth", "none", "--allow-private-sources"),
            *("--reconcile-every", str(reconcile_every)),
        ]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environ, text=True
        )
        watchdog = threading.Timer(DEADLINE_S, self._process.kill)
        watchdog.start()
        said = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said += line
            if line.startswith("Submit a folder"):
                break
        watchdog.cancel()
        found = re.search(r"serves (\S+) ", said)
        assert found, said
        self.url = found.group(1)
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE_S)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self, *, kill: bool = False) -> None:
        self.http.close()
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        self._process.communicate(timeout=DEADLINE_S)
        self._process = None

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "buildrunner", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        )

    def builds(self) -> list[Any]:
        return list(self.http.get("/v1/projects/p/builds").json().get("builds", []))

    def wait(self, ready: Callable[[], Any]) -> Any:
        """What ``ready`` gives once it gives something."""
        deadline = time.monotonic() + DEADLINE_S
        pause = threading.Event()
        while not (found := ready()):
            assert time.monotonic() < deadline
            pause.wait(0.1)  # each look costs the server 5 ms
        return found

    def ended(self, number: int) -> list[Any]:
        """The project's builds, newest first, once there are so many and all have ended."""

        def ready() -> list[Any]:
            found = self.builds()
            done = all("finishTime" in one for one in found)
            return found if len(found) >= number and done else []

        return list(self.wait(ready))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.stop()


def config(image: str, *words: str) -> dict[str | bytes, bytes]:
    step = {"name": image, "args": ["echo", *words]}
    return {"cloudbuild.json": json.dumps({"steps": [step]}).encode()}


def trigger(**fields: Any) -> dict[str, Any]:
    return {
        "name": "ci",
        "filename": "cloudbuild.json",
        "repositoryEventConfig": {"repository": "app", "push": {"branch": "^main$"}},
        **fields,
    }


@pytest.mark.docker
def test_a_push_to_a_bare_repository_builds_its_commit(place: Place, busybox: str) -> None:
    place.serve()
    place.run("triggers", "install-hook", str(place.repository.path), "--server", place.url)
    assert place.http.post("/v1/projects/p/triggers", json=trigger()).status_code == 200
    commit = place.repository.commit(config(busybox, "built $SHORT_SHA of $BRANCH_NAME"))
    place.repository.push("main")
    (build,) = place.ended(1)
    assert build["status"] == "SUCCESS"
    assert build["substitutions"]["COMMIT_SHA"] == commit
    assert build["steps"][0]["args"] == ["echo", f"built {commit[:7]} of main"]
    log = place.http.get(f"/buildrunner/v1/projects/p/builds/{build['id']}/log").text
    assert f"built {commit[:7]} of main" in log

    place.repository.commit({"x": b"1"}, "change [skip ci]")
    # A name in Latin-1 can't be told of, and hides no other.
    place.repository.push("main", "main:other", "main:refs/heads/caf\udce9")

    def told(number: int) -> Any:
        listed = place.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
        return len(listed) >= number and listed[0]["status"] == "handled" and listed[0]

    newest = place.wait(lambda: told(3))
    shown = place.run("deliveries", "show", str(newest["number"]), "--server", place.url).stdout
    assert "[skip ci] is in the message of the head commit" in shown
    assert "branch other does not match ^main$" in shown

    git(place.repository.path, "config", "receive.advertisePushOptions", "true")
    place.repository.commit({"x": b"2"})
    place.repository.push("-o", "caf\udce9", "-o", "ci.skip", "main")
    newest = place.wait(lambda: told(4))
    shown = place.run("deliveries", "show", str(newest["number"]), "--server", place.url).stdout
    assert "it was pushed with the option ci.skip" in shown
    assert len(place.builds()) == 1


@pytest.mark.docker
def test_bindings_of_a_repositorys_own_config_are_filled_from_the_event_as_data(
    place: Place, busybox: str
) -> None:
    place.serve()
    place.run("triggers", "install-hook", str(place.repository.path), "--server", place.url)
    any_branch = {"repository": "app", "push": {"branch": "."}}
    given = {"_GIVEN": "by the trigger"}
    body = trigger(repositoryEventConfig=any_branch, substitutions=given)
    assert place.http.post("/v1/projects/p/triggers", json=body).status_code == 200
    files = config(busybox, "$_SAYS", "$_SHORT", "[$_NONE]", "$_GIVEN")
    build = json.loads(files["cloudbuild.json"])
    build["substitutions"] = {
        "_SAYS": "$(push.message)",
        "_SHORT": "${_REF##*/}",
        "_REF": "$(push.ref)",
        "_NONE": "$(push.none)",
        "_GIVEN": "$(push.message)",
    }
    place.repository.commit(
        {"cloudbuild.json": json.dumps(build).encode()}, "a ${_REF} $(push.ref)"
    )
    place.repository.push("main:one", "main:refs/heads/two/three")  # one delivery, two events
    made = place.ended(2)
    assert sorted(one["steps"][0]["args"][2] for one in made) == ["one", "three"]
    for one in made:
        assert one["status"] == "SUCCESS"
        assert one["steps"][0]["args"][1] == "a ${_REF} $(push.ref)"
        assert one["steps"][0]["args"][3:] == ["[]", "by the trigger"]
        assert [warning["text"] for warning in one["warnings"]] == [
            "$(push.none) is not in the event: empty"
        ]


@pytest.mark.docker
def test_what_was_pushed_while_the_server_was_down_is_built_once(
    place: Place, busybox: str
) -> None:
    place.serve()
    place.run("triggers", "install-hook", str(place.repository.path), "--server", place.url)
    place.http.post("/v1/projects/p/triggers", json=trigger())
    place.repository.commit(config(busybox, "one"))
    place.repository.push("main")
    place.ended(1)
    port = place.port
    place.stop(kill=True)
    hook = place.repository.path / "hooks" / "post-receive"
    hook.chmod(0o644)  # else it would tell the server once it is back
    for word in ("two", "three"):
        place.repository.commit(config(busybox, word))
        place.repository.push("main")
    hook.chmod(0o755)
    place.serve(port, reconcile_every=1)
    found = place.ended(2)
    assert [one["steps"][0]["args"][1] for one in found] == ["three", "one"]
    place.repository.commit(config(busybox, "four"))
    place.repository.push("main")
    place.ended(3)
    hooks = [
        one["hook"]
        for one in place.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
        if one["builds"]
    ]
    assert hooks[1:] == ["reconcile", "git/app"]
    assert len(hooks) == 3  # the last one is of whoever was first: both never build it


@pytest.mark.docker
@pytest.mark.parametrize("is_empty", [True, False])
def test_the_first_push_after_the_installation_is_not_missed(
    place: Place, busybox: str, is_empty: bool
) -> None:
    if not is_empty:
        place.repository.commit(config(busybox, "old"))
        place.repository.push("main", "main:other")
    place.serve()
    said = place.run("triggers", "install-hook", str(place.repository.path), "--server", place.url)
    assert "does not take it" not in said.stderr
    any_branch = {"repository": "app", "push": {"branch": "."}}
    place.http.post("/v1/projects/p/triggers", json=trigger(repositoryEventConfig=any_branch))
    port = place.port
    place.stop()
    (place.repository.path / "hooks" / "post-receive").chmod(0o644)
    place.repository.commit(config(busybox, "missed"))
    place.repository.push("main:new")
    place.serve(port, reconcile_every=1)
    (build,) = place.ended(1)
    assert build["steps"][0]["args"] == ["echo", "missed"]
    assert build["substitutions"]["BRANCH_NAME"] == "new"


def test_a_server_that_is_not_there_yet_is_told_of_at_the_installation(place: Place) -> None:
    said = place.run(
        *("triggers", "install-hook", str(place.repository.path)),
        *("--server", "http://127.0.0.1:9"),
    )
    assert "The server does not accept reports of the hook yet" in said.stderr
    assert "is not bare" not in said.stderr


def test_the_hook_trusts_the_certificate_that_it_was_installed_with(place: Place) -> None:
    certificate = place.folder / "server.pem"
    write_certificate(certificate)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with receiver(tls) as server:
        command = ("triggers", "install-hook", str(place.repository.path), "--server", server.url)
        assert "certificate verify failed" in place.run(*command).stderr
        trusting = place.run(*command, "--ca-file", str(certificate))
        assert "does not take it" not in trusting.stderr
        certificate.unlink()  # the hook has a copy
        place.repository.commit({"a": b"1"})
        place.repository.push("main")
        told = place.wait(lambda: len(server.received) > 1 and server.received)
        assert [one.path for one in told] == ["/hooks/git/app"] * 2
    certificate.write_text("nothing\n")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        place.run(*command, "--ca-file", str(certificate))
    assert "holds no certificate" in caught.value.stderr


def test_of_a_repository_that_is_not_bare_it_is_said_what_counts(place: Place) -> None:
    work = place.folder / "work"
    subprocess.run(["git", "init", "--quiet", str(work)], check=True)
    said = place.run("triggers", "install-hook", str(work), "--server", "http://127.0.0.1:9")
    assert "the hook reports pushes to it, and not commits in it" in said.stderr


def test_the_hook_keeps_what_was_there_and_goes_again(place: Place) -> None:
    hooks = place.repository.path / "hooks"
    hooks.mkdir(exist_ok=True)
    told = place.folder / "told"
    before = f"#!/bin/sh\ncat >> {told}\n"
    (hooks / "post-receive").write_text(before)
    (hooks / "post-receive").chmod(0o755)
    for _ in range(2):  # a second time changes nothing
        place.run(
            *("triggers", "install-hook", str(place.repository.path)),
            *("--server", "http://127.0.0.1:9", "--name", "shop"),
        )
    settings = hooks / "buildrunner.json"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    secret = json.loads(settings.read_bytes())["secret"]
    assert secret not in (hooks / "post-receive").read_text()
    assert "hooks-git-shop" in place.run("secrets", "list").stdout
    commit = place.repository.commit({"a": b"1"})
    done = git(place.repository.work, "push", "origin", "main")  # nobody listens: it goes through
    assert done == ""
    assert told.read_text().split() == ["0" * 40, commit, "refs/heads/main"]
    place.run("triggers", "remove-hook", str(place.repository.path))
    assert (hooks / "post-receive").read_text() == before
    assert not settings.exists()
    said = place.run("triggers", "remove-hook", str(place.repository.path)).stderr
    assert "no hook of buildrunner" in said
    assert (hooks / "post-receive").read_text() == before


def test_whoever_pushes_is_told_when_the_hook_can_not_speak(place: Place) -> None:
    server = ("--server", "http://127.0.0.1:9")
    place.run("triggers", "install-hook", str(place.repository.path), *server)
    settings = place.repository.path / "hooks" / "buildrunner.json"
    settings.chmod(0o640)
    place.run("triggers", "install-hook", str(place.repository.path), *server)
    assert stat.S_IMODE(settings.stat().st_mode) == 0o640  # the group stays let in
    settings.unlink()
    place.repository.commit({"a": b"1"})
    pushed = subprocess.run(
        ["git", "push", "origin", "main"],
        cwd=place.repository.work,
        check=True,
        capture_output=True,
        text=True,
    )
    told = " ".join(line.removeprefix("remote: ").strip() for line in pushed.stderr.splitlines())
    assert f"can't read {settings}" in told.replace("  ", " ")
    assert "this push is not reported to the server" in told


def test_two_repositories_of_one_name_are_not_mixed_up(place: Place) -> None:
    server = ("--server", "http://127.0.0.1:9")
    first, second = (place.folder / folder / "Läden 2.git" for folder in ("a", "b"))
    for one in (first, second):
        subprocess.run(["git", "init", "--quiet", "--bare", str(one)], check=True)
    said = place.run("triggers", "install-hook", str(first), *server)
    assert "{repository: Laden-2, push" in said.stderr
    mine = (first / "hooks" / "buildrunner.json").read_bytes()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        place.run("triggers", "install-hook", str(second), *server)
    assert f'{first} is "Laden-2" on http://127.0.0.1:9 already' in caught.value.stderr
    assert "--name b-Laden-2" in caught.value.stderr
    place.run("triggers", "install-hook", str(second), *server, "--name", "b-Laden-2")
    place.run("triggers", "install-hook", str(first), *server)  # its own name stays its own
    assert (first / "hooks" / "buildrunner.json").read_bytes() == mine
    place.run("triggers", "remove-hook", str(first))
    place.run("triggers", "install-hook", str(second), *server, "--name", "Laden-2")


def test_there_must_be_a_repository(place: Place) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        place.run("triggers", "install-hook", str(place.folder))
    assert caught.value.returncode == 2
    assert "is no Git repository" in caught.value.stderr


def test_no_delivery_is_lost_or_built_twice_when_the_server_is_killed(place: Place) -> None:
    secret = "of-the-hook"
    subprocess.run(
        [sys.executable, "-m", "buildrunner", "secrets", "set", "hooks-github"],
        input=secret.encode(),
        env=place.environ,
        check=True,
        capture_output=True,
    )
    place.serve()
    document = trigger(approvalConfig={"approvalRequired": True}, filename=None)
    document = {
        **{name: value for name, value in document.items() if value},
        "build": {"steps": [{"name": "busybox", "args": ["$_N"]}]},
        "substitutions": {"_N": "$(body.number)"},
        "repositoryEventConfig": {
            "repository": "https://github.com/acme/app",
            "push": {"branch": "."},
        },
    }
    assert place.http.post("/v1/projects/p/triggers", json=document).status_code == 200
    bind(place, "github", owners=["acme"])
    taken = 0
    for number in range(60):
        body = json.dumps(
            {
                "ref": f"refs/heads/b{number}",
                "after": f"{number + 1:040x}",
                "number": number,
                "head_commit": {"id": f"{number + 1:040x}", "message": "change"},
                "repository": {
                    "full_name": "acme/app",
                    "clone_url": "https://github.com/acme/app.git",
                },
            }
        ).encode()
        digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": f"d{number}",
            "X-Hub-Signature-256": f"sha256={digest}",
        }
        answer = place.http.post("/hooks/github", content=body, headers=headers)
        taken += answer.status_code == 200
    place.stop(kill=True)
    assert taken == 60
    place.serve()

    def handled() -> bool:
        listed = place.http.get("/buildrunner/v1/deliveries?limit=100").json()["deliveries"]
        return len(listed) == 60 and all(one["status"] == "handled" for one in listed)

    place.wait(handled)
    builds = place.http.get("/v1/projects/p/builds?pageSize=500").json()["builds"]
    assert sorted(int(one["substitutions"]["_N"]) for one in builds) == list(range(60))


def bind(place: Place, hook: str, **binding: Any) -> None:
    answer = place.http.put(f"/buildrunner/v1/hooks/{hook}", json=binding)
    assert answer.status_code == 200, answer.text


def pull_request(commit: str) -> dict[str, Any]:
    fork, base = {"full_name": "eve/app"}, {"full_name": "acme/app"}
    return {
        "action": "opened",
        "number": 7,
        "repository": base,
        "pull_request": {
            "number": 7,
            "user": {"login": "eve"},
            "author_association": "NONE",
            "base": {"ref": "main", "sha": "a" * 40, "repo": base},
            "head": {"ref": "feat", "sha": commit, "repo": fork},
        },
    }


@pytest.mark.docker
@pytest.mark.parametrize("wants_secret", [False, True])
def test_an_approved_fork_still_has_neither_socket_nor_secrets(
    place: Place, busybox: str, wants_secret: bool
) -> None:
    subprocess.run(
        [sys.executable, "-m", "buildrunner", "secrets", "set", "hooks-github"],
        input=b"of-the-hook",
        env=place.environ,
        check=True,
        capture_output=True,
    )
    settings = Path(place.environ["XDG_CONFIG_HOME"], "buildrunner", "config.toml")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text('[images]\nuntrusted = ["buildrunner-tests/*"]\n')
    place.serve()
    step: dict[str, Any] = {
        "name": busybox,
        "script": "test -S /var/run/docker.sock && echo has-socket || echo no-socket",
    }
    requested: dict[str, Any] = {"steps": [step]}
    if wants_secret:
        version = "projects/p/secrets/hooks-github/versions/latest"
        requested["availableSecrets"] = {"secretManager": [{"versionName": version, "env": "S"}]}
        step["secretEnv"] = ["S"]
    commit = place.repository.commit({"cloudbuild.json": json.dumps(requested).encode()})
    place.repository.push("main")
    (place.folder / "eve").mkdir()
    (place.folder / "eve" / "app.git").symlink_to(place.repository.path)
    with closing(HttpServer(place.folder)) as forge:
        events = {"owner": "acme", "name": "app", "pullRequest": {"branch": "."}}
        document = {"name": "ci", "filename": "cloudbuild.json", "github": events}
        where = {"forge": "github", "forgeHost": forge.base}
        made = place.http.post("/v1/projects/p/triggers", json=document, params=where)
        assert made.status_code == 200, made.text
        bind(place, "github", host=forge.base, owners=["acme"])
        _check_an_approved_fork(place, commit, wants_secret)


def _check_an_approved_fork(place: Place, commit: str, wants_secret: bool) -> None:
    body = json.dumps(pull_request(commit)).encode()
    digest = hmac.new(b"of-the-hook", body, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "pull_request", "X-Hub-Signature-256": f"sha256={digest}"}
    assert place.http.post("/hooks/github", content=body, headers=headers).status_code == 200
    (waiting,) = place.wait(place.builds)
    assert waiting["status"] == "PENDING"
    path = f"/v1/projects/p/builds/{waiting['id']}"
    decision = {"approvalResult": {"decision": "APPROVED"}}
    assert place.http.post(f"{path}:approve", json=decision).status_code == 200
    (build,) = place.ended(1)
    log = place.http.get(f"/buildrunner/v1/projects/p/builds/{build['id']}/log").text
    if wants_secret:
        assert build["status"] == "FAILURE"
        assert "is not trusted gets no secrets" in json.dumps(build)
        assert "of-the-hook" not in log
    else:
        assert build["status"] == "SUCCESS", log
        assert "no-socket" in log
