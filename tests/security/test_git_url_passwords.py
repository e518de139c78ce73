"""A password in the address of a repository is refused before it is stored, and never shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildrunner.cli.main import main
from buildrunner.errors import ConfigError
from buildrunner.server.notifications.dispatch import NotificationService
from buildrunner.server.services.triggers import trigger_problems
from buildrunner.settings import load_settings
from buildrunner.store.sql.schema import build_changes, builds, triggers
from buildrunner.store.sql.triggers import index_triggers
from buildrunner.triggers.repository import RepositoryNames
from tests.api_server import ApiServer, api_server, now
from tests.fixtures_git import Repository

PASSWORD = "hunter2-of-the-forge"
BAD = f"https://eve:{PASSWORD}@git.example.com/acme/app.git"
MASKED = "https://eve:***@git.example.com/acme/app.git"
STEPS = {"steps": [{"name": "busybox"}]}
DEPENDENCY = {"gitSource": {"repository": {"url": BAD}, "revision": "main", "destPath": "d"}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        yield running


def everything_kept(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "build",
    [
        {"source": {"gitSource": {"url": BAD}}},
        {"source": {"gitSource": {"url": f"https://ghp_{'a1' * 18}{PASSWORD}@github.com/a/b"}}},
        {"source": {"gitSource": {"url": BAD.replace("://", ":/")}}},
        {"source": {"gitSource": {"url": BAD.replace("://", ":///")}}},
        {"source": {"gitSource": {"url": BAD.replace("://", ":")}}},
        {"source": {"connectedRepository": {"repository": BAD}}},
        {"dependencies": [DEPENDENCY]},
    ],
)
def test_the_api_refuses_a_build(server: ApiServer, tmp_path: Path, build: dict[str, Any]) -> None:
    answer = server.http.post("/v1/projects/p/builds", json={**STEPS, **build})
    assert answer.status_code == 400
    assert "holds a password or token" in answer.text
    assert "[git.tokens]" in answer.text
    assert PASSWORD not in answer.text
    assert PASSWORD.encode() not in everything_kept(tmp_path)


TRIGGERS: list[dict[str, Any]] = [
    {"build": STEPS, "sourceToBuild": {"uri": BAD, "ref": "refs/heads/main"}},
    {
        "sourceToBuild": {"uri": "https://e.com/r", "ref": "refs/heads/main"},
        "gitFileSource": {"uri": BAD, "path": "c.yaml"},
    },
    {"build": STEPS, "repositoryEventConfig": {"repository": BAD, "push": {"branch": "."}}},
    {"build": {**STEPS, "source": {"gitSource": {"url": BAD}}}},
    {"build": {**STEPS, "dependencies": [DEPENDENCY]}},
]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_api_and_the_pages_refuse_a_trigger(
    server: ApiServer, tmp_path: Path, trigger: dict[str, Any]
) -> None:
    made = server.http.post("/v1/projects/p/triggers", json={"name": "good", "build": STEPS})
    requested = [
        server.http.post("/v1/projects/p/triggers", json={"name": "bad", **trigger}),
        server.http.patch(f"/v1/projects/p/triggers/{made.json()['id']}", json=trigger),
    ]
    for answer in requested:
        assert answer.status_code == 400
        assert "holds a password or token" in answer.text
        assert PASSWORD not in answer.text
    assert PASSWORD.encode() not in everything_kept(tmp_path)


@pytest.fixture
def run(
    server: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str]]:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_the_command_line_refuses_it_everywhere(
    run: Any, server: ApiServer, tmp_path: Path
) -> None:
    (tmp_path / "t.yaml").write_text(json.dumps({"name": "t", **TRIGGERS[0]}))
    (tmp_path / "c.yaml").write_text(json.dumps({**STEPS, "dependencies": [DEPENDENCY]}))
    repository = Repository(tmp_path / "bare", "app.git")
    at = ("--server", server.url, "--project", "p")
    run("triggers", "create", "manual", "--name", "m", "--repo", "https://e.com/r",
        "--branch", "b", *at)  # fmt: skip
    for arguments in (
        ("submit", BAD),
        ("submit", "--git-source", BAD),
        ("submit", BAD, "--server", server.url),
        ("submit", "--no-source", "--config", "c.yaml", "--server", server.url),
        ("validate", "c.yaml"),
        ("triggers", "import", "--source", "t.yaml", *at),
        ("triggers", "create", "manual", "--name", "x", "--repo", BAD, "--branch", "b", *at),
        ("triggers", "update", "m", "--repo", BAD, *at),
        ("triggers", "install-hook", str(repository.path), "--clone-url", BAD),
        ("hooks", "set", "git/app", "--repository", BAD, "--server", server.url),
    ):
        code, said = run(*arguments)
        assert code, arguments
        assert "holds a password" in said, arguments
        assert PASSWORD not in said, arguments
    for file in ("t.yaml", "c.yaml"):
        (tmp_path / file).unlink()
    assert PASSWORD.encode() not in everything_kept(tmp_path)


def test_settings_that_map_a_name_to_such_an_address_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "buildrunner").mkdir()
    settings = tmp_path / "buildrunner" / "settings.toml"
    for path in (settings, tmp_path / "buildrunner" / "config.toml"):
        path.write_text(f'[git.repositories]\n"app" = "{BAD}"\n')
    with pytest.raises(ConfigError, match="holds a password or token") as caught:
        load_settings(str(tmp_path))
    assert PASSWORD not in str(caught.value)


def old_trigger(server: ApiServer, trigger: dict[str, Any]) -> str:
    """A trigger as an earlier version took it."""
    made = server.http.post("/v1/projects/p/triggers", json={"name": "old", "build": STEPS})
    identity = str(made.json()["id"])
    document = {**server.store.triggers.get("p", identity), **trigger}
    with server.store._database.write() as connection:
        old = {"document": msgspec.json.encode(document), "version": 0}
        connection.execute(triggers.update().values(old))
        index_triggers(connection)
    return identity


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_an_old_trigger_shows_none_builds_nothing_and_can_be_disabled_and_mended(
    server: ApiServer, trigger: dict[str, Any]
) -> None:
    identity = old_trigger(server, trigger)
    api = f"/v1/projects/p/triggers/{identity}"
    page = f"/triggers/p/{identity}"
    for path in (api, "/v1/projects/p/triggers", page, f"{page}/edit", f"{page}/export"):
        answer = server.http.get(path)
        assert answer.status_code == 200, path
        assert PASSWORD not in answer.text, path
    assert "***" in server.http.get(api).text
    (problem,) = trigger_problems(server.store, RepositoryNames())
    assert "trigger old of project p can't fire" in problem
    assert "holds a password or token" in problem
    server.http.post(f"{api}:run", json={"branchName": "main"})
    for build in server.store.builds.page("p").builds:
        assert PASSWORD not in json.dumps([build.document, build.request])
    off = server.http.patch(f"{api}?updateMask=disabled", json={"disabled": True})
    assert off.status_code == 200, off.text
    assert PASSWORD not in off.text
    assert server.store.triggers.get("p", identity)["disabled"] is True
    masked = server.http.get(api).json()
    assert server.http.patch(api, json=masked).status_code == 400  # the mask is no address
    mended = server.http.patch(api, json={"name": "old", "build": STEPS})
    assert mended.status_code == 200, mended.text
    assert trigger_problems(server.store, RepositoryNames()) == []


def test_an_old_build_is_shown_and_told_of_without_it(server: ApiServer) -> None:
    build = server.create(source={"gitSource": {"url": "https://git.example.com/acme/app.git"}})
    stored = server.store.builds.find(build)
    document = msgspec.json.encode(
        {**stored.document, "source": {"gitSource": {"url": BAD}}, "dependencies": [DEPENDENCY]}
    )
    with server.store._database.write() as connection:
        connection.execute(builds.update().values(document=document))
        connection.execute(build_changes.update().values(document=document))
    notifier = {
        "apiVersion": "buildrunner/v1",
        "kind": "HTTPNotifier",
        "metadata": {"name": "n"},
        "spec": {"notification": {"delivery": {"url": "https://example.com/"}}},
    }
    made = server.http.put("/buildrunner/v1/projects/p/notifiers/n", json=notifier)
    assert made.status_code == 200, made.text
    for path in (f"/v1/projects/p/builds/{build}", "/v1/projects/p/builds", f"/builds/p/{build}"):
        answer = server.http.get(path)
        assert answer.status_code == 200, path
        assert PASSWORD not in answer.text, path
    assert server.http.get(f"/v1/projects/p/builds/{build}").json()["source"] == {
        "gitSource": {"url": MASKED}
    }
    service = NotificationService(server.context)
    (change,) = server.store.outbox.changes(limit=10)
    (told,) = service(change)
    assert server.store.outbox.announce([change], [(change.id, told)], now=now()) == 1
    (message,) = server.store.outbox.claim(now=now(), lease_s=60, limit=1)
    requested = service.argument_of(message)
    assert requested is not None
    assert MASKED in json.dumps(requested)
    assert PASSWORD not in json.dumps([requested, msgspec.to_builtins(message)], default=str)


def test_a_build_that_is_refused_is_kept_without_it(server: ApiServer, tmp_path: Path) -> None:
    """A webhook's call of an old trigger makes a build that failed: it is stored, masked."""
    secret = "projects/p/secrets/s/versions/1"
    server.secrets[secret] = "hush"
    identity = old_trigger(server, {**TRIGGERS[0], "webhookConfig": {"secret": secret}})
    server.http.post(f"/v1/projects/p/triggers/{identity}:webhook?secret=hush", json={})
    (build,) = server.store.builds.page("p").builds
    assert build.status == "FAILURE"
    assert "holds a password or token" in build.document["statusDetail"]
    assert PASSWORD not in json.dumps([build.document, build.request])
