"""Deliveries that are signed, and tell of what can't be: refused with the reason."""

import json
import re

import pytest

from buildrunner.server.events.handling import described
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest, parse_delivery

NEW = "b" * 40
REPOSITORY = {"full_name": "acme/app", "clone_url": "https://git.example.com/acme/app.git"}


def parsed(forge, kind, body):
    header = "x-event-key" if forge.startswith("bitbucket") else f"x-{forge}-event"
    return parse_delivery(FORGES[forge], WebhookRequest({header: kind}, json.dumps(body).encode()))


def push(ref="refs/heads/main", after=NEW, before="a" * 40):
    return {"ref": ref, "after": after, "before": before, "repository": REPOSITORY}


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "feature/x",
        "v1.2",
        "größe",
        "a-b_c",
        "--x",
        "a@b",
        "$(x)",
        "@",
        "x" * 200,
        "a.locks",
    ],
)
def test_names_that_git_allows_are_taken(name):
    (event,) = parsed("github", "push", push(f"refs/heads/{name}")).events
    assert event.branch == name


@pytest.mark.parametrize(
    "ref",
    ["main", "heads/main", "refs/heads/a b", "refs/heads/a..b", "refs/heads/", "refs/heads/a.lock"]
    + [
        f"refs/heads/{one}"
        for one in ("a\0b", "a\nb", "\x1b[31m", "a~1", "a:b", ".a", "a/.b", "a.")
    ]
    + [f"refs/heads/{one}" for one in ("a*", "a?", "[a", "a\\b", "a^", "@{-1}", "a//b")],
)
def test_names_that_git_never_has_are_not(ref):
    with pytest.raises(BadDelivery, match="is not the full name of a branch or tag") as caught:
        parsed("github", "push", push(ref))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("commit", ["b", "--upload-pack=x", "HEAD", f"{NEW}\n", "g" * 40, "b" * 65])
def test_what_is_no_commit_is_not_handed_to_git(commit):
    said = "is not the id of a commit"
    with pytest.raises(BadDelivery, match=said):
        parsed("github", "push", push(after=commit))
    with pytest.raises(BadDelivery, match=said):
        parsed("gitea", "push", push(before=commit))
    pull = {"number": 1, "base": {"ref": "main"}, "head": {"ref": "x", "sha": commit}}
    body = {"action": "opened", "repository": REPOSITORY, "pull_request": pull}
    with pytest.raises(BadDelivery, match=said):
        parsed("github", "pull_request", body)


def test_branches_of_pull_requests_are_names_too():
    pull = {"number": 1, "base": {"ref": "main"}, "head": {"ref": "a b", "sha": NEW}}
    body = {"action": "opened", "repository": REPOSITORY, "pull_request": pull}
    with pytest.raises(BadDelivery, match='"a b" is not the name of a branch'):
        parsed("github", "pull_request", body)


def test_long_names_are_told_in_a_line():
    (event,) = parsed("github", "push", push(f"refs/heads/{'x' * 900}")).events
    assert re.fullmatch(r"push of refs/heads/x+… to b{12} in acme/app \(github\)", described(event))
    assert len(described(event)) < 200
    with pytest.raises(BadDelivery) as caught:
        parsed("github", "push", push(f"refs/heads/{'x' * 5000}:"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("forge", "kind", "body", "said"),
    [
        # What services of Bitbucket sent before there were webhooks, and a plugin of its server.
        ("bitbucket", "repo:push", {"commits": [], "repository": {}}, "push.changes is missing"),
        ("bitbucket-server", "repo:refs_changed", {"refChanges": []}, "changes is missing"),
        # GitHub's first payloads.
        (
            "github",
            "push",
            {**push(), "repository": {"name": "app", "owner": {"name": "acme"}}},
            "repository.full_name is missing",
        ),
    ],
)
def test_forms_of_long_ago_are_told_from_pushes_of_nothing(forge, kind, body, said):
    with pytest.raises(BadDelivery, match=re.escape(said)):
        parsed(forge, kind, body)


@pytest.mark.parametrize(
    ("forge", "kind", "body", "said"),
    [
        ("github", "pull_request", {"repository": REPOSITORY}, "pull_request.base.ref is missing"),
        ("gitea", "pull_request", {"repository": REPOSITORY}, "pull_request.base.ref is missing"),
        (
            "gitlab",
            "",
            {
                "object_kind": "merge_request",
                "project": {"path_with_namespace": "acme/app"},
                "object_attributes": {
                    "action": "open",
                    "target_branch": "main",
                    "source_branch": "empty",
                    "last_commit": {},
                },
            },
            "object_attributes.last_commit.id is missing",
        ),
        (
            "bitbucket",
            "pullrequest:created",
            {"pullrequest": {"destination": {"repository": REPOSITORY}}},
            "pullrequest.destination.branch.name is missing",
        ),
        (
            "bitbucket-server",
            "pr:opened",
            {"pullRequest": {"toRef": {"repository": {"slug": "app", "project": {"key": "A"}}}}},
            "pullRequest.toRef.displayId is missing",
        ),
    ],
)
def test_what_a_pull_request_lacks_is_named_in_full(forge, kind, body, said):
    with pytest.raises(BadDelivery, match=re.escape(said)):
        parsed(forge, kind, body)


@pytest.mark.parametrize("field", ["full_name", "clone_url", "html_url"])
@pytest.mark.parametrize("forge", ["github", "gitea"])
def test_no_database_and_no_git_is_asked_about_what_no_repository_is_called(forge, field):
    body = {**push(), "repository": {**REPOSITORY, field: "https://git.example.com/a\0b"}}
    with pytest.raises(BadDelivery, match="is not the name or address of a repository") as caught:
        parsed(forge, "push", body)
    assert str(caught.value).isprintable()


def test_where_a_fork_is_has_no_control_characters_either():
    head = {"ref": "x", "sha": NEW, "repo": {"full_name": "eve/app\x1b"}}
    pull = {"number": 1, "base": {"ref": "main"}, "head": head}
    body = {"action": "opened", "repository": REPOSITORY, "pull_request": pull}
    with pytest.raises(BadDelivery, match="is not the name or address of a repository"):
        parsed("github", "pull_request", body)


def test_a_bare_repository_s_folder_may_have_blanks():
    told = {"name": "app", "url": "/srv/my repositories/app.git"}
    body = {"repository": told, "refs": [{"ref": "refs/heads/main", "after": NEW}]}
    (event,) = parsed("git", "push", body).events
    assert event.repository.clone_url == told["url"]
