from __future__ import annotations

import json
import os

import pytest

from buildrunner.cli.doctor import (
    check_builders,
    check_credentials,
    check_data_folder,
    check_disk_limit,
    check_engine,
    check_git,
    check_isolation,
    check_machine,
    check_settings,
)
from buildrunner.containers.protocol import EngineInfo


@pytest.fixture
def docker_config(tmp_path):
    def write(content: object) -> dict[str, str]:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "config.json").write_text(text)
        return {"DOCKER_CONFIG": str(tmp_path), "PATH": str(tmp_path)}

    return write


def engine(**changes) -> EngineInfo:
    fields = {
        "name": "docker",
        "version": "20.10.24",
        "api_version": "1.41",
        "local": True,
        "data_root": "/nowhere/docker",
        "storage_driver": "overlay2",
        "cpus": 2,
        "memory_bytes": 8 * 2**30,
    }
    return EngineInfo(**{**fields, **changes})


def test_an_engine_is_described_with_its_storage() -> None:
    found = check_engine(engine())
    assert [finding.verdict for finding in found] == ["ok", "ok"]
    assert "docker 20.10.24, API 1.41, 2 processors, 8.0 GiB" in found[0].text
    assert "overlay2" in found[1].text


def test_the_containerd_store_is_named() -> None:
    found = check_engine(engine(storage_driver="overlayfs", containerd_images=True))
    assert found[1].text.startswith("containerd image store in ")


@pytest.mark.parametrize(
    ("changes", "text", "advice"),
    [
        ({"local": False}, "--sandbox nested is not possible", "--sandbox host works"),
        ({"rootless": True}, "--sandbox nested is not possible", "runs as root on this machine"),
        (
            {"socket_path": "", "no_socket": "the engine does not report its socket"},
            "steps can't use the engine",
            "The engine does not report its socket",
        ),
        ({"limits_resources": False}, "limits of memory", "Delegate control groups"),
        ({"has_buildkit": False}, "steps can't build with BuildKit", "Plain `docker build` works"),
    ],
)
def test_what_will_not_work_on_an_engine_is_told_with_its_cure(changes, text, advice) -> None:
    *_, found = check_engine(engine(**changes))
    assert (found.verdict, found.subject) == ("warn", "engine limits")
    assert found.text.startswith(text)
    assert advice in found.advice


def test_a_storage_driver_that_copies_whole_images_is_warned_about() -> None:
    found = check_engine(engine(storage_driver="vfs"))
    assert (found[1].verdict, "overlay2" in found[1].advice) == ("warn", True)


@pytest.mark.parametrize(
    ("limit", "verdict"), [("ENGINE_DISK_WARN", "warn"), ("ENGINE_DISK_FAIL", "fail")]
)
def test_an_engine_whose_disk_fills_up_is_told_of(monkeypatch, tmp_path, limit, verdict) -> None:
    # More than any disk has, so that this machine's real one counts as nearly full.
    monkeypatch.setattr(f"buildrunner.cli.doctor.{limit}", 10**30)
    found = check_engine(engine(local=True, data_root=str(tmp_path)))
    assert found[1].verdict == verdict
    assert "docker system df" in found[1].advice


def test_no_engine_is_a_failure_that_says_what_to_do(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    found = {finding.subject: finding for finding in check_machine(os.environ, str(tmp_path))}
    assert found["engine"].verdict == "fail"
    assert f"{tmp_path}/nothing.sock" in found["engine"].text
    assert found["engine"].advice
    assert "builder images" not in found


def test_missing_builder_images_are_named() -> None:
    found = check_builders(lambda name: name != "buildrunner/git:latest")
    assert found.verdict == "warn"
    assert "1 of" in found.text
    assert found.text.endswith("git")
    assert "buildrunner builders install" in found.advice
    assert check_builders(lambda name: True).verdict == "ok"


def test_no_docker_config_means_public_registries(tmp_path) -> None:
    found = check_credentials({"DOCKER_CONFIG": str(tmp_path)})
    assert found.verdict == "ok"
    assert "public" in found.text


def test_registries_are_named_and_their_secrets_are_not(docker_config) -> None:
    environ = docker_config({"auths": {"registry.test": {"auth": "c2VjcmV0"}}})
    found = check_credentials(environ)
    assert found.verdict == "ok"
    assert "registry.test" in found.text
    assert "c2VjcmV0" not in str(found.as_dict())


def test_a_broken_docker_config_is_a_failure(docker_config) -> None:
    found = check_credentials(docker_config("{"))
    assert (found.verdict, "config.json" in found.text) == ("fail", True)


def test_a_credential_helper_that_is_missing_is_named(docker_config, tmp_path) -> None:
    environ = docker_config({"credHelpers": {"gcr.io": "gcloud", "ecr.test": "ecr"}})
    helper = tmp_path / "docker-credential-gcloud"
    helper.write_text("#!/bin/sh\n")
    helper.chmod(0o755)
    found = check_credentials(environ)
    assert found.verdict == "warn"
    assert "docker-credential-ecr" in found.text
    assert "docker-credential-gcloud" not in found.text


def test_a_missing_store_of_all_credentials_is_a_failure(docker_config) -> None:
    assert check_credentials(docker_config({"credsStore": "desktop"})).verdict == "fail"


def test_a_data_folder_need_not_exist_yet(tmp_path) -> None:
    found = check_data_folder({"XDG_DATA_HOME": str(tmp_path / "not" / "yet")})
    assert found.verdict == "ok"
    assert "not/yet/buildrunner" in found.text


def test_a_data_folder_on_a_full_disk_is_a_failure(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("buildrunner.cli.doctor.DATA_DISK_FAIL", 10**30)
    found = check_data_folder({"XDG_DATA_HOME": str(tmp_path)})
    assert (found.verdict, "XDG_DATA_HOME" in found.advice) == ("fail", True)


def test_git_is_found_on_path_or_missed(tmp_path) -> None:
    assert check_git({"PATH": str(tmp_path)}).verdict == "warn"
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho git version 9.9\n")
    git.chmod(0o755)
    assert check_git({"PATH": str(tmp_path)}).text == f"9.9 ({git})"


def test_a_settings_file_with_an_unknown_key_is_a_failure(tmp_path) -> None:
    (tmp_path / ".buildrunner.toml").write_text('[images]\nalias = "x"\n')
    found = check_settings(str(tmp_path), {"HOME": str(tmp_path)})
    assert found.verdict == "fail"
    assert ".buildrunner.toml" in found.text


@pytest.mark.parametrize(
    ("isolation", "verdict", "word"),
    [
        ("user-namespace", "ok", "no rights"),
        ("capabilities", "warn", "root of this machine"),
        ("privileged", "warn", "root of this machine"),
        ("", "ok", "not known yet"),
    ],
)
def test_the_isolation_of_sandboxes_is_told(isolation: str, verdict: str, word: str) -> None:
    found = check_isolation(isolation)
    assert found.verdict == verdict
    assert word in found.text


@pytest.mark.parametrize(
    ("isolation", "why", "verdict", "text"),
    [
        ("user-namespace", "", "ok", "each nested sandbox of a server has its own file system"),
        ("user-namespace", "mkfs.ext4 is not installed", "warn", "mkfs.ext4 is not installed"),
        ("capabilities", "", "warn", "sandboxes are isolated by capabilities only"),
    ],
)
def test_whether_files_can_be_hidden_from_the_limit_of_the_disk_is_said(
    isolation: str, why: str, verdict: str, text: str
) -> None:
    found = check_disk_limit(isolation, why)
    assert (found.verdict, found.subject) == (verdict, "disk limit")
    assert text in found.text
    assert ("a file system of its own" in found.advice) is (verdict == "warn")
