"""The Docker config that steps find in their home."""

import base64
import json

import pytest

from buildrunner.containers.registry_auth import step_docker_config

AUTH = base64.b64encode(b"user:password").decode()


def given(folder, config):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    made = step_docker_config({"DOCKER_CONFIG": str(folder)}, ["registry.example/app:1", "busybox"])
    return None if made is None else json.loads(made)


def test_plain_credentials_are_taken_over(tmp_path):
    config = {"auths": {"registry.example": {"auth": AUTH}}, "proxies": {"x": 1}}
    assert given(tmp_path, config) == {"auths": {"registry.example": {"auth": AUTH}}}


@pytest.mark.parametrize("config", ["", "{", "{}", '{"auths": {}}', '{"auths": {"a": {}}}', "[]"])
def test_without_credentials_there_is_no_file(tmp_path, config):
    assert given(tmp_path, config) is None


def test_without_a_config_there_is_no_file(tmp_path):
    assert step_docker_config({"DOCKER_CONFIG": str(tmp_path)}, ["registry.example/app"]) is None


def test_registries_that_the_build_does_not_name_are_left_out(tmp_path):
    config = {"auths": {"other.example": {"auth": AUTH}, "registry.example": {"auth": AUTH}}}
    assert list(given(tmp_path, config)["auths"]) == ["registry.example"]


def test_docker_hub_is_found_by_its_old_name(tmp_path):
    name = "https://index.docker.io/v1/"
    assert list(given(tmp_path, {"auths": {name: {"auth": AUTH}}})["auths"]) == [name]


def helper(folder, monkeypatch, script):
    program = folder / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_what_a_helper_knows_is_written_out(tmp_path, monkeypatch):
    answer = '{"ServerURL": "registry.example", "Username": "user", "Secret": "password"}'
    helper(tmp_path, monkeypatch, f"cat >/dev/null; echo '{answer}'\n")
    config = {"credHelpers": {"registry.example": "test"}}
    assert given(tmp_path, config) == {"auths": {"registry.example": {"auth": AUTH}}}


def test_a_helper_that_fails_gives_nothing(tmp_path, monkeypatch):
    helper(tmp_path, monkeypatch, "cat >/dev/null; echo broken >&2; exit 1\n")
    assert given(tmp_path, {"credHelpers": {"registry.example": "test"}}) is None
