"""Registry credentials from the Docker config, and from helpers that are run for real."""

from __future__ import annotations

import base64
import json
import os
import select
import threading
from pathlib import Path
from typing import Any

import pytest

from buildrunner.containers import registry_auth as credential_helper
from buildrunner.containers.docker.errors import Stopped
from buildrunner.containers.registry_auth import ANONYMOUS, registry_auth_header
from buildrunner.errors import CredentialsError


def config(folder: Path, content: Any) -> dict[str, str]:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text)
    return {"DOCKER_CONFIG": str(folder)}


def decoded(header: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(base64.urlsafe_b64decode(header))
    return found


def helper(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_without_a_docker_config_nobody_logs_in(tmp_path: Path) -> None:
    assert registry_auth_header("gcr.io", {"DOCKER_CONFIG": str(tmp_path)}) == ANONYMOUS
    assert registry_auth_header("gcr.io", {"HOME": str(tmp_path)}) == ANONYMOUS
    assert registry_auth_header("gcr.io", config(tmp_path, {"currentContext": "x"})) == ANONYMOUS


@pytest.mark.parametrize("name", ["auths", "credHelpers", "credsStore"])
def test_null_in_a_docker_config_is_none(tmp_path: Path, name: str) -> None:
    assert registry_auth_header("gcr.io", config(tmp_path, {name: None})) == ANONYMOUS


def test_a_login_is_for_its_registry_only(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:s3cret").decode()
    environ = config(tmp_path, {"auths": {"host:5000": {"auth": auth}}})
    found = decoded(registry_auth_header("host:5000", environ))
    assert (found["username"], found["password"]) == ("me", "s3cret")
    assert registry_auth_header("other:5000", environ) == ANONYMOUS


def test_a_login_at_docker_hub_is_found_by_its_old_name(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:s3cret").decode()
    environ = config(tmp_path, {"auths": {"https://index.docker.io/v1/": {"auth": auth}}})
    assert decoded(registry_auth_header("docker.io", environ))["username"] == "me"


def test_identity_tokens_are_passed_on(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:").decode()
    entry = {"auth": auth, "identitytoken": "tok"}
    environ = config(tmp_path, {"auths": {"acr.example": entry}})
    assert decoded(registry_auth_header("acr.example", environ)) == {"IdentityToken": "tok"}


def test_a_registrys_own_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '{"Username":"helped","Secret":"by-helper"}'
    helper(tmp_path, "mine", f"cat >/dev/null; echo '{answer}'", monkeypatch)
    environ = config(tmp_path, {"credHelpers": {"host:5000": "mine"}})
    found = decoded(registry_auth_header("host:5000", environ))
    assert (found["username"], found["password"]) == ("helped", "by-helper")


def test_the_store_is_asked_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '{"Username":"<token>","Secret":"identity"}'
    helper(tmp_path, "all", f"cat >/dev/null; echo '{answer}'", monkeypatch)
    environ = config(tmp_path, {"credsStore": "all"})
    found = decoded(registry_auth_header("any.example", environ))
    assert found["identitytoken"] == "identity"


def test_a_helper_that_fails_is_named_and_its_secret_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, "bad", "cat >/dev/null; echo s3cret; exit 1", monkeypatch)
    environ = config(tmp_path, {"credHelpers": {"host:5000": "bad"}})
    with pytest.raises(CredentialsError, match="host:5000") as caught:
        registry_auth_header("host:5000", environ)
    assert "s3cret" not in str(caught.value) + caught.value.hint
    assert "docker login host:5000" in caught.value.hint


def test_a_helper_that_hangs_is_ended_with_all_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "begun")
    helper(tmp_path, "slow", f"sleep 60 & echo $! >{tmp_path}/begun; wait", monkeypatch)
    environ = config(tmp_path, {"credsStore": "slow"})
    cancel = threading.Event()
    child: list[int] = []

    def stop_once_begun() -> None:
        child.append(os.pidfd_open(int((tmp_path / "begun").read_text())))
        cancel.set()

    watcher = threading.Thread(target=stop_once_begun)
    watcher.start()
    with pytest.raises(Stopped):
        registry_auth_header("host:5000", environ, cancel)
    watcher.join()
    ended, _, _ = select.select(child, [], [], 30)  # readable once the process is over
    os.close(child[0])
    assert ended == child


def test_a_helper_has_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, "slow", "sleep 60", monkeypatch)
    monkeypatch.setattr(credential_helper, "_LIMIT_S", 0.05)
    environ = config(tmp_path, {"credsStore": "slow"})
    with pytest.raises(CredentialsError, match=r"docker-credential-slow did not answer in 0\.05 s"):
        registry_auth_header("host:5000", environ)


def test_a_helper_that_is_not_there_is_named(tmp_path: Path) -> None:
    environ = config(tmp_path, {"credsStore": "nosuch-helper"})
    with pytest.raises(CredentialsError, match="nosuch-helper"):
        registry_auth_header("host:5000", environ)


def test_a_broken_docker_config_is_named(tmp_path: Path) -> None:
    environ = config(tmp_path, '{"auths": ')
    with pytest.raises(CredentialsError, match=str(tmp_path / "config.json")):
        registry_auth_header("host:5000", environ)


@pytest.mark.parametrize(
    "entry",
    [{"auth": "!!"}, {"auth": "aHVudGVyMg=="}, {"auth": 7}, {"auth": "w7/Dvw=="}, "hunter2"],
)
def test_an_entry_that_is_no_login_is_an_error_that_does_not_show_it(
    tmp_path: Path, entry: object
) -> None:
    environ = config(tmp_path, {"auths": {"host:5000": entry}})
    with pytest.raises(CredentialsError) as caught:
        registry_auth_header("host:5000", environ)
    assert str(caught.value) == (
        "the credentials for host:5000 can't be had: "
        f"an entry of {tmp_path / 'config.json'} is no login"
    )


@pytest.mark.parametrize("answer", ["", "s3cret", '{"Username": "s3cret"}', "[1]", "{}"])
def test_a_helper_that_answers_nonsense_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    helper(tmp_path, "odd", f"cat >/dev/null; echo '{answer}'", monkeypatch)
    environ = config(tmp_path, {"credHelpers": {"host:5000": "odd"}})
    with pytest.raises(CredentialsError, match="docker-credential-odd failed") as caught:
        registry_auth_header("host:5000", environ)
    assert "s3cret" not in str(caught.value) + caught.value.hint
