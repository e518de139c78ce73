"""A hostile Git server takes neither memory, disk nor time from the server by its answers."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from buildrunner.errors import SourceError
from buildrunner.server.events import reconcile
from buildrunner.server.events.reconcile import Reconciler, RemoteRefs
from buildrunner.settings import Settings
from buildrunner.sources.git import command, source
from buildrunner.sources.git.checkout import GitOptions
from buildrunner.sources.git.command import GitLimits, GitProcess
from buildrunner.sources.git.credentials import GitAccess, credentials_for
from buildrunner.sources.git.room import FetchRoom
from buildrunner.sources.git.source import (
    GitCheckout,
    GitPlace,
    GitRequest,
    commit_message,
    fetch_git,
    git_for_request,
    list_refs,
)
from buildrunner.sources.git.url import parse_git_url
from buildrunner.sources.policy import SourcePolicy, policy_from, policy_text
from buildrunner.store.model.deliveries import Watched
from buildrunner.store.sql import deliveries as stored_deliveries
from buildrunner.store.sql.database import Database, insert_all_new
from buildrunner.wiring.sources import git_place
from tests.api_server import ApiServer, api_server
from tests.fixtures_git import HttpServer, Repository, closing, git
from tests.server.test_reconcile import handle

URL = "https://github.com/acme/app.git"


def with_refs(folder: Path, number: int) -> GitRequest:
    repository = Repository(folder)
    commit = repository.commit({"README": b"one\n"})
    repository.push("main")
    lines = "".join(f"{commit} refs/tags/v{n:06}\n" for n in range(number))
    Path(repository.path, "packed-refs").write_text(f"# pack-refs with: sorted \n{lines}")
    return GitRequest(url=f"file://{repository.path}", revision="")


def listed(request: GitRequest) -> dict[str, str]:
    return list_refs(request, GitPlace(), threading.Event())


def test_a_repository_with_too_many_refs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = with_refs(tmp_path, 1000)
    assert len(listed(request)) == 1001
    monkeypatch.setattr(source, "MOST_REFS", 1000)
    with pytest.raises(SourceError, match="has 1,001 branches and tags"):
        listed(request)


def test_git_is_stopped_when_an_answer_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = with_refs(tmp_path, 1000)
    few = GitLimits(output_bytes=10_000, memory_bytes=1 << 30, file_bytes=1 << 30)
    monkeypatch.setattr(source, "_LIMITS", few)
    with pytest.raises(SourceError, match="more than is allowed here"):
        listed(request)


@pytest.mark.parametrize("text", ["a line\n" * 100_000 + "x" * 5_000_000, "a\n" + "\n" * 65_000])
def test_a_long_message_of_a_commit_is_cut(tmp_path: Path, text: str) -> None:
    repository = Repository(tmp_path)
    tree = git(repository.work, "write-tree")
    long = tmp_path / "message"
    long.write_text(text)
    commit = git(repository.work, "commit-tree", "-F", str(long), tree)
    git(repository.work, "push", "-q", "origin", f"{commit}:refs/heads/main")
    request = GitRequest(url=f"file://{repository.path}", revision="")
    message = commit_message(request, commit, place=GitPlace(), cancel=threading.Event())
    assert message.startswith("a")
    assert len(message) <= 64 << 10


def test_errors_of_git_are_limited_like_its_output() -> None:
    process = GitProcess(None, None, 10 << 20)
    for _ in range(9):
        process._take_error("remote: " + "x" * (1 << 20))
    assert not process.too_long
    assert len(process.errors()) < 100_000
    assert process._errors.other_lines == process._errors.error_lines == []
    process._take_error("x" * (1 << 20))
    assert process.too_long


def test_a_line_without_an_end_is_read_in_pieces() -> None:
    taken: list[str] = []
    text = "a" * 2_500_000 + "\nb\n"
    GitProcess._read(io.StringIO(text), taken.append)
    assert max(map(len, taken)) == 1 << 20
    assert "".join(taken) == text


def test_questions_of_the_server_run_with_limits(tmp_path: Path) -> None:
    request = with_refs(tmp_path, 1)
    git = git_for_request(request, threading.Event(), None, None, None, source._LIMITS)
    shown = git.run("-c", "alias.limits=!ulimit -d; ulimit -f", "limits")
    assert [int(one) for one in shown.split()] == [1 << 20, 1 << 21]  # in KiB and half KiB


def test_a_fetch_ends_at_the_largest_file_that_a_build_may_write(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.commit({"noise": os.urandom(3_000_000)})
    repository.push("main")
    request = GitRequest(url=f"file://{repository.path}", revision="main")
    folder = tmp_path / "fetched"
    folder.mkdir()
    policy = SourcePolicy(files=True, largest_bytes=1 << 20)
    place = git_place(Settings(), folder=str(folder), policy=policy_from(policy_text(policy)))

    def fetch(room: FetchRoom | None) -> GitCheckout:
        return fetch_git(
            request,
            mirror=None,
            cancel=threading.Event(),
            temporary=str(folder),
            room=room,
        )

    with pytest.raises(SourceError, match="more of the disk than is allowed here"):
        fetch(place.room)
    assert list(folder.iterdir()) == []
    fetch(FetchRoom(8 << 20)).release()


@pytest.mark.parametrize("keys", [("/team",), ("", "/evil")])
def test_a_token_of_one_path_goes_to_no_submodule_of_another(
    tmp_path: Path, keys: tuple[str, ...]
) -> None:
    """The longest key that matches decides, also if its own token is not there."""
    team = Repository(tmp_path / "served", "team/app.git")
    evil = Repository(tmp_path / "other", "evil/x.git")
    evil.commit({"README": b"one"})
    evil.push("main")
    (tmp_path / "other/evil").rename(tmp_path / "served/evil")
    with closing(HttpServer(tmp_path / "served")) as http:
        modules = f'[submodule "x"]\n\tpath = x\n\turl = {http.url("evil/x.git")}\n'
        team.commit({".gitmodules": modules.encode()})
        submodule = git(evil.work, "rev-parse", "HEAD")
        git(team.work, "update-index", "--add", "--cacheinfo", f"160000,{submodule},x")
        git(team.work, "commit", "-q", "-m", "with a submodule")
        team.push("main")
        http.users = {"x-access-token": "TOKEN"}
        sources = dict(zip(keys, ("env:T", "env:NOT_THERE"), strict=False))
        access = GitAccess(tokens={f"{http.base}{key}": source for key, source in sources.items()})
        url = http.url("team/app.git")
        request = GitRequest(
            url=url,
            revision="main",
            options=GitOptions(submodules=True),
            credentials=credentials_for(parse_git_url(url), access, {"T": "TOKEN"}),
        )
        folder = tmp_path / "fetched"
        folder.mkdir()
        with pytest.raises(SourceError, match=r"evil/x\.git"):
            fetch_git(
                request, mirror=None, cancel=threading.Event(), temporary=str(folder), wait_s=0.01
            )


def test_a_fetch_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(tmp_path)
    repository.commit({"README": b"one"})
    repository.push("main")
    monkeypatch.setattr(command, "_LEAST_FREE", 1 << 60)
    monkeypatch.setattr(command, "_LEAST_SHARE", 1)
    request = GitRequest(url=f"file://{repository.path}", revision="main")
    folder = tmp_path / "fetched"
    folder.mkdir()
    with pytest.raises(SourceError, match="no space left on the disk"):
        fetch_git(request, mirror=None, cancel=threading.Event(), temporary=str(folder))
    assert list(folder.iterdir()) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        trigger = {
            "name": "t",
            "build": {"steps": [{"name": "busybox"}]},
            "github": {"owner": "acme", "name": "app", "push": {"branch": "."}},
        }
        answer = running.http.post("/v1/projects/p/triggers", json=trigger)
        assert answer.status_code == 200, answer.text
        yield running


def look(server: ApiServer, refs: dict[str, str]) -> int:
    remote = RemoteRefs(list_refs=lambda _: refs, message=lambda *_: "change")
    return Reconciler(server.context, remote).look()


def refs_at(commit: str, number: int) -> dict[str, str]:
    return {f"refs/heads/{n:05}": commit * 40 for n in range(number)}


def test_many_refs_are_recorded_in_short_transactions(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    real_write = Database.write

    @contextmanager
    def write(self: Database, *given: Any, **more: Any) -> Iterator[Any]:
        rows.append(0)
        with real_write(self, *given, **more) as connection:
            yield connection

    def insert(connection: Any, table: Any, new: list[Any]) -> None:
        rows[-1] += len(new)
        insert_all_new(connection, table, new)

    monkeypatch.setattr(Database, "write", write)
    monkeypatch.setattr(stored_deliveries, "insert_all_new", insert)
    assert look(server, refs_at("a", 3500)) == 0
    assert sum(rows) == 3501
    assert max(rows) == 1000
    watched = Watched("p", "github.com/acme/app")
    assert len(server.store.refs.known(watched)) == 3501


def test_a_check_makes_few_deliveries_and_the_next_one_the_rest(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_MOST_CHANGES", 100)
    look(server, refs_at("a", 150))
    assert look(server, refs_at("b", 150)) == 2  # of fifty refs each
    handle(server)
    assert look(server, refs_at("b", 150)) == 1


def test_slow_hosts_of_one_project_do_not_hold_up_the_check_for_another(server: ApiServer) -> None:
    for number in range(20):  # more than the check has threads
        forge = {"forge": "gitea", "forgeHost": f"https://a{number}.example.com"}
        github = {"owner": "x", "name": "app", "push": {"branch": "."}}
        body = {"name": f"t{number}", "build": {"steps": [{"name": "busybox"}]}, "github": github}
        answer = server.http.post("/v1/projects/slow/triggers", params=forge, json=body)
        assert answer.status_code == 200, answer.text
    looked_at = threading.Event()

    def list_refs(url: str) -> dict[str, str]:
        if url == URL:
            looked_at.set()
        elif not looked_at.wait(30):
            raise SourceError("nothing else is looked at meanwhile")
        return refs_at("a", 1)

    remote = RemoteRefs(list_refs=list_refs, message=lambda *_: "change")
    began = threading.Thread(target=Reconciler(server.context, remote).look)
    began.start()
    try:
        assert looked_at.wait(10)
    finally:
        looked_at.set()
        began.join()


def test_a_check_adds_no_deliveries_while_those_of_the_last_one_wait(server: ApiServer) -> None:
    look(server, refs_at("a", 3))
    assert look(server, refs_at("b", 3)) == 1
    assert look(server, refs_at("c", 3)) == 0
    handle(server)
    assert look(server, refs_at("c", 3)) == 1


def test_new_refs_leave_a_check_room_for_deletions(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: a full record stayed full, since each check found only refs without room."""
    monkeypatch.setattr(reconcile, "MOST_REFS", 10)
    monkeypatch.setattr(reconcile, "_MOST_CHANGES", 3)
    look(server, refs_at("a", 5))
    watched = Watched("p", "github.com/acme/app")
    for number in range(4):  # pushes of branches that the repository does not have
        server.store.refs.note(watched, f"refs/heads/gone{number}", "c" * 40, "delivery 1")
    branches = [f"refs/heads/new{number}" for number in range(3)]
    for _ in range(4):
        look(server, refs_at("a", 5) | dict.fromkeys(branches, "b" * 40))
        handle(server)
    known = server.store.refs.known(watched)
    assert set(branches) <= set(known)
    assert not any("gone" in ref for ref in known)
    assert len(server.store.builds.page("p").builds) == 3


def test_the_known_refs_of_a_project_are_limited(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconcile, "MOST_KNOWN_REFS", 10)
    assert look(server, refs_at("a", 10)) == 0
    assert server.store.refs.count("p") == 0
    assert "more than 10 branches and tags" in caplog.text
