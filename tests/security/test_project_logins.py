"""Attacks of one project's builds on the registry logins and private images of another."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from buildrunner import wiring
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, RegistryLogin
from buildrunner.engine.cancellation import CancelToken
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.errors import UsageError
from buildrunner.settings import Settings, own_settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Status
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.program import RunWiring, ServerProgram, ServerSources
from tests.conftest import Registry, start_registry, stop
from tests.registry_servers import HTPASSWD, PASSWORD, USER
from tests.security.server_build import TEST_IMAGES, Log

pytestmark = pytest.mark.docker

PROJECTS = ("shop", "web")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry on 127.0.0.1 that wants a login."""
    running = start_registry(tmp_path_factory.mktemp("registry"), htpasswd=HTPASSWD)
    yield running
    stop(running.process)


@pytest.fixture
def private(docker_engine: DockerEngine, busybox: str, registry: Registry) -> Iterator[str]:
    """An image that is only in the registry."""
    name = f"{registry.address}/shop/tool-{uuid.uuid4().hex[:8]}:1"
    docker_engine.tag_image(str(docker_engine.find_image(busybox).id), name)
    login = RegistryLogin(username=USER, password=PASSWORD)
    docker_engine.push_image(
        name, on_progress=lambda _: None, cancel=threading.Event(), login=login
    )
    docker_engine.untag_image(name)
    yield name
    docker_engine.untag_image(name)


@pytest.fixture
def settings(tmp_path: Path, registry: Registry) -> Settings:
    """The project shop has a login for the registry, and web has none."""
    for project in PROJECTS:
        (tmp_path / project / ".docker").mkdir(parents=True)
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    config = {"auths": {registry.address: {"auth": pair}}}
    (tmp_path / "shop" / ".docker" / "config.json").write_text(json.dumps(config))
    tables = [f"[projects.{one}.registries]\nlogins = '{tmp_path}/{one}'\n" for one in PROJECTS]
    (tmp_path / "buildrunner").mkdir()
    text = f"[images]\nuntrusted = ['{TEST_IMAGES}']\n{''.join(tables)}"
    (tmp_path / "buildrunner" / "config.toml").write_text(text)
    return own_settings({"XDG_CONFIG_HOME": str(tmp_path)})


def build(
    settings: Settings, folder: Path, project: str, request: dict[str, object]
) -> tuple[BuildOutcome, str]:
    """Run a build of a project in a nested sandbox; its outcome and log."""
    build_id = str(uuid.uuid4())
    labels = {LABEL_BUILD: build_id}
    stored = StoredBuild(
        document={"id": build_id, "projectId": project, "status": "QUEUED"},
        request=request,
        push=True,
    )
    own = settings.of_project(project)
    with closing(
        wiring.sandbox("nested", data_folder=str(folder), labels=labels, settings=own)
    ) as sandbox:
        log = Log()
        sources = ServerSources(policy=SourcePolicy())
        wires = RunWiring(
            sink=log,
            on_event=lambda _: None,
            on_plan=lambda _: None,
            on_workspace=lambda _: None,
            cancel=CancelToken(),
        )
        outcome = ServerProgram(sandbox, settings, labels, sources).run(stored, wires)
    return outcome, f"{log.text}{outcome.error}"


def test_a_build_acts_with_the_logins_of_its_project_and_leaves_no_private_image_to_others(
    settings: Settings, tmp_path: Path, private: str, docker_engine: DockerEngine
) -> None:
    step = {"name": private, "args": ["echo", "I am private"]}
    outcome, said = build(settings, tmp_path / "data", "shop", {"steps": [step]})
    assert outcome.status is Status.SUCCESS, said
    assert "I am private" in said
    assert docker_engine.find_image(private) is None
    outcome, said = build(settings, tmp_path / "data", "web", {"steps": [step]})
    assert outcome.status is not Status.SUCCESS
    assert "I am private" not in said


def test_a_build_sees_no_private_image_that_is_on_the_machine(
    settings: Settings, tmp_path: Path, private: str, docker_engine: DockerEngine
) -> None:
    """A build of a project without logins of its own, or the administrator, left it there."""
    login = settings.of_project("shop").logins_environ({})
    with closing(DockerEngine(docker_engine.endpoint, environ=login)) as engine:
        engine.pull_image(private, on_progress=lambda _: None, cancel=threading.Event())
    assert docker_engine.find_image(private) is not None
    request: dict[str, object] = {"steps": [{"name": private, "args": ["echo", "I am private"]}]}
    outcome, said = build(settings, tmp_path / "data", "web", request)
    assert outcome.status is not Status.SUCCESS
    assert "I am private" not in said


def test_projects_without_logins_share_the_images_of_the_machine(
    settings: Settings, tmp_path: Path, private: str, docker_engine: DockerEngine
) -> None:
    login = settings.of_project("shop").logins_environ({})
    with closing(DockerEngine(docker_engine.endpoint, environ=login)) as engine:
        engine.pull_image(private, on_progress=lambda _: None, cancel=threading.Event())
    request: dict[str, object] = {"steps": [{"name": private, "args": ["echo", "I am private"]}]}
    outcome, said = build(settings, tmp_path / "data", "neither", request)
    assert outcome.status is Status.SUCCESS, said
    assert "I am private" in said


def test_a_build_whose_logins_are_not_there_does_not_act_with_those_of_the_server(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "web" / ".docker").rmdir()
    (tmp_path / "web").rmdir()
    with pytest.raises(UsageError, match=r"/web, which has the logins .* is not a folder"):
        build(settings, tmp_path / "data", "web", {"steps": [{"name": "busybox"}]})


@pytest.mark.parametrize(("project", "pushed"), [("shop", True), ("web", False)])
def test_a_build_pushes_with_the_logins_of_its_project_only(
    settings: Settings,
    tmp_path: Path,
    registry: Registry,
    busybox: str,
    project: str,
    pushed: bool,
) -> None:
    name = f"shop/pushed-{uuid.uuid4().hex[:8]}"
    image = f"{registry.address}/{name}:1"
    steps = [
        {"name": busybox, "args": ["true"]},
        {"name": "gcr.io/cloud-builders/docker", "args": ["tag", busybox, image]},
    ]
    outcome, said = build(settings, tmp_path / "data", project, {"steps": steps, "images": [image]})
    assert (outcome.status is Status.SUCCESS) is pushed, said
    assert (registry.root / "data/docker/registry/v2/repositories" / name).exists() is pushed
