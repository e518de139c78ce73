"""Logins in a Docker config that steps wrote."""

from __future__ import annotations

import base64
import json

import pytest

from buildrunner.containers.protocol import RegistryLogin
from buildrunner.registries.logins import DockerLogins, parse_docker_config

AUTH = base64.b64encode(b"me:pass:word").decode()


def parsed(content: object) -> DockerLogins:
    return parse_docker_config(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("host:5000", "host:5000/app:1"),
        ("https://host:5000", "host:5000/app"),
        ("http://host:5000/v2/", "host:5000/a/b@sha256:0"),
        ("https://index.docker.io/v1/", "someone/app"),
        ("docker.io", "busybox"),
    ],
)
def test_a_registry_is_known_by_all_its_spellings(name, image):
    login = parsed({"auths": {name: {"auth": AUTH}}}).login_for(image)
    assert login == RegistryLogin(username="me", password="pass:word")


def test_what_is_null_is_none_and_a_login_may_have_line_breaks():
    auths = {"host:5000": {"auth": f"{AUTH[:8]}\n{AUTH[8:]}\n"}, "other": None}
    logins = parsed({"auths": auths, "credsStore": None, "credHelpers": None})
    assert logins.login_for("host:5000/app") == RegistryLogin(username="me", password="pass:word")
    assert logins.warnings_for(["host:5000/app", "other.example/app"]) == []


def test_other_registries_have_none():
    logins = parsed({"auths": {"host:5000": {"auth": AUTH}, "empty.example": {}}})
    assert logins.login_for("host/app") is None
    assert logins.login_for("empty.example/app") is None
    assert DockerLogins().login_for("app") is None


def test_tokens_and_open_passwords_are_read():
    token = parsed({"auths": {"h.example": {"auth": AUTH, "identitytoken": "tok"}}})
    assert token.login_for("h.example/a") == RegistryLogin(identity_token="tok")
    plain = parsed({"auths": {"h.example": {"username": "u", "password": "p"}}})
    assert plain.login_for("h.example/a") == RegistryLogin(username="u", password="p")


def test_a_login_does_not_show_its_password():
    assert "pass" not in repr(RegistryLogin(username="u", password="pass", identity_token="pass"))


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b'{"auths": {"h": {"auth": "%%"}}}', b'{"auths": {"h": {"auth": "/w=="}}}'],
)
def test_what_is_no_config_gives_a_warning_without_its_content(data):
    logins = parse_docker_config(data)
    assert logins.login_for("h.example/a") is None
    assert logins.warnings_for(["h.example/a"]) == [
        "the steps' ~/.docker/config.json is not used: it is no valid Docker config"
    ]


def test_helpers_are_named_for_the_registries_that_are_pushed_to():
    logins = parsed({"auths": {"a.example": {"auth": AUTH}}, "credsStore": "desktop",
                     "credHelpers": {"b.example": "gcloud"}})  # fmt: skip
    warnings = logins.warnings_for(["a.example/x", "b.example/x:1", "b.example/x:2", "c.example/x"])
    assert [("b.example" in text, "docker-credential-" in text) for text in warnings] == [
        (True, True),
        (False, True),
    ]
    assert parsed({}).warnings_for(["b.example/x"]) == []
