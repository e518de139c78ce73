"""``buildrunner hooks``, and what ``doctor`` says of hooks and triggers, against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildrunner.cli.doctor import check_triggers
from buildrunner.cli.main import main
from tests.api_server import ApiServer, api_server
from tests.server.test_hooks import PUSH, SECRET, github, handle, make_trigger

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        running.secrets["hooks-github"] = SECRET
        yield running


@pytest.fixture
def run(
    server: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["hooks", *arguments, "--server", server.url])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_a_hook_is_bound_changed_listed_and_unbound(run: Run, server: ApiServer) -> None:
    assert run("list")[2] == "Listed 0 hooks.\n"
    make_trigger(server)
    number = github(server, PUSH).json()["delivery"]
    handle(server)
    assert "nothing: it fires nothing" in run("list")[1]
    code, out, err = run("set", "github", "--owner", "acme", "--owner", "lib", "--for-project", "p")
    assert code == 0, err
    assert "host: https://github.com" in out
    assert f"{server.url}/hooks/github, and signs with the secret hooks-github" in err
    run("set", "github", "--owner", "acme")
    bound = {"host": "https://github.com", "owners": ["acme"], "projects": ["p"]}
    assert server.store.hooks.get("github") == bound
    server.http.post(f"/buildrunner/v1/deliveries/{number}:replay")
    handle(server)
    assert len(server.store.builds.page("p").builds) == 1
    run("set", "github", "--for-project", "")
    assert "projects" not in server.store.hooks.get("github")
    (listed,) = json.loads(run("list", "--format", "json")[1])
    assert listed["secret"] == "hooks-github"
    assert listed["bound"]
    assert listed["lastDelivery"]
    code, _, err = run("delete", "github")
    assert (code, err) == (0, "Deleted the binding of [github]: it fires nothing.\n")
    assert server.store.hooks.all() == {}
    assert run("delete", "github")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "github"), "nothing to bind the hook to"),
        (("set", "github", "--host", "github.com"), "owners: a hook needs owners"),
        (("set", "gitea", "--owner", "a"), "host: a forge of kind gitea needs its host"),
        (("set", "svn", "--owner", "a"), "there is no hook svn"),
        (("set", "bitbucket/server", "--owner", "a"), "its secret would be bitbucket-server's"),
        (("set", "pubsub/t", "--topic", "t"), "topic: the full name of the topic"),
    ],
)
def test_what_can_not_be_bound_is_one_clear_error(
    run: Run, server: ApiServer, arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert server.store.hooks.all() == {}


def test_doctor_names_what_must_be_done(
    run: Run, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{tmp_path}/server.db"
    (found,) = check_triggers(database, str(tmp_path))
    assert (found.verdict, found.text) == ("ok", "all can fire, and all hooks are bound")
    named = {"repository": "acme/app", "push": {"branch": "."}}
    make_trigger(server, github=None, repositoryEventConfig=named)
    github(server, PUSH)
    handle(server)
    first, second = check_triggers(database, str(tmp_path))
    assert "trigger t of project p can't fire: nothing says which forge has acme/app" in first.text
    assert "`buildrunner triggers update t --forge" in first.text
    assert "`buildrunner hooks set github --owner OWNER`" in second.text
    assert {first.verdict, second.verdict} == {"warn"}
    assert check_triggers(f"sqlite:///{tmp_path}/none.db", str(tmp_path)) == []
