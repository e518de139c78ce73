"""Forms of payloads and of proofs that forges send besides the usual ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from buildrunner.triggers.events import PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import (
    BadDelivery,
    ParsedDelivery,
    WebhookRequest,
    lacking_proof,
)

OLD, NEW = "a" * 40, "b" * 40
NO_COMMIT = "0" * 40
SECRET = "It's a Secret to Everybody"
FORM = "application/x-www-form-urlencoded"
REPOSITORY = {
    "full_name": "acme/app",
    "clone_url": "https://git.example.com/acme/app.git",
    "html_url": "https://git.example.com/acme/app",
    "url": "https://git.example.com/api/v1/repos/acme/app",
}
PUSH = {
    "ref": "refs/heads/main",
    "before": OLD,
    "after": NEW,
    "repository": REPOSITORY,
    "head_commit": {"id": NEW, "message": "a & b = c; größer %20"},
    "commits": [{"id": NEW, "added": ["a"], "removed": [], "modified": []}],
}


def parsed(forge: str, body: Any, **headers: str) -> ParsedDelivery:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return FORGES[forge].parse(WebhookRequest(named, content))


def push_of(found: ParsedDelivery) -> PushEvent:
    (event,) = found.events
    assert isinstance(event, PushEvent)
    return event


def pull_of(found: ParsedDelivery) -> PullRequestEvent:
    (event,) = found.events
    assert isinstance(event, PullRequestEvent)
    return event


@pytest.mark.parametrize(("forge", "maker"), [("github", "github"), ("gitea", "gitea")])
@pytest.mark.parametrize("content_type", [FORM, f"{FORM}; charset=utf-8"])
def test_forms_are_read_too(forge: str, maker: str, content_type: str) -> None:
    body = urlencode({"payload": json.dumps(PUSH, ensure_ascii=False)}).encode()
    headers = {f"x_{maker}_event": "push", "content_type": content_type}
    event = push_of(parsed(forge, body, **headers))
    assert (event.after, event.message) == (NEW, PUSH["head_commit"]["message"])  # type: ignore[index]


def test_json_that_is_called_a_form_is_json() -> None:
    body = json.dumps({**PUSH, "compare": "https://x.example/?a=1&payload=%7B%7D"}).encode()
    assert push_of(parsed("github", body, x_github_event="push", content_type=FORM)).after == NEW


def test_what_is_signed_of_a_form_is_the_form() -> None:
    body = f"payload={quote(json.dumps(PUSH))}".encode()
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"content-type": FORM, "x-hub-signature-256": f"sha256={digest}"}
    assert FORGES["github"].is_genuine(WebhookRequest(headers, body), SECRET)
    assert not FORGES["github"].is_genuine(WebhookRequest(headers, body + b"+"), SECRET)


@pytest.mark.parametrize("body", [b"", b"payload=", b"x=1", b"\xff", b"payload=%7B", b"&" * 500])
def test_forms_that_hold_no_payload_are_bad_deliveries(body: bytes) -> None:
    with pytest.raises(BadDelivery):
        parsed("github", body, content_type=FORM, x_github_event="push")


@pytest.mark.parametrize(
    ("forge", "name"),
    [
        ("github", "x-github-event"),
        ("gitea", "x-gitea-event"),
        ("bitbucket", "x-event-key"),
        ("bitbucket-server", "x-event-key"),
    ],
)
def test_a_delivery_that_does_not_say_what_it_is_is_told_what_is_missing(
    forge: str, name: str
) -> None:
    with pytest.raises(BadDelivery, match=f"the header {name} is missing"):
        parsed(forge, PUSH)


@pytest.mark.parametrize("maker", ["gitea", "forgejo", "gogs"])
def test_gitea_s_relatives_have_headers_of_their_own(maker: str) -> None:
    body = json.dumps(PUSH).encode()
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        f"x-{maker}-event": "push",
        f"x-{maker}-delivery": "d1",
        f"x-{maker}-signature": digest,
    }
    sent = WebhookRequest(headers, body)
    assert FORGES["forgejo"].is_genuine(sent, SECRET)
    assert not FORGES["forgejo"].is_genuine(sent, SECRET + "x")
    assert FORGES["forgejo"].delivery_id(sent) == "d1"
    assert push_of(FORGES["forgejo"].parse(sent)).after == NEW


def test_without_a_head_commit_the_message_is_that_of_the_listed_one() -> None:
    commits = [
        {"id": NEW, "message": "newest [skip ci]", "added": ["a"], "removed": [], "modified": []},
        {"id": "c" * 40, "message": "older", "added": ["b"], "removed": [], "modified": []},
    ]
    body = {**PUSH, "head_commit": None, "commits": commits}
    event = push_of(parsed("gitea", body, x_gogs_event="push"))
    assert (event.message, event.files) == ("newest [skip ci]", ("a", "b"))


@pytest.mark.parametrize("forge", ["gitea", "forgejo"])
@pytest.mark.parametrize(("head", "is_fork"), [("refs/pull/3/head", True), ("feat", False)])
def test_what_a_stranger_pushed_for_review_is_a_fork_s(
    forge: str, head: str, is_fork: bool
) -> None:
    pull = {
        "number": 3,
        "base": {"ref": "main", "sha": OLD, "repo": REPOSITORY},
        "head": {"ref": head, "sha": NEW, "repo": REPOSITORY},
        "user": {"login": "eve"},
    }
    body = {"action": "opened", "number": 3, "pull_request": pull, "repository": REPOSITORY}
    event = pull_of(parsed(forge, body, x_gitea_event="pull_request"))
    assert (event.is_fork, event.head_full_name) == (is_fork, REPOSITORY["full_name"])


@pytest.mark.parametrize(("owner", "is_fork"), [("acme", False), ("Acme", False), ("eve", True)])
def test_pull_requests_of_gogs_tell_branches_and_no_commits(owner: str, is_fork: bool) -> None:
    fork = {"full_name": f"{owner}/app", "clone_url": f"https://git.example.com/{owner}/app.git"}
    body = {
        "action": "synchronized",
        "number": 2,
        "pull_request": {
            "number": 2,
            "user": {"login": "eve"},
            "head_branch": "feat",
            "head_repo": fork,
            "base_branch": "main",
            "base_repo": REPOSITORY,
        },
        "repository": REPOSITORY,
    }
    event = pull_of(parsed("gitea", body, x_gogs_event="pull_request"))
    assert (event.action, event.number, event.is_fork) == ("pushed", 2, is_fork)
    assert (event.head_branch, event.base_branch, event.head_commit) == ("feat", "main", "")
    assert event.head_full_name == fork["full_name"]


def test_a_commit_with_more_files_than_github_tells_leaves_them_unknown() -> None:
    commit = {"id": NEW, "added": [f"f{n}" for n in range(3000)], "removed": [], "modified": []}
    event = push_of(parsed("github", {**PUSH, "commits": [commit]}, x_github_event="push"))
    assert event.files is None


@pytest.mark.parametrize(
    "kind",
    ["merge_group", "check_run", "check_suite", "create", "delete", "workflow_run", "release",
     "pull_request_review", "pull_request_review_comment", "commit_comment", "star", "new_kind"],
)  # fmt: skip
def test_other_events_of_github_are_named_as_what_fires_nothing(kind: str) -> None:
    found = parsed("github", {"action": "done", "repository": REPOSITORY}, x_github_event=kind)
    assert (found.events, found.kind) == ((), f"{kind}.done")
    assert "fires a trigger" in found.ignored


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "it is not signed"),
        ({"x-hub-signature": "sha1=" + "0" * 40}, "only a SHA-1 signature"),
        ({"x-hub-signature-256": "sha256=" + "0" * 64}, ""),
        ({"x-hub-signature": "sha256=" + "0" * 64}, ""),
        ({"x-gitlab-token": "wrong"}, ""),
    ],
)
def test_what_a_proof_lacks_is_said(headers: dict[str, str], said: str) -> None:
    found = lacking_proof(WebhookRequest(headers, b"{}"))
    assert said in found
    assert bool(found) is bool(said)


def test_sha1_is_no_proof() -> None:
    digest = hmac.new(SECRET.encode(), b"{}", hashlib.sha1).hexdigest()
    sent = WebhookRequest({"x-hub-signature": f"sha1={digest}"}, b"{}")
    assert not FORGES["github"].is_genuine(sent, SECRET)
    assert not FORGES["bitbucket"].is_genuine(sent, SECRET)


PROJECT = {
    "id": 15,
    "path_with_namespace": "acme/app",
    "git_http_url": "https://gitlab.example.com/acme/app.git",
    "web_url": "https://gitlab.example.com/acme/app",
}


def standard_signature(key: bytes, body: bytes, identity: str, stamp: str) -> str:
    signed = f"{identity}.{stamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


@pytest.mark.parametrize("is_encoded", [True, False])
def test_gitlab_signs_where_it_has_a_signing_token(is_encoded: bool) -> None:
    key, body = b"0123456789abcdef0123456789abcdef", b'{"object_kind":"push"}'
    secret = f"whsec_{base64.b64encode(key).decode()}" if is_encoded else key.decode()
    given = standard_signature(key, body, "id-1", "1700000000")
    headers = {
        "webhook-id": "id-1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": f"v1,AAAA {given}",
    }
    gitlab = FORGES["gitlab"]
    sent = WebhookRequest(headers, body)
    assert gitlab.is_genuine(sent, secret)
    assert gitlab.sent_at(sent) == 1700000000
    assert gitlab.delivery_id(sent) == "id-1"
    for name, value in (("webhook-id", "id-2"), ("webhook-timestamp", "1700000001")):
        assert not gitlab.is_genuine(WebhookRequest({**headers, name: value}, body), secret)
    assert not gitlab.is_genuine(WebhookRequest(headers, body + b" "), secret)
    assert not gitlab.is_genuine(sent, "")
    assert not gitlab.is_genuine(sent, "whsec_!")


def gitlab_push(**fields: Any) -> dict[str, Any]:
    given = {
        "before": OLD,
        "after": NEW,
        "ref": "refs/heads/main",
        "checkout_sha": NEW,
        "project": PROJECT,
        "commits": [{"id": NEW, "message": "m", "added": ["a"], "modified": [], "removed": []}],
        "total_commits_count": 1,
    }
    return {**given, **fields}


def test_gitlab_s_system_hooks_are_understood() -> None:
    event = push_of(parsed("gitlab", gitlab_push(event_name="push"), x_gitlab_event="System Hook"))
    assert (event.branch, event.after, event.files) == ("main", NEW, ("a",))
    bare = [{"id": NEW, "message": "m"}]
    assert push_of(parsed("gitlab", gitlab_push(event_name="push", commits=bare))).files is None
    tag = gitlab_push(
        event_name="tag_push", ref="refs/tags/v1", before=NO_COMMIT, after="c" * 40, commits=[]
    )
    event = push_of(parsed("gitlab", tag))
    assert (event.tag, event.after, event.before) == ("v1", NEW, "")
    found = parsed("gitlab", {"event_name": "repository_update", "changes": [], "refs": []})
    assert found.ignored == "push and tag events report it, too"
    found = parsed("gitlab", {"event_name": "project_create"}, x_gitlab_event="System Hook")
    assert found.ignored == '"project_create" is nothing that fires a trigger'


def test_deleted_refs_of_gitlab_are_deletions() -> None:
    for kind, ref in (("push", "refs/heads/x"), ("tag_push", "refs/tags/v1")):
        body = gitlab_push(object_kind=kind, ref=ref, after=NO_COMMIT, checkout_sha=None)
        assert push_of(parsed("gitlab", body)).is_deletion


def test_events_of_gitlab_that_share_a_uuid_are_told_apart() -> None:
    gitlab, headers = FORGES["gitlab"], {"x-gitlab-event-uuid": "u"}
    one, two = WebhookRequest(headers, b"{}"), WebhookRequest(headers, b"[]")
    assert gitlab.delivery_id(one) == gitlab.delivery_id(one) != gitlab.delivery_id(two)


def merge_request(**fields: Any) -> dict[str, Any]:
    attributes = {
        "iid": 7,
        "action": "open",
        "author_id": 51,
        "source_branch": "feat",
        "target_branch": "main",
        "source_project_id": 15,
        "target_project_id": 15,
        "source": {"git_http_url": PROJECT["git_http_url"]},
        "last_commit": {"id": NEW, "message": "m"},
    }
    return {
        "object_kind": "merge_request",
        "user": {"id": 1, "username": "root"},
        "project": PROJECT,
        "object_attributes": {**attributes, **fields},
    }


@pytest.mark.parametrize(
    ("fields", "action"),
    [
        ({}, "opened"),
        ({"action": "reopen"}, "reopened"),
        ({"action": "update", "oldrev": OLD}, "pushed"),
        ({"action": "merge"}, "merge"),
        ({"action": "approved"}, "approved"),
    ],
)
def test_actions_of_merge_requests(fields: dict[str, Any], action: str) -> None:
    assert pull_of(parsed("gitlab", merge_request(**fields))).action == action


@pytest.mark.parametrize("fields", [{"action": "update"}, {"action": None}])
def test_merge_requests_to_which_nothing_happened(fields: dict[str, Any]) -> None:
    found = parsed("gitlab", merge_request(**fields))
    assert found.events == ()
    assert found.ignored


def test_a_merge_request_without_a_commit_is_ignored() -> None:
    found = parsed("gitlab", merge_request(last_commit=None))
    assert (found.events, found.ignored) == ((), "its branch has no commit yet")


@pytest.mark.parametrize(
    ("fields", "is_fork"),
    [
        ({}, False),
        ({"source_project_id": 16}, True),
        ({"source_project_id": None}, True),
        ({"source_project_id": None, "target_project_id": None}, True),
        ({"source": {"path_with_namespace": "eve/app"}}, True),
    ],
)
def test_a_merge_request_is_of_a_fork_unless_it_says_that_it_is_not(
    fields: dict[str, Any], is_fork: bool
) -> None:
    assert pull_of(parsed("gitlab", merge_request(**fields))).is_fork is is_fork


def test_gitlab_is_asked_who_may_write() -> None:
    assert pull_of(parsed("gitlab", merge_request())).author_id == "51"
    request = merge_request()["object_attributes"]
    for kind in ("Note Hook", "Confidential Note Hook"):
        note = {
            "object_kind": "note",
            "user": {"id": 2, "username": "eve"},
            "project": PROJECT,
            "object_attributes": {
                "noteable_type": "MergeRequest",
                "note": "/gcbrun",
                "action": "create",
            },
            "merge_request": request,
        }
        event = pull_of(parsed("gitlab", note, x_gitlab_event=kind))
        assert event.commenter_id == "2"
        assert (event.comment, event.commenter) == ("/gcbrun", "eve")


def bitbucket_change(kind: str, name: str, old: str | None, new: str | None) -> dict[str, Any]:
    def state(commit: str | None) -> Any:
        return commit and {"type": kind, "name": name, "target": {"hash": commit, "message": "m"}}

    return {
        "new": state(new),
        "old": state(old),
        "created": old is None,
        "closed": new is None,
        "forced": False,
        "truncated": True,
        "commits": [],
    }


def test_one_push_of_bitbucket_may_tell_of_many_refs() -> None:
    changes = [
        bitbucket_change("branch", "main", OLD, NEW),
        bitbucket_change("branch", "gone", OLD, None),
        bitbucket_change("tag", "v1", None, NEW),
        bitbucket_change("annotated_tag", "v2", None, NEW),
    ]
    body = {"repository": {"full_name": "acme/app"}, "push": {"changes": changes}}
    events = parsed("bitbucket", body, x_event_key="repo:push").events
    pushes = [event for event in events if isinstance(event, PushEvent)]
    assert [(one.ref, one.is_deletion, one.files) for one in pushes] == [
        ("refs/heads/main", False, None),
        ("refs/heads/gone", True, None),
        ("refs/tags/v1", False, None),
        ("refs/tags/v2", False, None),
    ]


def bitbucket_pull(**fields: Any) -> dict[str, Any]:
    side = {"repository": {"full_name": "acme/app"}, "commit": {"hash": NEW[:12]}}
    return {
        "actor": {"nickname": "adam", "uuid": "{a-1}"},
        "pullrequest": {
            "id": 3,
            "author": {"nickname": "eve", "uuid": "{e-1}"},
            "source": {**side, "branch": {"name": "feat"}},
            "destination": {**side, "branch": {"name": "main"}},
        },
        **fields,
    }


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("pullrequest:created", "opened"),
        ("pullrequest:updated", "updated"),
        ("pullrequest:comment_created", "commented"),
    ],
)
def test_pull_requests_of_bitbucket(kind: str, action: str) -> None:
    comment = {"content": {"raw": "/gcbrun"}}
    event = pull_of(parsed("bitbucket", bitbucket_pull(comment=comment), x_event_key=kind))
    assert event.action == action
    assert not event.is_fork
    assert event.author_id == "{e-1}"
    assert event.commenter_id == ("{a-1}" if action == "commented" else "")


@pytest.mark.parametrize(
    "kind",
    ["pullrequest:fulfilled", "pullrequest:rejected", "pullrequest:approved", "repo:fork",
     "pullrequest:comment_deleted", "repo:commit_status_created", "issue:created"],
)  # fmt: skip
def test_other_events_of_bitbucket_fire_nothing(kind: str) -> None:
    found = parsed("bitbucket", bitbucket_pull(), x_event_key=kind)
    assert found.events == ()
    assert kind in found.ignored


def server_repository(slug: str = "app", key: str = "ACME", **fields: Any) -> dict[str, Any]:
    links = {
        "clone": [
            {"href": f"https://bb.example.com/scm/{key}/{slug}.git", "name": "http"},
            {"href": f"ssh://git@bb.example.com:7999/{key}/{slug}.git", "name": "ssh"},
        ],
        "self": [{"href": f"https://bb.example.com/projects/{key}/repos/{slug}/browse"}],
    }
    return {"slug": slug, "id": 84, "project": {"key": key}, "links": links, **fields}


def server_pull(head: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "actor": {"name": "adam"},
        "pullRequest": {
            "id": 5,
            "author": {"user": {"name": "eve"}},
            "fromRef": {"displayId": "feat", "latestCommit": NEW, "repository": head},
            "toRef": {
                "displayId": "main",
                "latestCommit": OLD,
                "repository": server_repository(),
            },
        },
        **fields,
    }


@pytest.mark.parametrize(
    ("head", "is_fork"),
    [
        (server_repository(), False),
        (server_repository(key="~EVE"), True),
        (server_repository(key="~EVE", id=None), True),
    ],
)
def test_forks_of_bitbucket_server(head: dict[str, Any], is_fork: bool) -> None:
    body = server_pull(head)
    event = pull_of(parsed("bitbucket-server", body, x_event_key="pr:from_ref_updated"))
    assert (event.is_fork, event.action) == (is_fork, "pushed")
    assert event.author_id == "eve"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("diagnostics:ping", b'{"test": true}'),
        ("diagnostics:ping", b""),
        ("pr:merged", b"{}"),
        ("pr:modified", b"{}"),
        ("repo:forked", b"{}"),
    ],
)
def test_what_fires_nothing_on_bitbucket_server(kind: str, body: bytes) -> None:
    found = parsed("bitbucket-server", body, x_event_key=kind)
    assert found.events == ()
    assert found.ignored


@pytest.mark.parametrize("digits", [40, 64])
@pytest.mark.parametrize("forge", ["github", "gitea", "gitlab", "bitbucket-server"])
def test_as_many_zeros_as_the_repository_s_hash_is_long_are_no_commit(
    forge: str, digits: int
) -> None:
    def pushed(before: str, after: str) -> PushEvent:
        if forge == "gitlab":
            body = gitlab_push(object_kind="push", before=before, after=after, checkout_sha=None)
            return push_of(parsed(forge, body))
        if forge == "bitbucket-server":
            change = {"ref": {"id": "refs/heads/x"}, "fromHash": before, "toHash": after}
            repository = {"slug": "app", "project": {"key": "acme"}}
            body = {"repository": repository, "changes": [change]}
            return push_of(parsed(forge, body, x_event_key="repo:refs_changed"))
        body = {**PUSH, "before": before, "after": after, "head_commit": None}
        return push_of(parsed(forge, body, **{f"x_{forge}_event": "push"}))

    none, one = "0" * digits, "b" * digits
    assert pushed(one, none).is_deletion
    made = pushed(none, one)
    assert (made.before, made.after, made.files) == ("", one, None)


@pytest.mark.parametrize(
    ("forge", "fields", "doubtful"),
    [
        ("github", {"forced": False}, False),
        ("github", {"forced": True}, False),
        ("gitea", {}, True),
        ("gitlab", {}, True),
    ],
)
def test_files_are_doubtful_where_a_payload_does_not_say_whether_the_push_was_forced(
    forge: str, fields: dict[str, Any], doubtful: bool
) -> None:
    body = gitlab_push(object_kind="push") if forge == "gitlab" else {**PUSH, **fields}
    event = push_of(parsed(forge, body, **{f"x_{forge}_event": "push"}))
    assert event.doubtful_files is doubtful
    assert event.files == (None if event.forced else ("a",))


def test_tags_that_payloads_do_not_peel_are_known_as_such() -> None:
    change = {"ref": {"id": "refs/tags/v1"}, "fromHash": NO_COMMIT, "toHash": NEW}
    repository = {"slug": "app", "project": {"key": "acme"}}
    server = {"repository": repository, "changes": [change]}
    found = push_of(parsed("bitbucket-server", server, x_event_key="repo:refs_changed"))
    assert found == PushEvent(
        repository=Repository(full_name="acme/app", forge="bitbucket-server"),
        ref="refs/tags/v1",
        after=NEW,
        may_be_unpeeled=True,
        body=server,
    )
    tag = {**PUSH, "ref": "refs/tags/v1", "before": NO_COMMIT, "commits": []}
    gogs = push_of(parsed("gitea", {**tag, "head_commit": None}, x_gogs_event="push"))
    assert gogs.may_be_unpeeled
    peeled = push_of(parsed("gitea", {**tag, "after": "c" * 40}, x_gitea_event="push"))
    assert (peeled.after, peeled.may_be_unpeeled) == (NEW, False)
    branch = push_of(parsed("gitea", {**PUSH, "head_commit": None}, x_gogs_event="push"))
    assert not branch.may_be_unpeeled


def test_a_byte_order_mark_is_no_part_of_the_payload() -> None:
    content = b"\xef\xbb\xbf" + json.dumps(PUSH).encode()
    assert push_of(parsed("github", content, x_github_event="push")).after == NEW


def test_a_body_that_is_compressed_is_called_so() -> None:
    headers = {"x_github_event": "push", "content_encoding": "gzip"}
    with pytest.raises(BadDelivery, match=r"is compressed \(gzip\)"):
        parsed("github", b"\x1f\x8b", **headers)
    plain = {**headers, "content_encoding": "Identity"}
    assert push_of(parsed("github", PUSH, **plain)).after == NEW
