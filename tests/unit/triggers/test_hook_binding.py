"""What a hook may speak for."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from buildrunner.errors import ConfigError
from buildrunner.triggers.events import PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forge_host import ForgeHost, named_forge
from buildrunner.triggers.forges.forge import BadDelivery, ParsedDelivery
from buildrunner.triggers.hook_binding import HookBinding, bound, read_binding, unbound

COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("hook", "document", "binding"),
    [
        (
            "github",
            {"owners": ["acme"]},
            HookBinding(host="https://github.com", owners=("acme",)),
        ),
        (
            "forgejo/team",
            {"host": "Git.Example.com", "projects": ["p"]},
            HookBinding(host="https://git.example.com", projects=("p",)),
        ),
        (
            "gitlab",
            {"host": "http://10.0.0.7:8080/gl/", "owners": ["g/s", "a/b/c", "*"]},
            HookBinding(host="http://10.0.0.7:8080/gl", owners=("g/s", "a/b/c", "*")),
        ),
        (
            "git/app",
            {"repository": "file:///srv/app.git"},
            HookBinding(repository="file:///srv/app.git"),
        ),
        (
            "pubsub/x",
            {"topic": "projects/p/topics/t", "projects": ["p"]},
            HookBinding(topic="projects/p/topics/t", projects=("p",)),
        ),
    ],
)
def test_bindings(hook: str, document: dict[str, Any], binding: HookBinding) -> None:
    assert read_binding(hook, document) == binding


@pytest.mark.parametrize(
    ("hook", "document", "said"),
    [
        ("github", {}, "needs owners on the forge, or projects of this server"),
        ("github", {"owners": []}, "needs owners"),
        ("gitea", {"owners": ["*"]}, "a forge of kind gitea needs its host"),
        ("gitea", {"host": "github.com", "owners": ["*"]}, "github.com is a forge of kind github"),
        ("github", {"owners": ["acme?"]}, "'acme\\?' is no owner"),
        ("github", {"owners": ["../acme"]}, "is no owner"),
        ("github", {"owners": [""]}, "is no owner"),
        ("github", {"owners": "acme"}, "Expected `array`"),
        ("github", {"owners": ["a"], "topic": "projects/p/topics/t"}, "topic: a hook of this"),
        ("github", {"owners": ["a"], "repository": "https://e.com/r"}, "repository: a hook of"),
        ("github", {"owner": ["a"]}, "unknown field `owner`"),
        ("git", {"repository": "file:///srv/app.git"}, "has a name: git/NAME"),
        ("git/app", {}, "needs the URL"),
        ("git/app", {"repository": "https://u:hunter2@e.com/r"}, "the URL holds a password"),
        ("git/app", {"repository": "file:///srv/app.git", "owners": ["a"]}, "owners: a hook"),
        ("pubsub", {}, "the full name of the topic"),
        ("pubsub", {"topic": "deploy"}, "the full name of the topic"),
        ("pubsub", {"topic": "projects//topics/t"}, "the full name of the topic"),
    ],
)
def test_what_is_no_binding_is_refused(hook: str, document: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_binding(hook, document)
    assert "hunter2" not in str(caught.value)


def push(name: str = "acme/app", **repository: Any) -> PushEvent:
    told = Repository(full_name=name, **repository)
    return PushEvent(repository=told, ref="refs/heads/main", after=COMMIT)


GITEA = HookBinding(host="https://git.example.com", owners=("acme",))


def test_a_bound_event_has_addresses_that_are_computed() -> None:
    told = {
        "clone_url": "https://git.example.com/somewhere/else.git",
        "urls": ("git@evil.example:a/b.git", "https://GIT.example.com/x"),
    }
    (event,) = bound(ParsedDelivery(kind="push", events=(push(**told),)), "gitea", GITEA).events
    assert isinstance(event, PushEvent)
    assert event.repository == Repository(
        full_name="acme/app",
        clone_url="https://git.example.com/acme/app.git",
        forge="gitea",
        host=named_forge("gitea", "git.example.com"),
    )


@pytest.mark.parametrize(
    ("head", "url"),
    [("eve/app", "https://git.example.com/eve/app.git"), ("", "")],
)
def test_the_head_of_a_pull_request_is_on_the_same_forge(head: str, url: str) -> None:
    pull = PullRequestEvent(
        repository=Repository(full_name="acme/app"),
        number=1,
        action="opened",
        base_branch="main",
        head_branch="x",
        head_full_name=head,
        head_clone_url="https://evil.example/eve/app.git",
    )
    (event,) = bound(ParsedDelivery(kind="pull", events=(pull,)), "gitea", GITEA).events
    assert isinstance(event, PullRequestEvent)
    assert event.head_clone_url == url


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            push(clone_url="https://evil.example/acme/app.git"),
            "and the payload is about evil.example",
        ),
        (push(urls=("https://git.example.com:8443/acme/app",)), "is bound to https://git.exam"),
        (push(urls=("https://git.example.com.evil/acme/app",)), "is bound to"),
        (push("acme2/app"), "is bound to acme, and acme2/app is none of them"),
        (push("app"), "is not the full name of a repository"),
        (push("acme/../evil/app"), "is not the full name of a repository"),
    ],
)
def test_what_a_hook_may_not_speak_for_is_refused(event: PushEvent, said: str) -> None:
    with pytest.raises(BadDelivery, match=said):
        bound(ParsedDelivery(kind="push", events=(push(), event)), "gitea", GITEA)


@pytest.mark.parametrize("commit", ["main", "refs/pull/7/head", COMMIT[:12], f"{COMMIT}^", "HEAD"])
def test_a_push_names_a_whole_commit(commit: str) -> None:
    repository = Repository(full_name="acme/app", clone_url="https://github.com/acme/app.git")
    pushed = PushEvent(repository=repository, ref="refs/heads/main", after=commit)
    reported = replace(pushed, repository=replace(repository, full_name="app"))
    hooks = [
        (pushed, "github", HookBinding(owners=("acme",))),
        (reported, "git/app", HookBinding(repository="https://github.com/acme/app.git")),
    ]
    for event, hook, binding in hooks:
        with pytest.raises(BadDelivery, match="is not the name of a commit"):
            bound(ParsedDelivery(kind="push", events=(event,)), hook, binding)


@pytest.mark.parametrize("commit", ["main", "refs/pull/8/head", "abc", f"{COMMIT}^"])
@pytest.mark.parametrize("field", ["head_commit", "base_commit"])
def test_a_pull_request_names_commits(field: str, commit: str) -> None:
    event = PullRequestEvent(
        repository=Repository(full_name="acme/app"),
        number=7,
        action="opened",
        base_branch="main",
        head_branch="fix",
        **{field: commit},
    )
    with pytest.raises(BadDelivery, match="is not the name of a commit"):
        bound(ParsedDelivery(kind="push", events=(event,)), "github", HookBinding(owners=("acme",)))


def test_a_binding_of_an_earlier_version_with_another_spelling_of_its_host_fires_nothing() -> None:
    binding = HookBinding(host="https://git.example.com/%67itea", owners=("acme",))
    delivery = ParsedDelivery(kind="push", events=(push(),))
    with pytest.raises(BadDelivery, match="invalid address of a forge"):
        bound(delivery, "gitea", binding)


def test_an_unbound_hook_says_how_to_bind_it() -> None:
    assert "`buildrunner hooks set github/a --owner OWNER`" in unbound("github/a")
    assert "hooks set gitea --host https://HOST --owner OWNER`" in unbound("gitea")
    assert "hooks set pubsub/t --topic projects/PROJECT/topics/t`" in unbound("pubsub/t")


def test_hosts_are_shown_in_full() -> None:
    assert ForgeHost(kind="gitea", url="https://git.example.com").key == "git.example.com"
