"""What begins before the config is read: errors wait for the config's, and nothing stays."""

from pathlib import Path

import pytest

from buildrunner import wiring
from buildrunner.build_run.head_start import HeadStart
from buildrunner.cli.main import main
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.errors import BuildrunnerError
from tests.unit.containers.test_guardian import await_exit


def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")


def test_without_an_engine_the_error_comes_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_engine(monkeypatch)
    with HeadStart("build", metadata=False) as head_start, pytest.raises(BuildrunnerError):
        head_start.engine()


def test_a_wrong_config_is_told_before_a_missing_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_engine(monkeypatch)
    config = tmp_path / "cloudbuild.yaml"
    config.write_text("stpes: []\n")
    assert main(["submit", str(config), "--no-source"]) == 2
    assert "did you mean steps?" in capsys.readouterr().err


@pytest.mark.docker
def test_the_guardian_ends_with_it(
    docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = []
    start = wiring.guardian

    def starting(*arguments: object, **options: object) -> object:
        guardian = start(*arguments, **options)  # type: ignore[arg-type]
        pids.append(guardian.pid)
        return guardian

    monkeypatch.setattr(wiring, "guardian", starting)
    with HeadStart("head-start-test", metadata=False) as head_start:
        assert head_start.engine().endpoint == docker_engine.endpoint
    await_exit(pids[0])
    assert docker_engine.list_owned({"buildrunner.build": "head-start-test"}).networks == ()
