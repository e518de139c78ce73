"""Attacks by the cache of Git repositories, which builds of all projects share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.errors import BuildrunnerError
from buildrunner.settings import own_settings
from buildrunner.spec.model.build import Status
from tests.fixtures_git import HttpServer, Repository, closing, git
from tests.security.server_build import TEST_IMAGES, ServerBuild

pytestmark = pytest.mark.docker

SECRET = "of the private part"
USERS = {"x-access-token": "token-of-shop"}

Run = Callable[[str], tuple[Status, str]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HttpServer]:
    """Everybody may read team/shop.git, and the token of the project shop its submodule, too."""
    shop = Repository(tmp_path / "served")
    part = Repository(tmp_path / "part", "part.git")
    part.commit({"secret": SECRET.encode()})
    part.push("main")
    part.path.rename(shop.root / "part.git")
    with closing(HttpServer(shop.root)) as server:
        git(shop.work, "submodule", "--quiet", "add", server.url("part.git"), "part")
        shop.commit({"f": b"x"})
        shop.push("main")

        def restrict(request: str) -> None:
            server.users = USERS if "/part.git/" in request else {}

        server.on_request = restrict
        yield server


@pytest.fixture
def run(host: HttpServer, docker_engine: DockerEngine, busybox: str, tmp_path: Path) -> Run:
    """Build team/shop.git for a project; return the status and the log."""
    config = tmp_path / "config"
    (config / "buildrunner").mkdir(parents=True)
    (config / "token").write_text(USERS["x-access-token"])
    tokens = f"tokens = {{ '{host.base}' = 'file:{config}/token' }}"
    text = f"[images]\nuntrusted = ['{TEST_IMAGES}']\n[git]\nsubmodules = true\n"
    (config / "buildrunner/config.toml").write_text(f"{text}[projects.shop.git]\n{tokens}\n")
    settings = replace(own_settings({"XDG_CONFIG_HOME": str(config)}), privileged=False)
    request = {
        "steps": [{"name": busybox, "script": "cat part/secret"}],
        "source": {"gitSource": {"url": host.url(), "revision": "main"}},
    }

    def run(project: str) -> tuple[Status, str]:
        build = ServerBuild(
            docker_engine,
            tmp_path,
            request,
            settings=settings,
            hosts=("127.0.0.1",),
            project=project,
        )
        try:
            return build.run().status, build.log.text
        except BuildrunnerError as error:
            return Status.FAILURE, f"{build.log.text}{error}"

    return run


def test_a_project_gets_no_private_submodule_from_another_project_s_checkout(run: Run) -> None:
    status, log = run("shop")
    assert status is Status.SUCCESS, log
    assert SECRET in log
    for project in ("web", "none"):
        status, log = run(project)
        assert status is not Status.SUCCESS
        assert SECRET not in log
        assert "part" in log
    status, log = run("shop")  # its own checkout is there
    assert status is Status.SUCCESS
    assert "in the cache already" in log
