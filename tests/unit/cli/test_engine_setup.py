"""What begins before the config is read: errors wait for the config's, and nothing stays."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.cli.main import main
from buildrunner.cli.submit.engine_setup import EngineSetup
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.errors import BuildrunnerError, EngineError
from tests.unit.containers.test_guardian import await_exit


def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")


def test_without_an_engine_the_error_comes_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_engine(monkeypatch)
    with EngineSetup("build", metadata=False) as engine_setup, pytest.raises(BuildrunnerError):
        engine_setup.engine()


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
    with EngineSetup("head-start-test", metadata=False) as engine_setup:
        assert engine_setup.engine().endpoint == docker_engine.endpoint
    await_exit(pids[0])
    assert docker_engine.list_owned({"buildrunner.build": "head-start-test"}).networks == ()


class TestTheFirstNestedSandboxOfAMachine:
    """An image is made for it, which takes a minute."""

    @pytest.fixture
    def without_image(
        self, docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
    ) -> DockerEngine:
        def refusing(*_: object, **options: object) -> None:
            assert options["reporter"] is not None
            raise EngineError("no more of it in this test")

        monkeypatch.setattr(wiring, "has_engine_image", lambda _: False)
        monkeypatch.setattr(wiring, "sandbox", refusing)
        return docker_engine

    @pytest.mark.docker
    @pytest.mark.usefixtures("without_image")
    def test_a_wrong_config_is_told_before_the_image_is_made(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "cloudbuild.yaml"
        config.write_text("steps: [{name: $_MISSING}]\n")
        assert main(["submit", str(config), "--no-source", "--sandbox", "nested"]) == 2
        told = capsys.readouterr().err
        assert "_MISSING" in told
        assert "Making the image" not in told

    @pytest.mark.docker
    def test_no_image_is_announced_where_no_sandbox_can_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        info = DockerEngine.info
        monkeypatch.setattr(wiring, "has_engine_image", lambda _: False)
        monkeypatch.setattr(DockerEngine, "info", lambda self: replace(info(self), local=False))
        config = tmp_path / "cloudbuild.yaml"
        config.write_text("steps: [{name: busybox}]\n")
        assert main(["submit", str(config), "--no-source", "--sandbox", "nested"]) == 3
        told = capsys.readouterr().err
        assert "it does not share this machine's files" in told
        assert "Making the image" not in told

    @pytest.mark.docker
    @pytest.mark.usefixtures("without_image")
    def test_then_the_image_is_announced(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "cloudbuild.yaml"
        config.write_text("steps: [{name: busybox}]\n")
        assert main(["submit", str(config), "--no-source", "--sandbox", "nested"]) == 3
        told = capsys.readouterr().err
        assert "Making the image buildrunner/engine" in told
        assert "no more of it in this test" in told
