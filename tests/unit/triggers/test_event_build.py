"""The builds of pushes and pull requests: of which commit, from where, with which values."""

from __future__ import annotations

from typing import Any

import pytest

from buildrunner.errors import UsageError
from buildrunner.plan.resolve import PlanContext
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.triggers.build import event_run, filter_values, payload_roots
from buildrunner.triggers.events import (
    MessageEvent,
    PullRequestEvent,
    PushEvent,
    Repository,
)
from buildrunner.triggers.repository import RepositoryNames, trigger_repository
from tests.plans import plan_build

COMMIT = "0123456789" * 4
REPOSITORY = Repository(
    full_name="acme/app", clone_url="https://git.example.com/acme/app.git", forge="gitea"
)
GITHUB = {"owner": "acme", "name": "app", "push": {"branch": "^main$"}}


def a_trigger(**fields: Any) -> BuildTrigger:
    document = {"id": "t-1", "name": "t", "github": GITHUB, "filename": "cloudbuild.yaml", **fields}
    document = {name: value for name, value in document.items() if value is not None}
    return decode_message(BuildTrigger, document).value


def a_push(**fields: Any) -> PushEvent:
    given = {"repository": REPOSITORY, "ref": "refs/heads/main", "after": COMMIT, **fields}
    return PushEvent(**given)


def a_pull(**fields: Any) -> PullRequestEvent:
    given = {
        "repository": REPOSITORY,
        "number": 7,
        "action": "opened",
        "base_branch": "main",
        "head_branch": "feat",
        "head_commit": COMMIT,
        "head_clone_url": REPOSITORY.clone_url,
        **fields,
    }
    return PullRequestEvent(**given)


COMMON = {
    "TRIGGER_NAME": "t",
    "TRIGGER_BUILD_CONFIG_PATH": "cloudbuild.yaml",
    "REPO_NAME": "app",
    "REPO_FULL_NAME": "acme/app",
    "COMMIT_SHA": COMMIT,
    "REVISION_ID": COMMIT,
    "SHORT_SHA": "0123456",
}


@pytest.mark.parametrize(
    ("event", "ref", "values"),
    [
        (a_push(), "refs/heads/main", {"BRANCH_NAME": "main", "REF_NAME": "main"}),
        (
            a_push(ref="refs/tags/v1/x"),
            "refs/tags/v1/x",
            {"TAG_NAME": "v1/x", "REF_NAME": "v1/x"},
        ),
        (
            a_pull(),
            "refs/heads/feat",
            {
                "BRANCH_NAME": "feat",
                "REF_NAME": "feat",
                "_HEAD_BRANCH": "feat",
                "_BASE_BRANCH": "main",
                "_HEAD_REPO_URL": "https://git.example.com/acme/app",
                "_PR_NUMBER": "7",
            },
        ),
    ],
)
def test_an_event_sets_these_values_and_no_others(event, ref, values):
    made = event_run(a_trigger(), event)
    assert made.request["substitutions"] == {**COMMON, **values}
    assert made.request["source"] == {
        "gitSource": {"url": REPOSITORY.clone_url, "revision": COMMIT}
    }
    labels = {"config_file": "cloudbuild.yaml", "trigger_name": "t", "built_ref": ref}
    assert made.labels == labels
    assert not made.hold
    assert not made.untrusted


def test_the_names_of_branches_are_no_templates():
    """Issue: a fork's branch `${_KEY}` showed the substitution of its trigger."""
    hostile = "${_KEY}$_KEY$$x"
    trigger = a_trigger(substitutions={"_KEY": "value"})
    made = event_run(trigger, a_pull(head_branch=hostile, is_fork=True))
    steps = [{"name": "busybox", "args": ["$_HEAD_BRANCH"]}]
    build = decode_message(Build, {**made.request, "steps": steps})
    planned = plan_build(build.value, context=PlanContext(built_ins=BuiltIns(), triggered=True))
    assert planned.steps[0].args == (hostile,)


def test_a_fork_is_built_from_its_own_repository_held_and_without_trust():
    event = a_pull(is_fork=True, head_clone_url="https://git.example.com/eve/app.git")
    made = event_run(a_trigger(), event)
    assert made.request["source"]["gitSource"]["url"] == "https://git.example.com/eve/app.git"
    assert made.request["substitutions"]["_HEAD_REPO_URL"] == "https://git.example.com/eve/app"
    assert made.request["substitutions"]["REPO_FULL_NAME"] == "acme/app"
    assert (made.hold, made.untrusted) == (True, True)
    assert "built_ref" not in made.labels


def test_a_fork_that_is_gone_is_built_from_the_base_repository_and_still_not_trusted():
    made = event_run(a_trigger(), a_pull(is_fork=True, head_clone_url=""))
    assert made.request["source"]["gitSource"]["url"] == REPOSITORY.clone_url
    assert made.untrusted


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        (
            {"repositoryEventConfig": {"repository": "c/app", "push": {"branch": "."}}},
            {"connectedRepository": {"repository": "c/app", "revision": COMMIT}},
        ),
        (
            {"triggerTemplate": {"repoName": "mirror", "branchName": ".", "dir": "d"}},
            {"repoSource": {"repoName": "mirror", "commitSha": COMMIT, "dir": "d"}},
        ),
    ],
)
def test_a_repository_that_the_settings_name_is_fetched_from_there(fields, source):
    known = {"c/app": "ssh://git@inside/app", "mirror": "ssh://git@inside/mirror"}
    trigger = a_trigger(github=None, **fields)
    wanted = trigger_repository(trigger, names=RepositoryNames(connected={"": known}))
    assert event_run(trigger, a_push(), wanted).request["source"] == source
    unknown = event_run(trigger, a_push(), trigger_repository(trigger))
    unknown = unknown.request["source"]["gitSource"]
    assert unknown["url"] == REPOSITORY.clone_url
    assert unknown.get("dir", "") == fields.get("triggerTemplate", {}).get("dir", "")


def test_a_repository_that_is_nowhere_can_not_be_built():
    with pytest.raises(UsageError, match="the address of acme/app is unknown"):
        event_run(a_trigger(), a_push(repository=Repository(full_name="acme/app")))


@pytest.mark.parametrize("after", ["", "0" * 40, "0" * 64])
def test_nothing_is_built_of_a_deleted_branch(after):
    with pytest.raises(UsageError, match="was deleted"):
        event_run(a_trigger(), a_push(after=after))


def test_a_pull_request_without_a_commit_can_not_be_built():
    with pytest.raises(UsageError, match="the head commit of pull request #7"):
        event_run(a_trigger(), a_pull(head_commit=""))


def seen(trigger, event):
    return filter_values(trigger.substitutions, payload_roots(event))


def test_payloads_fill_bindings_under_the_names_of_cloud_build():
    payload = {"pusher": "eve $X", "pull_request": {"title": "t"}}
    push = a_trigger(substitutions={"_WHO": "$(push.pusher)", "_B": "$(body.pusher)"})
    assert seen(push, a_push(body=payload)) == {"_WHO": "eve $X", "_B": "eve $X"}
    made = event_run(push, a_push(body=payload))
    assert made.request["substitutions"]["_WHO"] == "eve $$X"
    pull = a_trigger(substitutions={"_TITLE": "$(pull_request.pull_request.title)"})
    assert seen(pull, a_pull(body=payload)) == {"_TITLE": "t"}
    message = a_trigger(substitutions={"_D": "$(body.message.data.k)"})
    event = MessageEvent(kind="pubsub", body={"message": {"data": {"k": "v"}}})
    assert seen(message, event) == {"_D": "v"}


def test_a_message_builds_what_the_trigger_says():
    trigger = a_trigger(
        github=None,
        filename=None,
        build={"steps": [{"name": "busybox", "args": ["$_D"]}]},
        pubsubConfig={"topic": "projects/p/topics/t"},
        substitutions={"_D": "$(body.message.data)"},
    )
    made = event_run(trigger, MessageEvent(kind="pubsub", body={"message": {"data": "x"}}))
    assert made.request["substitutions"]["_D"] == "x"
    assert "source" not in made.request


def test_a_trigger_s_own_values_win_over_the_event_s():
    made = event_run(a_trigger(substitutions={"BRANCH_NAME": "mine"}), a_push())
    assert made.request["substitutions"]["BRANCH_NAME"] == "mine"


@pytest.mark.parametrize(
    "event",
    [a_pull(head_commit="1234567890ab"), a_push(ref="refs/tags/v1", may_be_unpeeled=True)],
)
def test_what_may_be_no_commit_s_whole_id_is_left_to_the_fetch_to_tell(event):
    values = event_run(a_trigger(), event).request["substitutions"]
    assert values.keys().isdisjoint({"COMMIT_SHA", "REVISION_ID", "SHORT_SHA"})
