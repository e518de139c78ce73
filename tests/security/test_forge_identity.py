"""A repository is one of one forge: whoever has its name elsewhere, or another hook's secret, can't
fire its triggers, have other code built, or learn a token.

The forges here are real Git servers on ports of their own, each a "host" of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.cli.serve.loops import delivery_loop
from buildrunner.server.events import reconcile
from buildrunner.server.events.reconcile import Reconciler, RemoteRefs
from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.source import Source
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.model.deliveries import Watched
from buildrunner.triggers.repository import bare_history
from tests.api_server import ApiServer, api_server
from tests.fixtures_git import HttpServer, Repository, git
from tests.held_secrets import token_name
from tests.server.test_forge_api import Forge

SECRET = "of the hook of one team"
POLICY = SourcePolicy(private=True, files=True)
STEPS = {"build": {"steps": [{"name": "busybox"}]}}
OLD = "a" * 40


class Host:
    """A forge: a Git server with repositories of its own."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.server = HttpServer(folder)
        self.url = self.server.base
        self.repositories: dict[str, Repository] = {}
        for name in names:
            place = folder / name.replace("/", "-")
            repository = Repository(place, f"{name}.git")
            self.repositories[name] = repository
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.git").symlink_to(repository.path)

    def commit(self, name: str, text: str, branch: str = "main") -> str:
        """Push a commit to a repository."""
        made = self.repositories[name].commit({"code": text.encode()}, text)
        self.repositories[name].push(f"HEAD:{branch}")
        return made

    @property
    def was_asked(self) -> bool:
        """Whether anything was fetched from here, or looked at."""
        return bool(self.server.requests)


class Place:
    """A server with a trigger of project ``ours`` for acme/app on the forge ``home``."""

    def __init__(self, server: ApiServer, home: Host, evil: Host, folder: Path) -> None:
        self.server = server
        self.home = home
        self.evil = evil
        self.settings = Settings(git=replace(Settings().git, cache=str(folder / "cache")))
        self.good = home.commit("acme/app", "good")
        self.bad = evil.commit("acme/app", "evil")

    def trigger(
        self, kind: str = "gitea", host: str = "", project: str = "ours", **fields: Any
    ) -> str:
        document = {
            "name": f"t{uuid.uuid4().hex[:6]}",
            "github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}},
            **STEPS,
            **fields,
        }
        query = {"forge": kind, "forgeHost": host or self.home.url} if kind else {}
        path = f"/v1/projects/{project}/triggers"
        made = self.server.http.post(path, json=document, params=query)
        assert made.status_code == 200, made.text
        return str(made.json()["name"])

    def push(
        self,
        hook: str,
        body: dict[str, Any],
        secret: str = SECRET,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send a push as the holder of a hook's secret can; what came of it."""
        content = json.dumps(body).encode()
        signature = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
        headers = {
            **(headers or {}),
            "X-Gitlab-Token": secret,
            "X-Gitea-Event": "push",
            "X-Gitea-Signature": signature,
            "X-GitHub-Event": "push",
            "X-Hub-Signature-256": f"sha256={signature}",
            "X-Hub-Signature": f"sha256={signature}",
            "X-Buildrunner-Signature": f"sha256={signature}",
        }
        answer = self.server.http.post(f"/hooks/{hook}", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        self.handle()
        found = self.server.store.deliveries.get(answer.json()["delivery"]).outcome
        return dict(found)

    def handle(self) -> None:
        loop = delivery_loop(self.server.context, self.settings)
        while loop.turn():
            assert loop.wait_until_idle(60)

    def look(self) -> None:
        """Look for missed pushes, with real Git."""
        remotes = wiring.GitRemotes(self.settings, POLICY)
        remote = RemoteRefs(list_refs=remotes.list_refs, message=remotes.message)
        Reconciler(self.server.context, remote).look()
        self.handle()

    def builds(self, project: str = "ours") -> list[Any]:
        return list(self.server.store.builds.page(project).builds)

    def code(self, build: Any) -> str:
        """The code that a build fetches, as its worker fetches it."""
        source = decode_message(Source, build.request["source"]).value
        place = wiring.git_place(self.settings, policy=POLICY)
        checkout = wiring.fetch_git_source(source, self.settings, place, cancel=threading.Event())
        try:
            return (Path(checkout.folder) / "code").read_text()
        finally:
            checkout.release()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "home").mkdir()
    (tmp_path / "evil").mkdir()
    home = Host(tmp_path / "home", "acme/app", "acme/other", "eve/app")
    evil = Host(tmp_path / "evil", "acme/app", "evil/app")
    with api_server(tmp_path / "server", sources=POLICY) as server:
        yield Place(server, home, evil, tmp_path)
    home.server.close()
    evil.server.close()


def gitea_push(full_name: str, commit: str, url: str = "") -> dict[str, Any]:
    told = {"clone_url": f"{url}/{full_name}.git", "html_url": f"{url}/{full_name}"} if url else {}
    return {
        "ref": "refs/heads/main",
        "before": OLD,
        "after": commit,
        "repository": {"full_name": full_name, **told},
        "head_commit": {"id": commit, "message": "m"},
        "commits": [{"id": commit, "message": "m", "added": ["code"]}],
        "pusher": {"login": "eve"},
    }


def gitlab_push(full_name: str, commit: str, url: str = "") -> dict[str, Any]:
    told = {"git_http_url": f"{url}/{full_name}.git", "web_url": f"{url}/{full_name}"}
    return {
        "object_kind": "push",
        "ref": "refs/heads/main",
        "before": OLD,
        "after": commit,
        "checkout_sha": commit,
        "project": {"path_with_namespace": full_name, **(told if url else {})},
        "commits": [{"id": commit, "message": "m", "added": ["code"], "modified": []}],
        "total_commits_count": 1,
    }


def test_a_hook_of_another_forge_can_not_fire_a_trigger_with_its_own_code(place: Place) -> None:
    """Issue: a GitLab hook of one team fired another project's trigger from its own repository."""
    place.trigger()
    place.trigger(kind="")  # github.com's acme/app
    place.server.hook("gitlab", SECRET, host=place.evil.url, owners=["*"])
    place.push("gitlab", gitlab_push("acme/app", place.bad, place.evil.url))
    place.push("gitlab", gitlab_push("acme/app", place.bad))
    for lie in (place.home.url, "https://github.com"):
        outcome = place.push("gitlab", gitlab_push("acme/app", place.bad, lie))
        assert f"is bound to {place.evil.url}" in outcome["error"]
    assert place.builds() == []


def test_code_comes_from_the_forge_of_the_trigger_whatever_the_payload_says(place: Place) -> None:
    place.trigger()
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    lie = gitea_push("acme/app", place.good)
    lie["repository"] |= {"clone_url": f"{place.evil.url}/acme/app.git"}
    assert "is bound to" in place.push("gitea", lie)["error"]
    lie["repository"] |= {"clone_url": f"{place.home.url}/eve/app.git", "ssh_url": "git@evil:a/b"}
    place.push("gitea", lie)
    (build,) = place.builds()
    assert build.request["source"]["gitSource"]["url"] == f"{place.home.url}/acme/app.git"
    assert place.code(build) == "good"
    assert not place.evil.was_asked


@pytest.mark.parametrize(
    "owners", [["evil"], ["acme2"], ["acm"], ["acme/other"], ["acme/app2"], ["acme/app/x"]]
)
def test_a_hook_speaks_for_its_owners_only(place: Place, owners: list[str]) -> None:
    place.trigger()
    place.server.hook("gitea", SECRET, host=place.home.url, owners=owners)
    for name in ("acme/app", "ACME/App"):
        outcome = place.push("gitea", gitea_push(name, place.good, place.home.url))
        assert "is none of them" in outcome["error"]
    assert place.builds() == []


@pytest.mark.parametrize("owners", [["acme"], ["Acme"], ["acme/app"], ["*"], ["evil", "acme"]])
def test_a_hook_speaks_for_all_its_owners(place: Place, owners: list[str]) -> None:
    place.trigger()
    place.server.hook("gitea", SECRET, host=place.home.url, owners=owners)
    place.push("gitea", gitea_push("Acme/App", place.good))
    assert len(place.builds()) == 1


def test_a_hook_of_a_project_fires_no_trigger_of_another(place: Place) -> None:
    place.trigger(project="ours")
    place.trigger(project="theirs")
    place.server.hook("gitea/theirs", SECRET, host=place.home.url, projects=["theirs"])
    place.push("gitea/theirs", gitea_push("acme/app", place.good))
    assert (len(place.builds("ours")), len(place.builds("theirs"))) == (0, 1)


def test_a_hook_that_is_bound_to_no_project_fires_triggers_of_every_project(place: Place) -> None:
    place.trigger(project="ours")
    place.trigger(project="theirs")
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    place.push("gitea", gitea_push("acme/app", place.good))
    assert (len(place.builds("ours")), len(place.builds("theirs"))) == (1, 1)


def test_a_repository_is_known_by_its_name_and_not_by_its_number(place: Place) -> None:
    place.trigger()
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    for number, commit in ((1, place.good), (2, place.home.commit("acme/app", "of a new owner"))):
        body = gitea_push("acme/app", commit)
        body["repository"]["id"] = number
        place.push("gitea", body)
    assert [place.code(build) for build in place.builds()] == ["of a new owner", "good"]


def test_a_disabled_trigger_builds_nothing_of_a_push(place: Place) -> None:
    place.trigger(disabled=True)
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    outcome = place.push("gitea", gitea_push("acme/app", place.good))
    assert "disabled" in json.dumps(outcome)
    assert place.builds() == []


def test_a_hook_that_is_bound_to_nothing_fires_nothing_until_it_is_bound(place: Place) -> None:
    place.trigger()
    place.server.secrets["hooks-gitea"] = SECRET
    outcome = place.push("gitea", gitea_push("acme/app", place.good))
    assert "`buildrunner hooks set gitea --host https://HOST --owner OWNER`" in outcome["error"]
    assert place.builds() == []
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    place.server.http.post("/buildrunner/v1/deliveries/1:replay")
    place.handle()
    assert len(place.builds()) == 1


def test_missed_pushes_are_looked_for_on_the_trigger_s_forge_only(place: Place) -> None:
    """Issue: whoever owned the name on the public forge had code built at once."""
    place.trigger()
    place.look()  # remembered
    place.evil.commit("acme/app", "more evil")
    newest = place.home.commit("acme/app", "better")
    place.look()
    (build,) = place.builds()
    assert build.document["substitutions"]["COMMIT_SHA"] == newest
    assert place.code(build) == "better"
    assert not place.evil.was_asked


def test_a_github_trigger_without_a_forge_is_looked_at_on_github_only(place: Place) -> None:
    place.trigger(kind="")
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["*"])
    place.push("gitea", gitea_push("acme/app", place.good, place.home.url))
    requested: list[str] = []

    def list_refs(url: str) -> dict[str, str]:
        requested.append(url)
        return {}

    Reconciler(place.server.context, RemoteRefs(list_refs=list_refs, message=lambda *_: "")).look()
    assert requested == ["https://github.com/acme/app.git"]
    assert place.builds() == []


def test_a_run_by_hand_builds_from_the_trigger_s_forge_only(place: Place) -> None:
    name = place.trigger()
    place.server.hook("gitlab", SECRET, host=place.evil.url, owners=["*"])
    place.push("gitlab", gitlab_push("acme/app", place.bad, place.evil.url))
    answer = place.server.http.post(f"/v1/projects/ours/triggers/{name}:run", json={})
    assert answer.status_code == 200, answer.text
    (build,) = place.builds()
    assert place.code(build) == "good"
    assert not place.evil.was_asked


def test_a_fork_that_is_called_as_another_forge_s_base_is_a_stranger(place: Place) -> None:
    """evil's acme/app is a fork of its evil/app: no push to it is one to ours."""
    place.trigger()
    pulls = {"github": {"owner": "acme", "name": "app", "pullRequest": {"branch": "."}}}
    place.trigger(**pulls)
    place.server.hook("gitea/evil", SECRET, host=place.evil.url, owners=["*"])
    place.push("gitea/evil", gitea_push("acme/app", place.bad, place.evil.url))
    head = {"ref": "main", "sha": place.bad, "repo": {"full_name": "acme/app"}}
    base = {"ref": "main", "sha": place.bad, "repo": {"full_name": "evil/app"}}
    body = {
        "action": "opened",
        "number": 1,
        "repository": {"full_name": "evil/app"},
        "pull_request": {"number": 1, "head": head, "base": base, "user": {"login": "eve"}},
    }
    content = json.dumps(body).encode()
    signature = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
    headers = {"X-Gitea-Event": "pull_request", "X-Gitea-Signature": signature}
    place.server.http.post("/hooks/gitea/evil", content=content, headers=headers)
    place.handle()
    assert place.builds() == []


def test_a_fork_is_fetched_from_the_forge_of_its_base(place: Place) -> None:
    place.trigger(github={"owner": "acme", "name": "app", "pullRequest": {"branch": "."}})
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    there = place.home.commit("eve/app", "a fork's")
    repo = {"full_name": "eve/app", "clone_url": f"{place.evil.url}/acme/app.git"}
    body = {
        "action": "opened",
        "number": 1,
        "repository": {"full_name": "acme/app"},
        "pull_request": {
            "number": 1,
            "head": {"ref": "main", "sha": there, "repo": repo},
            "base": {"ref": "main", "sha": place.good},
            "user": {"login": "eve"},
        },
    }
    content = json.dumps(body).encode()
    signature = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
    headers = {"X-Gitea-Event": "pull_request", "X-Gitea-Signature": signature}
    place.server.http.post("/hooks/gitea", content=content, headers=headers)
    place.handle()
    (build,) = place.builds()
    assert build.status == "PENDING"
    assert build.untrusted
    assert place.code(build) == "a fork's"
    assert not place.evil.was_asked


def test_nested_groups_are_whole_names(place: Place) -> None:
    place.server.hook("gitlab", SECRET, host=place.home.url, owners=["group/sub"])
    events = {"projectNamespace": "group/sub/app", "push": {"branch": "."}}
    for name in ("group/sub/app", "sub/app", "group/app", "group/subway/app", "x/group/sub/app"):
        named = {**events, "projectNamespace": name}
        place.trigger("gitlab", github=None, gitlabEnterpriseEventsConfig=named)
    for name in ("sub/app", "group/app", "group/subway/app", "x/group/sub/app", "group/sub"):
        outcome = place.push("gitlab", gitlab_push(name, place.good))
        assert ("error" in outcome) is (name != "group/sub")
    assert place.builds() == []
    place.push("gitlab", gitlab_push("Group/Sub/App", place.good))
    assert len(place.builds()) == 1


@pytest.mark.parametrize(
    "name", ["acme/app/../../evil/app", "acme//app", "acme/app?x", "acme/\u017fapp", "acme/app#"]
)
def test_a_name_that_can_not_be_one_is_refused(place: Place, name: str) -> None:
    place.trigger()
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["*"])
    outcome = place.push("gitea", gitea_push(name, place.good))
    assert "is not the full name of a repository" in outcome["error"]
    assert place.builds() == []


def test_a_renamed_repository_fires_under_its_new_name_only(place: Place) -> None:
    place.trigger()
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    outcome = place.push("gitea", gitea_push("acme/renamed", place.good))
    assert outcome["events"][0]["verdicts"] == []
    assert place.builds() == []


def bare_push(place: Place, url: str, commit: str, name: str = "app") -> dict[str, Any]:
    """Return the report of a bare repository's hook about a push."""
    ref = {"ref": "refs/heads/main", "before": OLD, "after": commit, "message": "m"}
    stamp = int(place.server.context.clock().timestamp())
    repository = {"name": name, "url": url}
    return {"id": str(uuid.uuid4()), "time": stamp, "repository": repository, "refs": [ref]}


def bare_trigger(place: Place) -> str:
    """A trigger on the bare repository app; where that is."""
    place.server.secrets["hooks-git-app"] = SECRET
    place.trigger(
        kind="", github=None, repositoryEventConfig={"repository": "app", "push": {"branch": "."}}
    )
    return f"file://{place.home.repositories['acme/app'].path}"


def test_a_bare_repository_s_hook_can_not_name_another_repository(place: Place) -> None:
    ours = bare_trigger(place)
    place.push("git/app", bare_push(place, ours, place.good))
    (build,) = place.builds()
    assert place.code(build) == "good"
    for url in (f"{place.evil.url}/acme/app.git", "https://github.com/acme/app.git", ""):
        outcome = place.push("git/app", bare_push(place, url, place.good))
        assert "`buildrunner hooks set git/app --repository URL`" in outcome["error"]
    told = place.push("git/app", bare_push(place, ours, place.good, "lib"))
    assert "may not report lib" in told["error"]
    assert len(place.builds()) == 1


def test_a_bare_repository_s_hook_that_was_unbound_does_not_bind_itself(place: Place) -> None:
    ours, path = bare_trigger(place), "/buildrunner/v1/hooks/git/app"
    place.push("git/app", bare_push(place, ours, place.good))
    assert place.server.http.delete(path).status_code == 200
    for url, commit in ((f"{place.evil.url}/acme/app.git", place.bad), (ours, place.good)):
        told = place.push("git/app", bare_push(place, url, commit))
        assert "`buildrunner hooks set git/app --repository URL`" in told["error"]
    assert len(place.builds()) == 1
    (shown,) = place.server.http.get("/buildrunner/v1/hooks").json()["hooks"]
    assert (shown["name"], shown["bound"]) == ("git/app", False)
    assert place.server.http.put(path, json={"repository": ours}).status_code == 200
    again = place.home.commit("acme/app", "better")
    assert "error" not in place.push("git/app", bare_push(place, ours, again))
    assert len(place.builds()) == 2


def test_a_bare_repository_s_hook_fires_no_trigger_of_a_forge(place: Place) -> None:
    """A hook that is first heard of may name any address: that makes it no voice of a forge."""
    place.server.secrets["hooks-git-evil"] = SECRET
    place.trigger()
    place.trigger(kind="")
    stamp = int(place.server.context.clock().timestamp())
    ref = {"ref": "refs/heads/main", "before": OLD, "after": place.good, "message": "m"}
    told = {"name": "evil", "url": f"{place.home.url}/acme/app.git"}
    body = {"id": "1", "time": stamp, "repository": told, "refs": [ref]}
    assert "error" not in place.push("git/evil", body)
    assert place.builds() == []


def message(server: ApiServer, path: str) -> None:
    body = {"message": {"data": "", "messageId": str(uuid.uuid4())}}
    answer = server.http.post(f"{path}?secret={SECRET}", json=body)
    assert answer.status_code == 200, answer.text


def test_a_topic_s_hook_fires_triggers_of_that_very_topic(place: Place) -> None:
    server = place.server
    for project in ("ours", "theirs"):
        topic = f"projects/{project}/topics/deploy"
        place.trigger(kind="", project=project, github=None, pubsubConfig={"topic": topic})
    server.secrets["hooks-pubsub"] = server.secrets["hooks-pubsub-deploy"] = SECRET
    for path in ("/hooks/pubsub", "/hooks/pubsub/deploy"):
        message(server, path)
    place.handle()
    assert place.builds("ours") == place.builds("theirs") == []
    server.hook("pubsub/deploy", SECRET, topic="projects/theirs/topics/deploy")
    message(server, "/hooks/pubsub/deploy")
    place.handle()
    assert (len(place.builds("ours")), len(place.builds("theirs"))) == (0, 1)


def test_a_webhook_s_payload_says_nothing_of_what_is_fetched(place: Place) -> None:
    source = {"uri": f"{place.home.url}/acme/app.git", "ref": "refs/heads/main"}
    secret = "projects/ours/secrets/s/versions/1"
    place.server.secrets[secret] = SECRET
    name = place.trigger(
        kind="", github=None, webhookConfig={"secret": secret}, sourceToBuild=source
    )
    path = f"/v1/projects/ours/triggers/{name}:webhook?secret={SECRET}"
    answer = place.server.http.post(path, json=gitea_push("acme/app", place.bad, place.evil.url))
    assert answer.status_code == 200, answer.text
    place.handle()
    (build,) = place.builds()
    assert place.code(build) == "good"
    assert not place.evil.was_asked


@pytest.mark.parametrize("event", ["webhook", "manual"])
@pytest.mark.parametrize("kind", ["GITHUB", "GITLAB", "UNKNOWN"])
def test_a_short_name_to_build_is_one_of_the_trigger_s_forge(
    place: Place, event: str, kind: str
) -> None:
    source = {"uri": "acme/app", "ref": "refs/heads/main", "repoType": kind}
    secret = "projects/ours/secrets/s/versions/1"
    place.server.secrets[secret] = SECRET
    of_event = {"webhookConfig": {"secret": secret}} if event == "webhook" else {}
    name = place.trigger(github=None, sourceToBuild=source, **of_event)
    path = f"/v1/projects/ours/triggers/{name}:{event.replace('manual', 'run')}"
    answer = place.server.http.post(f"{path}?secret={SECRET}", json={})
    assert answer.status_code == 200, answer.text
    place.handle()
    (build,) = place.builds()
    assert place.code(build) == "good"


@pytest.mark.parametrize("field", ["githubEnterpriseConfig", "bitbucketServerConfig"])
def test_a_short_name_of_a_connection_in_google_cloud_is_not_built_from_a_public_forge(
    place: Place, field: str
) -> None:
    config = "projects/p/locations/global/configs/c"
    source = {"uri": "acme/app", "ref": "refs/heads/main", "repoType": "GITHUB", field: config}
    name = place.trigger(kind="", github=None, sourceToBuild=source)
    run = place.server.http.post(f"/v1/projects/ours/triggers/{name}:run", json={})
    assert run.status_code == 400
    assert f"triggers update {name} --forge" in run.json()["error"]["message"]
    assert place.builds() == []


def test_a_trigger_that_an_earlier_version_fired_from_elsewhere_waits_for_its_admin(
    place: Place,
) -> None:
    name = place.trigger()
    trigger = place.server.store.triggers.get("ours", name)["id"]
    guess = {"kind": "gitea", "host": place.evil.url, "unconfirmed": True}
    place.server.store.triggers.set_settings("ours", trigger, {"forge": guess})
    for hook, host in (("gitea", place.home), ("gitea/evil", place.evil)):
        place.server.hook(hook, SECRET, host=host.url, owners=["*"])
        place.push(hook, gitea_push("acme/app", place.good, host.url))
    place.look()
    run = place.server.http.post(f"/v1/projects/ours/triggers/{name}:run", json={})
    assert run.status_code == 400
    assert f"update {name} --forge gitea --forge-host" in run.json()["error"]["message"]
    assert place.builds() == []
    assert not place.evil.was_asked


@pytest.fixture
def forges() -> Iterator[tuple[Forge, Forge]]:
    ours, evil = Forge(), Forge()
    yield ours, evil
    ours.close()
    evil.close()


@pytest.mark.parametrize("may", [True, False])
def test_who_may_write_is_asked_of_the_forge_and_not_where_the_payload_says(
    place: Place, forges: tuple[Forge, Forge], may: bool
) -> None:
    ours, evil = forges
    pull = {"branch": ".", "commentControl": "COMMENTS_ENABLED"}
    place.trigger(host=ours.url, github={"owner": "acme", "name": "app", "pullRequest": pull})
    place.server.hook("gitea", SECRET, host=ours.url, owners=["acme"])
    place.server.secrets[token_name(ours.url)] = "t0ken"
    place.server.secrets[token_name(evil.url)] = "t0ken"
    ours.say("/collaborators/eve/permission", {"permission": "write" if may else "read"})
    evil.say("/collaborators/eve/permission", {"permission": "admin"})
    side = {"ref": "main", "sha": place.good, "repo": {"full_name": "acme/app"}}
    for forge in forges:
        forge.say("/pulls/7", {"number": 7, "base": side, "head": {**side, "ref": "feat"}})
    body = {
        "action": "created",
        "is_pull": True,
        "repository": {"full_name": "acme/app", "url": f"{evil.url}/api/v1/repos/acme/app"},
        "issue": {
            "number": 7,
            "user": {"login": "eve"},
            "pull_request": {"url": f"{evil.url}/api/v1/repos/acme/app/pulls/7"},
        },
        "comment": {"body": "/gcbrun", "user": {"login": "eve"}},
    }
    content = json.dumps(body).encode()
    signature = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
    headers = {"X-Gitea-Event": "issue_comment", "X-Gitea-Signature": signature}
    assert place.server.http.post("/hooks/gitea", content=content, headers=headers).is_success
    place.handle()
    assert len(place.builds()) == int(may)
    assert {"7", "permission"} <= {path.rpartition("/")[2] for path, _ in ours.requested}
    assert evil.requested == []


@pytest.mark.parametrize("association", ["MEMBER", "COLLABORATOR"])
@pytest.mark.parametrize("may", [True, False])
def test_a_member_or_collaborator_of_github_has_to_have_write_access(
    place: Place, forges: tuple[Forge, Forge], association: str, may: bool
) -> None:
    """Attack: a member of the organization who may only read the repository starts builds."""
    forge, _ = forges
    pull = {"branch": ".", "commentControl": "COMMENTS_ENABLED"}
    place.trigger(
        "github", host=forge.url, github={"owner": "acme", "name": "app", "pullRequest": pull}
    )
    place.server.hook("github", SECRET, host=forge.url, owners=["acme"])
    place.server.secrets[token_name(forge.url)] = "t0ken"
    side = {"ref": "main", "sha": place.good, "repo": {"full_name": "acme/app"}}
    for path, answer in (
        ("/collaborators/eve/permission", {"permission": "write" if may else "read"}),
        ("/pulls/7", {"number": 7, "base": side, "head": {**side, "ref": "feat"}}),
    ):
        content = json.dumps(answer).encode()
        forge.answers[f"/api/v3/repos/acme/app{path}"] = (200, content)
    eve = {"user": {"login": "eve"}, "author_association": association}
    body = {
        "action": "created",
        "repository": {"full_name": "acme/app"},
        "issue": {"number": 7, "pull_request": {"url": "x"}, **eve},
        "comment": {"body": "/gcbrun", **eve},
    }
    content = json.dumps(body).encode()
    signature = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "issue_comment", "X-Hub-Signature-256": f"sha256={signature}"}
    assert place.server.http.post("/hooks/github", content=content, headers=headers).is_success
    place.handle()
    assert len(place.builds()) == int(may)


def test_a_person_of_another_project_s_number_is_not_a_member(place: Place) -> None:
    """A payload of GitLab names its project by number, too, which is not believed."""
    requested: list[str] = []
    remotes = wiring.GitRemotes(place.settings, POLICY)
    place.trigger(
        "gitlab",
        github=None,
        gitlabEnterpriseEventsConfig={
            "projectNamespace": "acme/app",
            "pullRequest": {"branch": ".", "commentControl": "COMMENTS_ENABLED"},
        },
    )
    place.server.hook("gitlab", SECRET, host=place.home.url, owners=["acme"])
    place.home.server.on_request = requested.append
    request = {
        "iid": 7,
        "author_id": 5,
        "source_branch": "feat",
        "target_branch": "main",
        "source_project_id": 1,
        "target_project_id": 1,
        "last_commit": {"id": place.good, "message": "m"},
    }
    body = {
        "object_kind": "note",
        "user": {"id": 66, "username": "eve"},
        "project": {"id": 4711, "path_with_namespace": "acme/app"},
        "object_attributes": {"noteable_type": "MergeRequest", "note": "/gcbrun"},
        "merge_request": request,
    }
    headers = {"X-Gitlab-Token": SECRET}
    assert place.server.http.post("/hooks/gitlab", json=body, headers=headers).is_success
    place.handle()
    remotes.stop()
    assert place.builds() == []
    members = [one for one in requested if "members" in one]
    assert members == ["GET /api/v4/projects/acme%2Fapp/members/all/66"]


def test_the_status_of_a_build_goes_to_the_trigger_s_forge_only(place: Place) -> None:
    name = place.trigger()
    for url in (place.home.url, place.evil.url, "https://github.com"):
        place.server.secrets[token_name(url)] = "t0ken"
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    place.push("gitea", gitea_push("acme/app", place.good))
    place.server.http.post(f"/v1/projects/ours/triggers/{name}:run", json={})
    outbox = place.server.store.outbox

    def changed(change_id: int) -> dict[str, Any]:
        provenance = {"resolvedGitSource": {"url": "https://x/y", "revision": place.good}}
        return {**(outbox.changed_build(change_id) or {}), "sourceProvenance": provenance}

    reporter = StatusReporter(place.server.context.secrets, dict, changed)
    for change in outbox.changes(limit=10):
        (told,) = reporter(change)
        wanted = f"{place.home.url}/api/v1/repos/acme/app/statuses/{place.good}"
        assert told.message["url"] == wanted


def test_only_an_admin_of_the_whole_server_binds_hooks(tmp_path: Path) -> None:
    with api_server(tmp_path, auth=True) as server:
        tokens = {
            "project admin": server.token("a", "admin", projects=("p",)),
            "reader": server.token("b", "read"),
            "submitter": server.token("c", "submit", "approve"),
        }
        path, body = "/buildrunner/v1/hooks/gitea", {"host": "git.example.com", "owners": ["*"]}
        for token in tokens.values():
            headers = {"Authorization": f"Bearer {token}"}
            assert server.http.put(path, json=body, headers=headers).status_code == 403
            assert server.http.delete(path, headers=headers).status_code == 403
        root = {"Authorization": f"Bearer {server.token('d', 'admin')}"}
        assert server.http.put(path, json=body, headers=root).status_code == 200
        noted = [(one.who, one.action, one.target) for one in server.store.audit.page()]
        assert ("d", "hooks.bind", "gitea") in noted


def test_the_history_of_a_repository_is_its_own_on_each_port(place: Place) -> None:
    """What one forge's acme/app is at says nothing of another's, though they share a host name."""
    place.trigger()
    place.trigger(host=place.evil.url, project="theirs")
    place.look()
    newest = place.home.commit("acme/app", "better")
    git(place.evil.repositories["acme/app"].work, "fetch", "-q",
        str(place.home.repositories["acme/app"].path), "main")  # fmt: skip
    git(place.evil.repositories["acme/app"].work, "push", "-q", "-f", "origin", "FETCH_HEAD:main")
    place.look()
    assert [one.document["substitutions"]["COMMIT_SHA"] for one in place.builds()] == [newest]
    assert len(place.builds("theirs")) == 1


def shared(place: Place) -> None:
    """A hook of project ``eve`` and a hook of ``ours``; only ``ours`` has triggers."""
    place.trigger()
    place.trigger(github={"owner": "acme", "name": "app", "push": {"tag": "^v"}})
    place.server.hook("gitea/eve", SECRET, host=place.home.url, projects=["eve"])
    place.server.hook("gitea/ours", SECRET, host=place.home.url, owners=["acme"], projects=["ours"])


def commits(builds: list[Any]) -> list[str]:
    return [build.document["substitutions"]["COMMIT_SHA"] for build in builds]


def test_a_hook_of_one_project_has_nothing_built_again_in_another(place: Place) -> None:
    """Issue: it reported a made-up commit, and the next look found that the branch had moved."""
    shared(place)
    place.home.repositories["acme/app"].push("HEAD:refs/tags/v1")
    place.look()
    lie = gitea_push("acme/app", "d" * 40)
    deleted = {**gitea_push("acme/app", "0" * 40), "before": place.good, "ref": "refs/tags/v1"}
    for body in (lie, deleted, {**lie, "ref": "refs/heads/none"}):
        (event,) = place.push("gitea/eve", body)["events"]
        assert event["verdicts"] == []
        place.look()
    assert place.builds() == []


def test_a_hook_of_one_project_silences_no_push_of_another(place: Place) -> None:
    """Issue: it reported the coming commit first, so that the push was no news."""
    shared(place)
    place.look()
    newest = place.home.commit("acme/app", "better")
    place.push("gitea/eve", gitea_push("acme/app", newest))
    place.push("gitea/ours", gitea_push("acme/app", newest))
    assert commits(place.builds()) == [newest]
    missed = place.home.commit("acme/app", "best")
    place.push("gitea/eve", gitea_push("acme/app", missed))
    place.look()
    assert commits(place.builds()) == [missed, newest]


def test_a_project_with_a_trigger_for_a_repository_changes_no_history_of_another(
    place: Place,
) -> None:
    shared(place)
    place.trigger(project="eve")
    place.look()
    for lie in ("d" * 40, place.home.commit("acme/app", "better")):
        place.push("gitea/eve", gitea_push("acme/app", lie))
    assert (len(place.builds("eve")), place.builds()) == (2, [])
    place.look()
    assert (len(place.builds("eve")), len(place.builds())) == (2, 1)


def test_a_missed_push_that_one_project_knows_fires_the_triggers_of_the_other(place: Place) -> None:
    """One verdict says "seen already", the other one fires."""
    place.trigger(project="ours")
    place.trigger(project="theirs")
    place.server.hook("gitea", SECRET, host=place.home.url, owners=["acme"])
    place.server.hook("gitea/theirs", SECRET, host=place.home.url, projects=["theirs"])
    place.push("gitea/theirs", gitea_push("acme/app", place.good))
    (event,) = place.push("gitea", gitea_push("acme/app", place.good))["events"]
    told = {one["project"]: (one["fires"], one["reason"]) for one in event["verdicts"]}
    assert told["ours"][0]
    assert not told["theirs"][0]
    assert "seen at" in told["theirs"][1]
    assert (len(place.builds("ours")), len(place.builds("theirs"))) == (1, 1)


def test_the_hook_of_a_bare_repository_says_nothing_of_what_is_at_its_address(
    place: Place,
) -> None:
    """Issue: its first delivery named a forge's repository, with refs of the sender's choice."""
    place.server.secrets["hooks-git-evil"] = SECRET
    place.trigger()
    named = {"repository": "evil", "push": {"branch": "."}}
    place.trigger(kind="", github=None, repositoryEventConfig=named)  # the same project
    place.home.repositories["acme/app"].push("HEAD:other")
    address = f"{place.home.url}/acme/app.git"
    lie = bare_push(place, address, "d" * 40, "evil")
    place.push("git/evil", {**lie, "installed": True, "id": "1"})
    place.push("git/evil", {**lie, "id": "2"})
    place.look()
    place.push("git/evil", {**bare_push(place, address, "e" * 40, "evil"), "id": "3"})
    place.look()
    listed = place.server.http.get("/v1/projects/ours/builds").json().get("builds", [])
    fired = {one["substitutions"]["TRIGGER_NAME"] for one in listed}
    bare, forge = (
        one["name"]
        for one in sorted(
            place.server.http.get("/v1/projects/ours/triggers").json()["triggers"],
            key=lambda one: "github" in one,
        )
    )
    assert fired == {bare}, forge


def hook_records(place: Place) -> set[str]:
    """The refs that the hook of the bare repository app has recorded, for no project."""
    path = place.home.repositories["acme/app"].path
    key = bare_history("app", f"file://{path}")
    return set(place.server.store.refs.known(Watched("", key)))


def reported_part(place: Place, url: str, *names: str, more: bool = True) -> dict[str, Any]:
    """Return a bare repository's report of a part of its refs, as its hook is installed."""
    refs = [{"ref": f"refs/heads/{name}", "before": "", "after": OLD} for name in names]
    part = {**bare_push(place, url, OLD), "refs": refs, "installed": True, "more": more}
    return place.push("git/app", part)


def test_the_refs_that_a_hook_reports_are_limited_over_all_its_deliveries(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: a hook that says again and again that it is installed fills the database."""
    monkeypatch.setattr(reconcile, "MOST_REFS", 4)
    url = bare_trigger(place)
    assert "error" not in reported_part(place, url, "a", "b", "c")
    assert "error" not in reported_part(place, url, "b", "c", "d")  # known ones count once
    for names in (("e", "f"), ("g",), ("a",)):
        outcome = reported_part(place, url, *names)
        assert "more than 4 branches and tags" in outcome["error"]
        assert hook_records(place) == {reconcile.TOO_MANY_REFS}
    assert "error" in reported_part(place, url, more=False)  # no part counts as the whole
    place.look()
    assert place.builds() == []  # what is there is known, and no news


def test_pushes_of_a_hook_add_no_more_refs_than_it_may_report(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "MOST_REFS", 4)
    url = bare_trigger(place)
    reported_part(place, url, "a", "b", more=False)
    for name in ("c", "d", "e"):
        ref = {"ref": f"refs/heads/{name}", "before": "", "after": OLD, "message": "m"}
        place.push("git/app", {**bare_push(place, url, OLD), "refs": [ref]})
        assert len(hook_records(place)) <= 4
    assert hook_records(place) == set()


def test_pushes_add_no_more_refs_to_the_record_of_a_project_than_a_repository_may_have(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: pushes of ever new branches fill the database."""
    monkeypatch.setattr(reconcile, "MOST_REFS", 4)
    url = bare_trigger(place)
    for name in "abcdef":
        ref = {"ref": f"refs/heads/{name}", "before": "", "after": OLD, "message": "m"}
        place.push("git/app", {**bare_push(place, url, OLD), "refs": [ref]})
    assert place.server.store.refs.count("ours") == 4
    assert len(place.builds()) == 6  # a push that a hook reports is built all the same


def test_a_check_builds_no_branch_again_and_again_for_which_a_record_has_no_room(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound_to = {"repository": bare_trigger(place), "projects": ["ours"]}
    answer = place.server.http.put("/buildrunner/v1/hooks/git/app", json=bound_to)
    assert answer.status_code == 200
    place.look()
    known = place.server.store.refs.count("ours")
    assert known > 0
    monkeypatch.setattr(reconcile, "MOST_REFS", known)
    place.home.repositories["acme/app"].push("HEAD:refs/heads/one-more")
    place.look()
    place.look()
    assert place.builds() == []


def test_an_installed_hook_tells_only_the_projects_that_it_may_fire(place: Place) -> None:
    """Its report counts as seen for its own project, and makes no other build."""
    url = bare_trigger(place)
    path = "/buildrunner/v1/hooks/git/app"
    bound_to = {"repository": url, "projects": ["eve"]}
    assert place.server.http.put(path, json=bound_to).status_code == 200
    named = {"repository": "app", "push": {"branch": "."}}
    place.trigger(kind="", github=None, project="eve", repositoryEventConfig=named)
    place.push("git/app", {**bare_push(place, url, OLD), "installed": True})
    place.look()
    assert (commits(place.builds("eve")), place.builds("ours")) == ([place.good], [])


@pytest.mark.parametrize("reported", ["opened", "updated"])
def test_a_hook_of_one_project_hides_no_update_of_a_pull_request_from_another(
    place: Place, reported: str
) -> None:
    """Issue: Bitbucket's update was "only the text", since another hook had reported the commit."""
    place.trigger(
        kind="bitbucket",
        host="https://bitbucket.org",
        github={"owner": "acme", "name": "app", "pullRequest": {"branch": "."}},
    )
    place.server.hook("bitbucket/eve", SECRET, projects=["eve"])
    place.server.hook("bitbucket/ours", SECRET, owners=["acme"], projects=["ours"])
    kind = {"opened": "created"}.get(reported, reported)
    bitbucket(place, "bitbucket/eve", kind, "b" * 40)
    told = bitbucket(place, "bitbucket/ours", "updated", "b" * 40)
    assert "ignored" not in told, told
    assert len(place.builds()) == 1


def bitbucket(place: Place, hook: str, kind: str, commit: str) -> dict[str, Any]:
    """Report a pull request of a branch as Bitbucket does; the outcome of its event."""
    repository = {"full_name": "acme/app"}
    body = {
        "repository": repository,
        "pullrequest": {
            "id": 1,
            "title": "t",
            "author": {"nickname": "eve"},
            "source": {
                "branch": {"name": "b"},
                "commit": {"hash": commit},
                "repository": repository,
            },
            "destination": {
                "branch": {"name": "main"},
                "commit": {"hash": OLD},
                "repository": repository,
            },
        },
        "actor": {"nickname": "eve"},
    }
    headers = {"X-Event-Key": f"pullrequest:{kind}", "X-Request-UUID": str(uuid.uuid4())}
    (event,) = place.push(hook, body, headers=headers)["events"]
    return dict(event)


def test_no_hook_puts_deliveries_into_the_lane_of_another(place: Place) -> None:
    """Issue: a field of another forge's payloads named any repository, whose pushes then waited."""
    place.server.hook("gitea/eve", SECRET, host=place.evil.url, owners=["evil"])
    place.server.hook("gitea/ours", SECRET, host=place.home.url, owners=["acme"])
    app = f"{place.home.url}/acme/app.git"
    for more in ({}, {"project": {"git_http_url": app}}, {"repository": {"url": app}}):
        body = gitea_push("evil/app", place.bad)
        for key, value in more.items():
            body[key] = {**body.get(key, {}), **value}
        place.push("gitea/eve", body)
    place.push("gitea/ours", gitea_push("acme/app", place.good))
    place.push("gitea/ours", gitea_push("acme/other", place.good))
    store = place.server.store.deliveries
    lanes = [one.lane for one in reversed(store.page())]
    assert lanes == ["gitea/eve evil/app"] * 3 + ["gitea/ours acme/app", "gitea/ours acme/other"]


def test_a_trial_tells_nothing_of_what_a_hook_is_bound_to(place: Place) -> None:
    """Issue: `read` in one project learned the address of each bare repository."""
    name = place.trigger()
    secret = "https://git.corp.example.com/secret/payroll.git"
    ours = {"repository": secret.replace("secret/payroll", "hidden/app"), "projects": ["ours"]}
    for hook, binding in (
        ("git/app", ours),
        ("git/payroll", {"repository": secret, "projects": ["theirs"]}),
        ("github/hr", {"owners": ["secret-owner"], "projects": ["theirs"]}),
        ("github/ours", {"owners": ["hidden-owner"], "projects": ["ours"]}),
    ):
        path = f"/buildrunner/v1/hooks/{hook}"
        assert place.server.http.put(path, json=binding).status_code == 200
    path = f"/buildrunner/v1/projects/ours/triggers/{name}:test"
    bare = {"time": 1, "refs": [{"ref": "refs/heads/a", "after": OLD}]}
    for hook, event in (
        ("git/app", {**bare, "repository": {"name": "app", "url": "file:///x"}}),
        ("git/payroll", {**bare, "repository": {"name": "payroll", "url": "file:///x"}}),
        ("github/hr", gitea_push("acme/app", place.good)),
        ("github/ours", gitea_push("acme/app", place.good)),
    ):
        answer = place.server.http.post(path, json={"hook": hook, "event": event})
        refused = "may not report this event" in answer.text
        assert refused == hook.endswith(("ours", "app")), answer.text
        for word in ("corp", "secret", "hidden"):
            assert word not in answer.text
