"""What each forge sends, read from payloads that hold the fields its documentation names."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.triggers.events import MessageEvent, PullRequestEvent, PushEvent
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import MAX_DEPTH, BadDelivery, ParsedDelivery, WebhookRequest
from buildrunner.triggers.forges.pubsub import message_id, pubsub_event

NO_COMMIT = "0" * 40
OLD, NEW = "a" * 40, "b" * 40
SECRET = "It's a Secret to Everybody"


def request(body: object, **headers: str) -> WebhookRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return WebhookRequest(named, json.dumps(body).encode())


def parsed(forge: str, body: object, **headers: str) -> ParsedDelivery:
    return FORGES[forge].parse(request(body, **headers))


def the_push(found: ParsedDelivery) -> PushEvent:
    (event,) = found.events
    assert isinstance(event, PushEvent)
    return event


def the_pull(found: ParsedDelivery) -> PullRequestEvent:
    (event,) = found.events
    assert isinstance(event, PullRequestEvent)
    return event


GITHUB_REPOSITORY = {
    "full_name": "acme/app",
    "clone_url": "https://github.com/acme/app.git",
    "html_url": "https://github.com/acme/app",
    "ssh_url": "git@github.com:acme/app.git",
}


def github_push(**fields: Any) -> dict[str, Any]:
    commits = [
        {"id": "c", "added": ["a.txt"], "modified": ["b.txt"], "removed": []},
        {"id": NEW, "added": [], "modified": ["b.txt"], "removed": ["old.txt"]},
    ]
    given = {
        "ref": "refs/heads/main",
        "before": OLD,
        "after": NEW,
        "forced": False,
        "commits": commits,
        "head_commit": {"id": NEW, "message": "two"},
        "repository": GITHUB_REPOSITORY,
        "pusher": {"name": "mona"},
    }
    return {**given, **fields}


@pytest.mark.parametrize(
    ("forge", "header"), [("github", "x_github_event"), ("gitea", "x_gitea_event")]
)
class TestPushesLikeGitHub:
    def push(self, forge: str, header: str, **fields: Any) -> PushEvent:
        return the_push(parsed(forge, github_push(**fields), **{header: "push"}))

    def test_a_push_tells_its_files(self, forge: str, header: str) -> None:
        event = self.push(forge, header)
        assert (event.branch, event.before, event.after) == ("main", OLD, NEW)
        assert event.files == ("a.txt", "b.txt", "old.txt")
        assert (event.message, event.author) == ("two", "mona")
        assert event.repository.full_name == "acme/app"
        assert event.repository.forge == forge

    @pytest.mark.parametrize(
        "fields",
        [
            {"before": NO_COMMIT},
            {"forced": True},
            {"commits": []},
            {"total_commits": 90},
            {"commits": [{"added": ["x"]}] * 2048},
        ],
    )
    def test_where_it_does_not_tell_all_files_they_are_unknown(
        self, forge: str, header: str, fields: dict[str, Any]
    ) -> None:
        assert self.push(forge, header, **fields).files is None

    def test_a_deletion_is_one(self, forge: str, header: str) -> None:
        assert self.push(forge, header, after=NO_COMMIT, head_commit=None).is_deletion

    def test_an_annotated_tag_is_peeled(self, forge: str, header: str) -> None:
        event = self.push(
            forge, header, ref="refs/tags/v1", before=NO_COMMIT, after="c" * 40, commits=[]
        )
        assert (event.tag, event.branch, event.after) == ("v1", "", NEW)


def github_pull(**fields: Any) -> dict[str, Any]:
    pull = {
        "number": 7,
        "title": "a change",
        "body": "see /gcbrun",
        "user": {"login": "mona"},
        "author_association": "CONTRIBUTOR",
        "base": {"ref": "main", "sha": OLD, "repo": GITHUB_REPOSITORY},
        "head": {
            "ref": "feat",
            "sha": NEW,
            "repo": {"full_name": "fork/app", "clone_url": "https://github.com/fork/app.git"},
        },
    }
    return {
        "action": "opened",
        "number": 7,
        "repository": GITHUB_REPOSITORY,
        "pull_request": {**pull, **fields},
    }


@pytest.mark.parametrize(
    ("forge", "header"), [("github", "x_github_event"), ("gitea", "x_gitea_event")]
)
def test_a_pull_request_from_a_fork(forge: str, header: str) -> None:
    event = the_pull(parsed(forge, github_pull(), **{header: "pull_request"}))
    assert (event.number, event.action, event.is_fork) == (7, "opened", True)
    assert (event.base_branch, event.head_branch, event.head_commit) == ("main", "feat", NEW)
    assert event.head_full_name == "fork/app"
    assert event.author_may_write is False
    assert event.description == "see /gcbrun"


def test_a_fork_that_was_deleted_is_still_one() -> None:
    body = github_pull(head={"ref": "feat", "sha": NEW, "repo": None})
    event = the_pull(parsed("github", body, x_github_event="pull_request"))
    assert event.is_fork


@pytest.mark.parametrize(
    ("association", "may_write"),
    [("OWNER", True), ("MEMBER", None), ("COLLABORATOR", None), ("NONE", False), ("", None)],
)
def test_github_tells_who_may_write(association: str, may_write: bool | None) -> None:
    body = github_pull(author_association=association)
    event = the_pull(parsed("github", body, x_github_event="pull_request"))
    assert event.author_may_write is may_write


def test_a_push_to_a_pull_request_is_named_alike_everywhere() -> None:
    body = {**github_pull(), "action": "synchronize"}
    assert the_pull(parsed("github", body, x_github_event="pull_request")).action == "pushed"
    body["action"] = "synchronized"
    found = parsed("gitea", body, x_gitea_event="pull_request_sync")
    assert the_pull(found).action == "pushed"


def github_comment(**issue: Any) -> dict[str, Any]:
    return {
        "action": "created",
        "issue": {
            "number": 7,
            "pull_request": {"url": "https://api.github.com/repos/acme/app/pulls/7"},
            "user": {"login": "mona"},
            "author_association": "NONE",
            **issue,
        },
        "comment": {"body": "/gcbrun", "user": {"login": "hub"}, "author_association": "MEMBER"},
        "repository": GITHUB_REPOSITORY,
    }


def test_a_comment_on_a_pull_request_names_who_wrote_it_and_no_branch() -> None:
    event = the_pull(parsed("github", github_comment(), x_github_event="issue_comment"))
    assert (event.action, event.comment, event.commenter) == ("commented", "/gcbrun", "hub")
    assert event.commenter_may_write is None
    assert (event.base_branch, event.author_id, event.commenter_id) == ("", "mona", "hub")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"zen": "Design for failure."}, "ping"),
        ({"action": "started"}, "watch"),
        ({**github_comment(), "action": "edited"}, "issue_comment"),
        (github_comment(pull_request=None), "issue_comment"),
    ],
)
def test_what_fires_nothing_says_why(body: dict[str, Any], kind: str) -> None:
    found = parsed("github", body, x_github_event=kind)
    assert found.events == ()
    assert found.ignored


GITLAB_PROJECT = {
    "path_with_namespace": "group/sub/app",
    "git_http_url": "https://gitlab.example.com/group/sub/app.git",
    "git_ssh_url": "git@gitlab.example.com:group/sub/app.git",
    "web_url": "https://gitlab.example.com/group/sub/app",
}


def gitlab_push(**fields: Any) -> dict[str, Any]:
    given = {
        "object_kind": "push",
        "ref": "refs/heads/main",
        "before": OLD,
        "after": NEW,
        "checkout_sha": NEW,
        "user_username": "mona",
        "project": GITLAB_PROJECT,
        "total_commits_count": 1,
        "commits": [{"id": NEW, "message": "one", "added": ["a"], "modified": [], "removed": []}],
    }
    return {**given, **fields}


def test_gitlab_tells_files_of_few_commits_only() -> None:
    event = the_push(parsed("gitlab", gitlab_push()))
    assert (event.files, event.message, event.author) == (("a",), "one", "mona")
    assert the_push(parsed("gitlab", gitlab_push(total_commits_count=50))).files is None
    assert the_push(parsed("gitlab", gitlab_push(before=NO_COMMIT))).files is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ci": {"skip": True}}, "ci.skip"),
        (
            {"ci": {"variable": {"A=1": 1}}, "integrations": {"skip_ci": True}},
            "integrations.skip_ci",
        ),
        ({"ci": {"variable": {"skip": 1}}, "mr": {"create": True}}, ""),
        ({}, ""),
        (None, ""),
        (["ci.skip"], ""),
    ],
)
def test_gitlab_tells_whether_a_push_asks_for_no_build(options: Any, told: str) -> None:
    assert the_push(parsed("gitlab", gitlab_push(push_options=options))).skip_option == told


def test_gitlab_peels_tags_and_tells_of_deletions() -> None:
    tag = gitlab_push(
        object_kind="tag_push", ref="refs/tags/v1", before=NO_COMMIT, after="c" * 40, commits=[]
    )
    assert the_push(parsed("gitlab", tag)).after == NEW
    gone = gitlab_push(after=NO_COMMIT, checkout_sha=None, commits=[])
    assert the_push(parsed("gitlab", gone)).is_deletion


def merge_request(**fields: Any) -> dict[str, Any]:
    request = {
        "iid": 7,
        "action": "open",
        "source_branch": "feat",
        "target_branch": "main",
        "source_project_id": 2,
        "target_project_id": 1,
        "source": {"path_with_namespace": "fork/app"},
        "last_commit": {"id": NEW, "message": "one"},
        "title": "a change",
        "description": "text",
        **fields,
    }
    return {
        "object_kind": "merge_request",
        "project": GITLAB_PROJECT,
        "user": {"username": "mona"},
        "object_attributes": request,
    }


def test_a_merge_request_is_a_pull_request() -> None:
    event = the_pull(parsed("gitlab", merge_request()))
    assert (event.number, event.action, event.is_fork) == (7, "opened", True)
    assert (event.base_branch, event.head_branch, event.head_commit) == ("main", "feat", NEW)
    assert (event.author, event.author_may_write) == ("mona", None)


def test_a_merge_request_is_pushed_to_only_when_its_commits_change() -> None:
    assert the_pull(parsed("gitlab", merge_request(action="update", oldrev=OLD))).action == "pushed"
    assert parsed("gitlab", merge_request(action="update")).events == ()


def test_a_note_on_a_merge_request_is_a_comment() -> None:
    body = {
        "object_kind": "note",
        "project": GITLAB_PROJECT,
        "user": {"username": "hub"},
        "object_attributes": {"noteable_type": "MergeRequest", "note": "/gcbrun"},
        "merge_request": merge_request()["object_attributes"],
    }
    event = the_pull(parsed("gitlab", body))
    assert (event.action, event.comment, event.commenter) == ("commented", "/gcbrun", "hub")
    assert event.commenter_may_write is None
    body["object_attributes"] = {"noteable_type": "Issue", "note": "/gcbrun"}
    assert parsed("gitlab", body).events == ()


def bitbucket_ref(name: str, kind: str = "branch", commit: str = NEW) -> dict[str, Any]:
    return {"type": kind, "name": name, "target": {"hash": commit, "message": "one"}}


BITBUCKET_REPOSITORY = {
    "full_name": "acme/app",
    "links": {"html": {"href": "https://bitbucket.org/acme/app"}},
}


def test_one_push_to_bitbucket_may_move_several_refs() -> None:
    changes = [
        {"old": bitbucket_ref("main", commit=OLD), "new": bitbucket_ref("main"), "forced": False},
        {"old": None, "new": bitbucket_ref("v1", "tag")},
        {"old": bitbucket_ref("gone", commit=OLD), "new": None},
    ]
    body = {
        "repository": BITBUCKET_REPOSITORY,
        "actor": {"nickname": "mona"},
        "push": {"changes": changes},
    }
    found = parsed("bitbucket", body, x_event_key="repo:push").events
    pushes = [one for one in found if isinstance(one, PushEvent)]
    assert [one.ref for one in pushes] == ["refs/heads/main", "refs/tags/v1", "refs/heads/gone"]
    assert [one.is_deletion for one in pushes] == [False, False, True]
    assert [one.files for one in pushes] == [None, None, None]
    assert pushes[0].repository.clone_url == "https://bitbucket.org/acme/app"


def test_a_pull_request_of_bitbucket() -> None:
    fork = {"full_name": "fork/app"}
    body = {
        "actor": {"nickname": "mona"},
        "pullrequest": {
            "id": 7,
            "title": "a change",
            "description": "",
            "author": {"nickname": "mona"},
            "source": {
                "branch": {"name": "feat"},
                "commit": {"hash": NEW[:12]},
                "repository": fork,
            },
            "destination": {
                "branch": {"name": "main"},
                "commit": {"hash": OLD[:12]},
                "repository": BITBUCKET_REPOSITORY,
            },
        },
        "comment": {"content": {"raw": "/gcbrun"}},
    }
    event = the_pull(parsed("bitbucket", body, x_event_key="pullrequest:created"))
    assert (event.number, event.action, event.is_fork, event.comment) == (7, "opened", True, "")
    event = the_pull(parsed("bitbucket", body, x_event_key="pullrequest:comment_created"))
    assert (event.action, event.comment, event.commenter) == ("commented", "/gcbrun", "mona")


def server_repository(project: str, number: int) -> dict[str, Any]:
    url = f"https://bb.example.com/scm/{project.lower()}/app.git"
    return {
        "id": number,
        "slug": "app",
        "project": {"key": project},
        "links": {"clone": [{"name": "http", "href": url}]},
    }


def test_a_push_to_bitbucket_server() -> None:
    change = {"ref": {"id": "refs/heads/main"}, "fromHash": OLD, "toHash": NEW}
    body = {
        "actor": {"name": "mona"},
        "repository": server_repository("PRJ", 1),
        "changes": [change],
        "toCommit": {"id": NEW, "message": "one"},
    }
    event = the_push(parsed("bitbucket-server", body, x_event_key="repo:refs_changed"))
    assert (event.branch, event.after, event.message) == ("main", NEW, "one")
    assert event.repository.full_name == "PRJ/app"


def test_a_pull_request_of_bitbucket_server() -> None:
    body = {
        "actor": {"name": "mona"},
        "pullRequest": {
            "id": 7,
            "title": "a change",
            "author": {"user": {"name": "mona"}},
            "fromRef": {
                "displayId": "feat",
                "latestCommit": NEW,
                "repository": server_repository("~MONA", 2),
            },
            "toRef": {
                "displayId": "main",
                "latestCommit": OLD,
                "repository": server_repository("PRJ", 1),
            },
        },
    }
    event = the_pull(parsed("bitbucket-server", body, x_event_key="pr:from_ref_updated"))
    assert (event.action, event.is_fork, event.head_commit) == ("pushed", True, NEW)


def test_a_ping_of_bitbucket_server_has_no_body() -> None:
    sent = WebhookRequest({"x-event-key": "diagnostics:ping"}, b"")
    assert FORGES["bitbucket-server"].parse(sent).ignored


# -- who sent it -------------------------------------------------------------------------------

BODY = b'{"zen": "Keep it logically awesome."}'


def signature(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


SIGNED = {
    "github": ("x-hub-signature-256", "sha256="),
    "gitea": ("x-gitea-signature", ""),
    "forgejo": ("x-forgejo-signature", ""),
    "bitbucket": ("x-hub-signature", "sha256="),
    "bitbucket-server": ("x-hub-signature", "sha256="),
}


@pytest.mark.parametrize("forge", SIGNED)
def test_only_the_right_signature_over_these_very_bytes_is_genuine(forge: str) -> None:
    header, prefix = SIGNED[forge]

    def is_genuine(value: str, body: bytes = BODY, secret: str = SECRET) -> bool:
        return FORGES[forge].is_genuine(WebhookRequest({header: value}, body), secret)

    right = prefix + signature(BODY)
    assert is_genuine(right)
    assert not is_genuine(right, body=BODY + b" ")
    assert not is_genuine(right, secret="another")
    assert not is_genuine(prefix + signature(BODY, ""), secret="")
    assert not is_genuine(right[:-1])
    assert not is_genuine("")
    if prefix:
        assert not is_genuine(signature(BODY))
    assert not FORGES[forge].is_genuine(WebhookRequest({}, BODY), SECRET)


def test_the_older_signature_of_github_is_not_enough() -> None:
    old = "sha1=" + hmac.new(SECRET.encode(), BODY, hashlib.sha1).hexdigest()
    assert not FORGES["github"].is_genuine(WebhookRequest({"x-hub-signature": old}, BODY), SECRET)


def test_gitlab_sends_the_token_itself() -> None:
    gitlab = FORGES["gitlab"]
    assert gitlab.is_genuine(WebhookRequest({"x-gitlab-token": SECRET}, BODY), SECRET)
    assert not gitlab.is_genuine(WebhookRequest({"x-gitlab-token": "no"}, BODY), SECRET)
    assert not gitlab.is_genuine(WebhookRequest({"x-gitlab-token": ""}, BODY), "")
    assert not gitlab.is_genuine(WebhookRequest({}, BODY), SECRET)


@pytest.mark.parametrize(
    ("forge", "header"),
    [
        ("github", "x-github-delivery"),
        ("gitea", "x-gitea-delivery"),
        ("gitlab", "idempotency-key"),
        ("bitbucket", "x-request-uuid"),
        ("bitbucket-server", "x-request-id"),
    ],
)
def test_a_delivery_has_an_id_with_and_without_the_forges_own(forge: str, header: str) -> None:
    known = FORGES[forge]
    assert known.delivery_id(WebhookRequest({header: "abc"}, BODY)) == "abc"
    bare = known.delivery_id(WebhookRequest({}, BODY))
    assert bare == known.delivery_id(WebhookRequest({}, BODY))
    assert bare != known.delivery_id(WebhookRequest({}, BODY + b" "))


# -- bad input ---------------------------------------------------------------------------------

KINDS = {
    "github": ("x-github-event", ["push", "pull_request", "issue_comment"]),
    "gitea": ("x-gitea-event", ["push", "pull_request", "issue_comment"]),
    "gitlab": ("x-gitlab-event", ["Push Hook"]),
    "bitbucket": ("x-event-key", ["repo:push", "pullrequest:created"]),
    "bitbucket-server": ("x-event-key", ["repo:refs_changed", "pr:opened"]),
}
ALL_KINDS = [(forge, header, kind) for forge, (header, kinds) in KINDS.items() for kind in kinds]


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'"text"', b"\xff", b"{" * 100_000])
@pytest.mark.parametrize(("forge", "header", "kind"), ALL_KINDS)
def test_what_is_no_json_object_is_refused(forge: str, header: str, kind: str, body: bytes) -> None:
    with pytest.raises(BadDelivery):
        FORGES[forge].parse(WebhookRequest({header: kind}, body))


def test_deep_json_is_refused() -> None:
    deep: object = "x"
    for _ in range(MAX_DEPTH):
        deep = [deep]
    with pytest.raises(BadDelivery, match="nested"):
        parsed("github", {"deep": deep}, x_github_event="push")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
WORDS = st.sampled_from(
    [
        *("ref", "after", "before", "commits", "head_commit", "repository", "full_name"),
        *("pull_request", "base", "head", "repo", "sha", "object_kind", "project"),
        *("path_with_namespace", "object_attributes", "push", "changes", "new", "old", "target"),
    ]
)


@given(
    known=st.sampled_from(ALL_KINDS),
    body=st.dictionaries(WORDS, st.dictionaries(WORDS, JSON, max_size=4) | JSON, max_size=6),
    kind=st.sampled_from(["push", "tag_push", "merge_request", "note", ""]),
)
def test_no_payload_gets_anything_but_events_or_a_refusal(
    known: tuple[str, str, str], body: dict[str, Any], kind: str
) -> None:
    forge, header, event = known
    sent = WebhookRequest({header: event}, json.dumps({"object_kind": kind, **body}).encode())
    found = None
    with contextlib.suppress(BadDelivery):
        found = FORGES[forge].parse(sent)
    assert found is None or found.events or found.ignored


# -- Pub/Sub -----------------------------------------------------------------------------------


def pubsub(data: bytes, **fields: Any) -> WebhookRequest:
    message = {
        "data": base64.b64encode(data).decode(),
        "attributes": {"s": "OK"},
        "messageId": "17",
        "publishTime": "2026-01-01T00:00:00Z",
        **fields,
    }
    return request({"message": message, "subscription": "projects/p/subscriptions/s"})


def test_a_message_is_decoded_and_parsed() -> None:
    event = pubsub_event(pubsub(b'{"k": "v"}'), topic="projects/p/topics/t")
    assert isinstance(event, MessageEvent)
    assert event.body["message"]["data"] == {"k": "v"}
    assert event.body["message"]["attributes"] == {"s": "OK"}
    assert message_id(pubsub(b"x")) == "17"


def test_a_message_that_is_no_json_stays_text() -> None:
    assert pubsub_event(pubsub(b"plain \xff")).body["message"]["data"] == "plain \ufffd"


@pytest.mark.parametrize("body", [{}, {"message": 1}, {"message": {"data": "%%%"}}])
def test_what_is_no_message_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(BadDelivery):
        pubsub_event(request(body))
