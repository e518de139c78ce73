"""What the server's page shows of its settings: values as they hold, and where they came from."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from buildrunner.cli.serve import settings as serve_settings
from buildrunner.cli.serve.settings import shown_settings
from buildrunner.server.context import ServerSettings
from buildrunner.settings import WorkerSettings, own_settings, setting_origins

PASSWORD = "hunter22"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "from-environment")
    monkeypatch.delenv("CLOUDSDK_CORE_PROJECT", raising=False)
    path = tmp_path / "buildrunner/config.toml"
    path.parent.mkdir()
    path.write_text('[sandbox]\nprivileged = true\n[secrets]\nkey = "env:KEY"\n')
    return path


def test_each_value_names_its_flag_its_file_or_its_variable(config: Path) -> None:
    parser = argparse.ArgumentParser()
    serve_settings.add_flags(parser)
    argv = ["--max-builds", "4", "--database=postgresql://me@db/x"]
    args = parser.parse_args(argv)
    worker = WorkerSettings(
        data="/srv", database=f"postgresql://me:{PASSWORD}@db/x", sandbox="host"
    )
    server = ServerSettings(max_builds=4)
    shown = {
        one.name: (one.value, one.origin)
        for one in shown_settings(args, argv, worker, server, own_settings())
    }
    assert shown["max-builds"] == ("4", "--max-builds")
    assert shown["database"] == ("postgresql://me:***@db/x", "--database")
    assert shown["data"] == ("/srv", "default")
    assert shown["sandbox.privileged"] == ("true", str(config))
    assert shown["secrets"] == ("key = env:KEY", str(config))
    assert shown["project.id"] == ("from-environment", "$GOOGLE_CLOUD_PROJECT")
    assert shown["storage.folders"] == ("none", "default")
    assert PASSWORD not in str(shown)


def test_every_flag_of_serve_is_shown(config: Path) -> None:
    parser = argparse.ArgumentParser()
    serve_settings.add_flags(parser)
    args = parser.parse_args([])
    worker = WorkerSettings(data="/srv", database="sqlite:////srv/server.db", sandbox="host")
    shown = shown_settings(args, [], worker, ServerSettings(), own_settings())
    flags = {name.replace("_", "-") for name in vars(args)}
    assert flags - {one.name for one in shown} == set()


def test_a_file_of_the_folder_is_no_setting_of_a_server(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".buildrunner.toml").write_text("[sandbox]\nprivileged = false\n")
    monkeypatch.chdir(folder)
    assert own_settings().privileged
    assert setting_origins()["privileged"] == str(config)
