"""Nothing missed: where the server looks, what it makes of what it finds, and what else it builds
there.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from buildrunner.errors import SourceError
from buildrunner.server.events import reconcile
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import DeliveryLoop
from buildrunner.server.events.reconcile import ReconcileLoop, Reconciler, RemoteRefs
from buildrunner.server.loop import Signal
from buildrunner.store.model.deliveries import Watched
from buildrunner.triggers.repository import RepositoryNames, pull_history
from tests.api_server import ApiServer, api_server
from tests.conftest import DEADLINE_S

SECRET = "It's a Secret to Everybody"
OLD, NEW, NEWEST = "a" * 40, "b" * 40, "c" * 40
URL = "https://gitlab.example.com/acme/app.git"
OURS = "https://gitlab.example.com/Acme/app.git"  # as the trigger writes it
PUSH = {
    "object_kind": "push",
    "ref": "refs/heads/main",
    "before": OLD,
    "after": NEW,
    "checkout_sha": NEW,
    "project": {"path_with_namespace": "acme/app", "git_http_url": URL},
    "commits": [{"id": NEW, "message": "m", "added": ["a"], "modified": [], "removed": []}],
    "total_commits_count": 1,
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        running.hook("gitlab", SECRET, host="gitlab.example.com", owners=["acme"])
        yield running


class Git:
    """A Git server: refs by URL."""

    def __init__(self, **refs: str) -> None:
        self.refs = {URL: {f"refs/heads/{name}": commit for name, commit in refs.items()}}
        self.refs[OURS] = self.refs[URL]
        self.requested: list[str] = []

    def list_refs(self, url: str) -> dict[str, str]:
        self.requested.append(url)
        if url not in self.refs:
            raise SourceError("no such repository")
        return dict(self.refs[url])


def make_trigger(server: ApiServer, **fields: Any) -> None:
    trigger = {
        "name": "t",
        "build": {"steps": [{"name": "busybox"}]},
        "repositoryEventConfig": {"repository": "Acme/app", "push": {"branch": "."}},
        **fields,
    }
    forge = {"forge": "gitlab", "forgeHost": "gitlab.example.com"}
    answer = server.http.post("/v1/projects/p/triggers", json=trigger, params=forge)
    assert answer.status_code == 200, answer.text


def gitlab(server: ApiServer, body: Any) -> None:
    headers = {"X-Gitlab-Token": SECRET, "Idempotency-Key": str(uuid.uuid4())}
    answer = server.http.post("/hooks/gitlab", content=json.dumps(body), headers=headers)
    assert answer.status_code == 200, answer.text
    handle(server)


def handle(server: ApiServer) -> None:
    loop = DeliveryLoop(server.context, DeliveryHandler(server.context))
    while loop.turn():
        assert loop.wait_until_idle(DEADLINE_S)


def look(server: ApiServer, git: Git, **repositories: str) -> None:
    remote = RemoteRefs(list_refs=git.list_refs, message=lambda *_: "change")
    Reconciler(
        replace(server.context, repositories=RepositoryNames(connected={"": repositories})), remote
    ).look()
    handle(server)


def built(server: ApiServer) -> list[str]:
    found = server.http.get("/v1/projects/p/builds").json().get("builds", [])
    return sorted(one["substitutions"]["COMMIT_SHA"] for one in found)


def test_a_repository_is_looked_at_on_the_forge_that_its_trigger_names(server: ApiServer) -> None:
    make_trigger(server)
    git = Git(main=NEW, other=OLD)
    gitlab(server, PUSH)
    look(server, git)
    assert git.requested == [OURS]
    assert built(server) == [NEW]  # `other` is only remembered: it is seen for the first time
    git.refs[URL]["refs/heads/main"] = NEWEST
    look(server, git)
    look(server, git)
    assert built(server) == [NEW, NEWEST]
    gitlab(server, {**PUSH, "before": NEW, "after": NEWEST, "checkout_sha": NEWEST})
    assert built(server) == [NEW, NEWEST]
    newest = server.store.builds.page("p").builds[0]
    labels = server.store.builds.get("p", newest.id).labels
    assert (labels["forge"], labels["forge_url"]) == ("gitlab", "https://gitlab.example.com")


def test_pushes_that_are_told_of_in_the_wrong_order_are_built_once_each(server: ApiServer) -> None:
    make_trigger(server)
    git = Git(main=NEWEST)
    gitlab(server, {**PUSH, "before": NEW, "after": NEWEST, "checkout_sha": NEWEST})
    gitlab(server, PUSH)
    look(server, git)
    assert built(server) == [NEW, NEWEST]


@pytest.mark.parametrize("is_new", [False, True])
def test_a_push_that_arrives_during_a_look_is_built_once_and_nothing_older_after_it(
    server: ApiServer, is_new: bool
) -> None:
    """Issue: the look took the list for newer, and fired the triggers for the commit before it."""
    make_trigger(server)
    git = Git(main=OLD, other=OLD)
    look(server, git)
    gitlab(server, PUSH)
    git.refs[URL] |= {"refs/heads/main": NEW, "refs/heads/other": NEW}  # `other` was missed

    ref, before = ("refs/heads/release", "0" * 40) if is_new else ("refs/heads/main", NEW)

    def list_refs(url: str) -> dict[str, str]:
        found = git.list_refs(url)
        git.refs[URL][ref] = NEWEST
        push = {"ref": ref, "before": before, "after": NEWEST, "checkout_sha": NEWEST}
        gitlab(server, {**PUSH, **push})
        return found

    git.refs[OURS] = git.refs[URL]
    remote = RemoteRefs(list_refs=list_refs, message=lambda *_: "change")
    Reconciler(server.context, remote).look()
    handle(server)
    look(server, git)
    assert built(server) == [NEW, NEW, NEWEST]


@contextmanager
def refused_deletions(folder: Path) -> Iterator[None]:
    """The database refuses to delete records of refs."""
    with sqlite3.connect(folder / "server.db", isolation_level=None) as database:
        database.execute(
            "CREATE TRIGGER refuse BEFORE DELETE ON known_refs"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        yield
        database.execute("DROP TRIGGER refuse")
    database.close()


def test_a_trigger_is_deleted_though_its_records_can_not_be_forgotten_yet(
    server: ApiServer, tmp_path: Path
) -> None:
    """Issue: the answer was an error though the trigger was deleted, and the records stayed."""
    path = "/v1/projects/p/triggers"
    make_trigger(server)
    kept = {"repository": "Acme/other", "push": {"branch": "."}}
    make_trigger(server, name="disabled", disabled=True, repositoryEventConfig=kept)
    other = Watched("p", "gitlab.example.com/acme/other")
    git = Git(main=NEW)
    look(server, git)
    for one in (PULLS, other):
        server.store.refs.note(one, "refs/pull/1/head", OLD, "delivery 1")
    with refused_deletions(tmp_path):
        answer = server.http.delete(f"{path}/t")
        assert answer.status_code == 200, answer.text
        assert server.http.get(f"{path}/t").status_code == 404
        assert records(server) == [2, 1]
    look(server, git)
    assert records(server) == [0, 0]
    assert len(server.store.refs.known(other)) == 1


APP = Watched("p", "gitlab.example.com/acme/app")
PULLS = Watched("p", pull_history(APP.repository))


def records(server: ApiServer) -> list[int]:
    return [len(server.store.refs.known(one)) for one in (APP, PULLS)]


@pytest.mark.parametrize("way", ["delete", "repository", "forge"])
def test_what_is_known_of_a_repository_goes_with_its_last_trigger(
    server: ApiServer, way: str
) -> None:
    """Issue: the refs that moved in a year without a trigger were built when one was made anew."""
    path = "/v1/projects/p/triggers"

    def leave(name: str) -> None:
        if way == "delete":
            answer = server.http.delete(f"{path}/{name}")
        elif way == "repository":
            changed = {
                "repositoryEventConfig": {"repository": "Acme/other", "push": {"branch": "."}}
            }
            mask = {"updateMask": "repositoryEventConfig"}
            answer = server.http.patch(f"{path}/{name}", json=changed, params=mask)
        else:
            settings = {"forge": {"kind": "gitlab", "host": "git.example.com"}}
            answer = server.http.put(f"/buildrunner{path}/{name}/settings", json=settings)
        assert answer.status_code == 200, answer.text

    make_trigger(server)
    make_trigger(server, name="u", disabled=True)
    git = Git(main=NEW, other=OLD)
    look(server, git)
    server.store.refs.note(PULLS, "refs/pull/1/head", OLD, "delivery 1")
    theirs = APP._replace(project="q")
    server.store.refs.note(theirs, "refs/heads/main", OLD, "delivery 1")
    assert records(server) == [3, 1]
    mask = {"updateMask": "description"}
    described = server.http.patch(f"{path}/t", json={"description": "new"}, params=mask)
    assert described.status_code == 200, described.text
    make_trigger(server, name="v")
    leave("t")
    leave("v")
    assert records(server) == [3, 1]
    leave("u")
    assert records(server) == [0, 0]
    assert len(server.store.refs.known(theirs)) == 1
    git.refs[URL]["refs/heads/main"] = NEWEST
    make_trigger(server, name="anew")
    look(server, git)
    assert built(server) == []


def run(server: ApiServer, name: str = "t") -> Any:
    answer = server.http.post(f"/v1/projects/p/triggers/{name}:run", json={"branchName": "dev"})
    assert answer.status_code == 200, answer.text
    return answer.json()["metadata"]["build"]["source"]


def test_a_run_by_hand_builds_from_the_forge_that_the_trigger_names(server: ApiServer) -> None:
    make_trigger(server)
    assert run(server) == {"gitSource": {"url": OURS, "revision": "refs/heads/dev"}}
    build = server.store.builds.page("p").builds[0]
    labels = server.store.builds.get("p", build.id).labels
    assert (labels["forge"], labels["forge_url"]) == ("gitlab", "https://gitlab.example.com")
    assert labels["repository"] == "Acme/app"


def test_where_the_settings_say_that_a_repository_is_wins(server: ApiServer) -> None:
    make_trigger(server)
    gitlab(server, PUSH)
    git = Git(main=NEW)
    look(server, git, **{"Acme/app": "https://mirror.example.com/app.git"})
    assert git.requested == ["https://mirror.example.com/app.git"]


def test_many_refs_that_moved_are_told_of_in_several_deliveries(server: ApiServer) -> None:
    make_trigger(server)
    git = Git(main=OLD)
    look(server, git, **{"Acme/app": URL})
    git.refs[URL] |= {f"refs/heads/b{number}": NEW for number in range(120)}
    remote = RemoteRefs(list_refs=git.list_refs, message=lambda *_: "change")
    made = Reconciler(
        replace(server.context, repositories=RepositoryNames(connected={"": {"Acme/app": URL}})),
        remote,
    ).look()
    assert made == 3
    handle(server)
    assert len(built(server)) == 50  # a page of them
    listed = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert [len(one["builds"]) for one in listed] == [20, 50, 50]


def test_a_git_server_that_tells_no_message_is_not_asked_for_more(server: ApiServer) -> None:
    requested = []

    def message(_url: str, commit: str) -> str:
        requested.append(commit)
        raise SourceError("no")

    make_trigger(server)
    git = Git(main=OLD)
    context = replace(
        server.context, repositories=RepositoryNames(connected={"": {"Acme/app": URL}})
    )
    reconciler = Reconciler(context, RemoteRefs(list_refs=git.list_refs, message=message))
    reconciler.look()
    git.refs[URL] |= {"refs/heads/main": NEW, "refs/heads/other": NEWEST}
    reconciler.look()
    handle(server)
    assert len(requested) == 1
    assert built(server) == [NEW, NEWEST]


def test_a_bug_that_one_repository_meets_leaves_the_others_looked_at(server: ApiServer) -> None:
    other = "https://aaa.example.com/acme/other.git"
    make_trigger(server)
    named = {"repository": "other", "push": {"branch": "."}}
    make_trigger(server, name="other", repositoryEventConfig=named)
    git = Git(main=OLD)
    git.refs[other] = {"refs/heads/caf\udce9": OLD}  # sorted before the good one
    known = {"Acme/app": URL, "other": other}
    look(server, git, **known)
    git.refs[URL]["refs/heads/main"] = NEW
    look(server, git, **known)
    assert built(server) == [NEW]


def test_a_git_server_that_does_not_answer_holds_up_no_other(server: ApiServer) -> None:
    places = {f"r{number}": f"https://dead.example.com/r{number}.git" for number in range(6)}
    places["acme/app"] = URL
    for name in places:
        make_trigger(
            server,
            name=f"t-{name[:2]}",
            repositoryEventConfig={"repository": name, "push": {"branch": "."}},
        )
    git, compared = Git(main=OLD), threading.Event()

    def list_refs(url: str) -> dict[str, str]:
        if url == URL:
            return git.list_refs(url)
        assert compared.wait(30)
        raise SourceError("no answer")

    look(server, git, **places)  # remembered
    git.refs[URL]["refs/heads/main"] = NEW
    remote = RemoteRefs(list_refs=list_refs, message=lambda *_: "change")
    arrived = Signal()
    arrived.connect(compared.set)
    context = replace(
        server.context, repositories=RepositoryNames(connected={"": places}), hook_arrived=arrived
    )
    assert Reconciler(context, remote).look() == 1
    handle(server)
    assert built(server) == [NEW]


def test_slow_repositories_of_a_project_leave_their_host_to_others(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: each took its host's threads for a minute, and then nobody's was looked at there."""
    monkeypatch.setattr(reconcile, "_QUICK_S", -1.0)  # every failure is slow
    slow = [f"slow{number:02}" for number in range(20)]
    ours = [f"zz{number}" for number in range(3)]  # sorted behind the others
    places = {name: f"https://gitlab.example.com/{name}.git" for name in [*slow, *ours]}
    for name in places:
        body = {
            "name": name,
            "build": {"steps": [{"name": "busybox"}]},
            "repositoryEventConfig": {"repository": name, "push": {"branch": "."}},
        }
        project = "eve" if name in slow else "p"
        answer = server.http.post(f"/v1/projects/{project}/triggers", json=body)
        assert answer.status_code == 200, answer.text
    requested: list[str] = []

    def list_refs(url: str) -> dict[str, str]:
        requested.append(url)
        if "slow" in url:
            raise SourceError("it did not answer in time")
        return {"refs/heads/main": OLD}

    context = replace(server.context, repositories=RepositoryNames(connected={"": places}))
    reconciler = Reconciler(context, RemoteRefs(list_refs=list_refs, message=lambda *_: "m"))
    for _ in range(2):
        reconciler.look()
        assert {places[name] for name in ours} <= set(requested)
        assert 2 <= len({url for url in requested if "slow" in url}) <= 5
        requested.clear()
    for _ in range(10):
        reconciler.look()
    assert {places[name] for name in slow} <= set(requested)  # each gets its turn


def test_an_unreachable_host_is_left_though_many_projects_have_repositories_there() -> None:
    line = reconcile._Line([a_place(f"p{number}", number) for number in range(100)])
    asked = 0
    while (place := line.next()) is not None:
        line.note(place, is_slow_failure=True)
        asked += 1
    assert asked == reconcile._MOST_IN_A_ROW


def test_an_answer_keeps_a_host_open() -> None:
    line = reconcile._Line([a_place(f"p{number}", number) for number in range(100)])
    asked = 0
    while (place := line.next()) is not None:
        line.note(place, is_slow_failure=asked % 2 == 0)
        asked += 1
    assert asked == 100


def test_projects_take_turns_on_a_host(server: ApiServer) -> None:
    many = [a_place("many", number) for number in range(5)]
    few = [a_place("few", number) for number in (7, 8)]
    reconciler = Reconciler(
        server.context, RemoteRefs(list_refs=lambda _: {}, message=lambda *_: "m")
    )
    (line,) = reconciler._lines([*many, *few])
    order = []
    while (place := line.next()) is not None:
        order.append(*place.projects)
    assert order == ["many", "few", "many", "few", "many", "many", "many"]


def a_place(project: str, number: int) -> reconcile.Place:
    watched = Watched(project, f"example.com/r{number}")
    watcher = reconcile.Watcher(watched, {"name": f"r{number}"}, "")
    return reconcile.Place(f"https://example.com/r{number}.git", (watcher,))


def test_a_look_that_is_under_way_has_ended_when_the_loop_is_stopped(server: ApiServer) -> None:
    make_trigger(server)
    requested, stopped = threading.Event(), threading.Event()
    used: list[bool] = []

    def list_refs(_url: str) -> dict[str, str]:
        requested.set()
        assert stopped.wait(30)
        used.append(bool(server.store.builds.page("p").builds))
        raise SourceError("it was cancelled")

    remote = RemoteRefs(list_refs=list_refs, message=lambda *_: "", stop=stopped.set)
    context = replace(
        server.context, repositories=RepositoryNames(connected={"": {"Acme/app": URL}})
    )
    loop = ReconcileLoop(Reconciler(context, remote), 3600)
    loop.start()
    assert requested.wait(30)
    loop.stop()
    loop.stop()
    assert used == [False]
    assert "reconcile" not in [thread.name for thread in threading.enumerate()]
