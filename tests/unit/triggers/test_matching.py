"""Which event fires which trigger: the table of semantics 9.12, and what it leaves open."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.triggers.events import (
    MessageEvent,
    PullRequestEvent,
    PushEvent,
    Repository,
    Verdict,
)
from buildrunner.triggers.forge_host import named_forge
from buildrunner.triggers.hook_binding import on_host
from buildrunner.triggers.matching import match, open_question
from buildrunner.triggers.repository import RepositoryNames, trigger_repository
from buildrunner.triggers.settings import ForgeSetting

NO_COMMIT = "0" * 40
APP = Repository(full_name="acme/app", clone_url="https://github.com/acme/app.git", forge="github")
GITHUB = {"owner": "acme", "name": "app"}


def trigger(**fields: Any) -> BuildTrigger:
    return decode_message(
        BuildTrigger, {"name": "t", "filename": "cloudbuild.yaml", **fields}
    ).value


def on_push(*, invert: bool = False, github: dict[str, str] | None = None, **ref: str) -> dict:
    push = {**ref, **({"invertRegex": True} if invert else {})}
    return {"github": {**(github or GITHUB), "push": push}}


def on_pull(control: int = 0, branch: str = "^main$", **fields: Any) -> dict:
    wanted = {"branch": branch, "commentControl": control, **fields}
    return {"github": {**GITHUB, "pullRequest": wanted}}


def pushed(branch: str = "", tag: str = "", **fields: Any) -> PushEvent:
    ref = f"refs/tags/{tag}" if tag else f"refs/heads/{branch}"
    return PushEvent(**{"repository": APP, "ref": ref, "after": "a" * 40, **fields})


def pull(**fields: Any) -> PullRequestEvent:
    given = {
        "repository": APP,
        "number": 7,
        "action": "opened",
        "base_branch": "main",
        "head_branch": "feat",
        "author": "mona",
        "author_may_write": True,
    }
    return PullRequestEvent(**{**given, **fields})


def comment(text: str, *, writer: bool) -> PullRequestEvent:
    return pull(action="commented", comment=text, commenter="hub", commenter_may_write=writer)


MAIN = on_push(branch="^main$")
ANY = on_push(branch=".*")
OUTSIDER = {"author_may_write": False}

TABLE = {
    1: (MAIN, pushed("main"), True),
    2: (on_push(branch="main"), pushed("maintenance"), True),
    3: (MAIN, pushed("maintenance"), False),
    4: (on_push(branch="^main$", invert=True), pushed("dev"), True),
    5: (on_push(branch="^main$", invert=True), pushed("main"), False),
    6: (ANY, pushed(tag="v1"), False),
    7: (on_push(tag=r"^v\d+"), pushed(tag="v12"), True),
    8: (on_push(tag=r"^v\d+"), pushed("v12"), False),
    9: (ANY, pushed("x", after=NO_COMMIT), False),
    10: (ANY, pushed("main", repository=Repository(full_name="acme/other")), False),
    11: ({**ANY, "disabled": True}, pushed("x"), False),
    13: (ANY, pushed("x", message="fix [skip ci]"), False),
    14: (ANY, pushed("x", message="the head asks for nothing"), True),
    15: ({**ANY, "ignoredFiles": ["docs/**"]}, pushed("x", files=("docs/a.md",)), False),
    16: ({**ANY, "ignoredFiles": ["docs/**"]}, pushed("x", files=("docs/a.md", "src/x")), True),
    17: ({**ANY, "ignoredFiles": ["*.md"]}, pushed("x", files=("docs/a.md",)), True),
    18: (
        {**ANY, "ignoredFiles": ["**/*.md"]},
        pushed("x", files=("README.md", "docs/a.md")),
        False,
    ),
    19: ({**ANY, "includedFiles": ["src/**"]}, pushed("x", files=("README.md",)), False),
    20: ({**ANY, "includedFiles": ["src/**"]}, pushed("x", files=("src/a/b.c",)), True),
    21: ({**ANY, "includedFiles": ["src"]}, pushed("x", files=("src/a",)), False),
    22: ({**ANY, "includedFiles": ["src/*"]}, pushed("x", files=("src/a/b",)), False),
    23: (
        {**ANY, "includedFiles": ["src/**"], "ignoredFiles": ["**/*.md"]},
        pushed("x", files=("src/a.md",)),
        False,
    ),
    24: (
        {**ANY, "includedFiles": ["src/**"], "ignoredFiles": ["**/*.md"]},
        pushed("x", files=("src/a.md", "src/b.c")),
        True,
    ),
    25: (
        {**ANY, "includedFiles": ["src/**"], "ignoredFiles": ["**/*.md"]},
        pushed("x", files=("src/a.md", "other.c")),
        False,
    ),
    26: ({**ANY, "includedFiles": ["**"]}, pushed("x", files=()), True),
    27: ({**ANY, "ignoredFiles": ["x/**"]}, pushed("x", files=()), False),
    28: ({**ANY, "includedFiles": ["[ab].txt"]}, pushed("x", files=("a.txt",)), True),
    29: ({**ANY, "includedFiles": ["?.txt"]}, pushed("x", files=("ab.txt",)), False),
    30: (on_pull(), pull(), True),
    31: (on_pull(), pull(base_branch="dev"), False),
    32: (on_pull(1), pull(), False),
    33: (on_pull(1), pull(description="please /gcbrun"), True),
    34: (on_pull(1), comment("/gcbrun", writer=False), False),
    35: (on_pull(1), comment("ok /gcbrun please", writer=True), True),
    36: (on_pull(1), pull(action="pushed", description="/gcbrun"), False),
    37: (on_pull(2), pull(), True),
    38: (on_pull(2), pull(**OUTSIDER), False),
    39: (on_pull(2), comment("/gcbrun", writer=True), True),
    40: (on_pull(0), comment("/gcbrun", writer=True), True),
    41: (on_pull(), pushed("main"), False),
    42: (ANY, pull(is_fork=True), False),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_table_of_the_semantics(row: int) -> None:
    fields, event, fires = TABLE[row]
    verdict = match(trigger(**fields), event)
    assert verdict.fires is fires, verdict.rules
    assert verdict.reason


WEBHOOK = {"webhookConfig": {"secret": "projects/p/secrets/s/versions/1"}}
PUBSUB = {"pubsubConfig": {"topic": "projects/p/topics/t"}}


ON_ACTION = {**WEBHOOK, "filter": '_A == "opened"'}
ON_TAG = {**WEBHOOK, "filter": 'body.tags[0] == "x"'}
TOPIC = "projects/p/topics/"


@pytest.mark.parametrize(
    ("fields", "kind", "body", "values", "fires"),
    [
        (WEBHOOK, "webhook", {}, {}, True),
        (ON_ACTION, "webhook", {}, {"_A": "opened"}, True),
        (ON_ACTION, "webhook", {}, {"_A": "closed"}, False),
        (ON_ACTION, "webhook", {}, {"_A": ""}, False),
        (ON_TAG, "webhook", {}, {}, False),
        (ON_TAG, "webhook", {"tags": ["x"]}, {}, True),
        ({**WEBHOOK, "filter": "1 + 1"}, "webhook", {}, {}, False),
        (WEBHOOK, "pubsub", {}, {}, False),
        ({**PUBSUB, "filter": '_S == "OK"'}, "pubsub", {}, {"_S": "OK"}, True),
        (PUBSUB, "webhook", {}, {}, False),
    ],
)
def test_messages_fire_by_their_filter(
    fields: dict, kind: str, body: dict, values: dict[str, str], fires: bool
) -> None:
    event = MessageEvent(kind=kind, body=body)
    assert match(trigger(**fields, substitutions=values), event).fires is fires


def test_a_filter_whose_values_refer_to_each_other_in_a_cycle_does_not_fire() -> None:
    circle = trigger(**ON_ACTION, substitutions={"_A": "$_B", "_B": "$_A"})
    verdict = match(circle, MessageEvent(kind="webhook", body={}))
    assert not verdict.fires
    assert "cycle _A -> _B -> _A" in verdict.reason


@pytest.mark.parametrize(("topic", "fires"), [("t", True), ("u", False)])
def test_a_topic_must_be_the_triggers(topic: str, fires: bool) -> None:
    event = MessageEvent(kind="pubsub", body={}, topic=TOPIC + topic)
    assert match(trigger(**PUBSUB), event).fires is fires


def test_the_reason_names_the_first_rule_that_said_no() -> None:
    verdict = match(trigger(**MAIN), pushed("dev", message="[skip ci]"))
    assert verdict.reason == "branch dev does not match ^main$"
    assert [rule.name for rule in verdict.rules] == ["enabled", "repository", "ref", "branch"]


def test_a_push_that_asks_not_to_be_built_is_not() -> None:
    event = pushed("main", message="fix", skip_option="ci.skip")
    verdict = match(trigger(**MAIN), event)
    assert (verdict.fires, verdict.reason) == (False, "it was pushed with the option ci.skip")
    assert open_question(trigger(**MAIN), event, verdict) is None


def test_a_disabled_trigger_of_another_repository_is_first_of_all_of_another() -> None:
    event = pushed("main")
    elsewhere = pushed("main", repository=Repository(full_name="x/y", forge="github", clone_url=""))
    off = trigger(**MAIN, disabled=True)
    assert [rule.name for rule in match(off, event).rules] == ["enabled"]
    assert [rule.name for rule in match(off, elsewhere).rules] == ["repository"]
    names = [rule.name for rule in match(trigger(**MAIN), elsewhere).rules]
    assert names == ["enabled", "repository"]


def test_all_rules_are_told_when_it_fires() -> None:
    verdict = match(trigger(**MAIN, includedFiles=["src/**"]), pushed("main", files=("src/a",)))
    names = ["enabled", "repository", "ref", "branch", "skip", "files", "filter"]
    assert [rule.name for rule in verdict.rules] == names


def test_a_fork_fires_but_is_held() -> None:
    verdict = match(trigger(**on_pull()), pull(is_fork=True, author_may_write=False))
    assert (verdict.fires, verdict.hold) == (True, True)


def test_a_pull_request_that_waits_for_a_comment_says_so() -> None:
    assert match(trigger(**on_pull(1)), pull()).waits_for_comment
    assert not match(trigger(**on_pull(1)), comment("no", writer=True)).waits_for_comment


@pytest.mark.parametrize("action", ["closed", "labeled", "ready_for_review"])
def test_other_things_that_happen_to_a_pull_request_never_fire(action: str) -> None:
    assert not match(trigger(**on_pull()), pull(action=action)).fires


def test_unknown_files_count_as_matching() -> None:
    assert match(trigger(**ANY, includedFiles=["src/**"]), pushed("x", files=None)).fires


def test_files_do_not_count_for_tags() -> None:
    on_tag = on_push(tag=".*")
    assert match(trigger(**on_tag, includedFiles=["src/**"]), pushed(tag="v1", files=("x",))).fires


REPOSITORIES = {"app": "https://git.example.com/acme/app", "other": "https://x.example/y.git"}
EACH = {"push": {"branch": ".*"}}
CONNECTED = {
    "repositoryEventConfig": {
        "repository": "projects/p/locations/l/connections/c/repositories/app",
        **EACH,
    }
}
BITBUCKET = {"bitbucketServerTriggerConfig": {"projectKey": "PRJ", "repoSlug": "app", **EACH}}


def mirrored(name: str) -> dict:
    return {"triggerTemplate": {"repoName": name, "branchName": ".*"}}


@pytest.mark.parametrize(
    ("control", "given", "reason"),
    [
        (0, {}, "merge request !7: opened"),
        (0, {"base_branch": ""}, "the base branch of merge request !7 is unknown"),
        (0, {"action": "closed"}, 'a merge request that was "closed"'),
    ],
)
def test_a_merge_request_of_gitlab_is_called_so(
    control: int, given: dict[str, Any], reason: str
) -> None:
    repository = on("gitlab", "", "g/app")
    trigger_ = trigger(
        gitlabEnterpriseEventsConfig={
            "projectNamespace": "g/app",
            "pullRequest": {"branch": "^main$", "commentControl": control},
        }
    )
    verdict = match(trigger_, pull(repository=repository, **given))
    assert reason in [rule.text for rule in verdict.rules]


def gitlab(name: str) -> dict:
    return {"gitlabEnterpriseEventsConfig": {"projectNamespace": name, **EACH}}


def on(forge: str, host: str, name: str) -> Repository:
    return on_host(Repository(full_name=name), named_forge(forge, host))


def bare(name: str, url: str = "") -> Repository:
    return Repository(full_name=name, clone_url=url, bare=True)


GITEA = ForgeSetting(kind="gitea", host="git.example.com")
STASH = ForgeSetting(kind="bitbucket-server", host="https://bb.example.com/stash")


GITHUB_TRIGGER = {"github": {"owner": "ACME", "name": "App", **EACH}}
NAMED = {"repositoryEventConfig": {"repository": "acme/app", **EACH}}
BARE = {"repositoryEventConfig": {"repository": "lib", **EACH}}
AT_URL = {"repositoryEventConfig": {"repository": "https://github.com/acme/app", **EACH}}
OF_GITLAB = on("gitlab", "", "g/s/app")
SERVER = on("bitbucket-server", "bb.example.com/stash", "prj/app")


@pytest.mark.parametrize(
    ("config", "forge", "repository", "listens"),
    [
        # A github trigger is for github.com, in any case of letters, and for nothing else.
        (GITHUB_TRIGGER, None, APP, True),
        (GITHUB_TRIGGER, None, on("gitea", "git.example.com", "acme/app"), False),
        (GITHUB_TRIGGER, None, on("github", "ghe.example.com", "acme/app"), False),
        (GITHUB_TRIGGER, None, on("gitlab", "", "acme/app"), False),
        (GITHUB_TRIGGER, None, on("github", "", "acme/app2"), False),
        (GITHUB_TRIGGER, None, on("github", "", "acme/app/x"), False),
        (GITHUB_TRIGGER, None, on("github", "", "acme/\u017fapp"), False),
        (GITHUB_TRIGGER, None, bare("acme/app", "https://github.com/acme/app.git"), False),
        (GITHUB_TRIGGER, None, bare("app"), False),
        # The setting names another forge, which is then the only one.
        (GITHUB_TRIGGER, GITEA, on("gitea", "git.example.com", "acme/app"), True),
        (GITHUB_TRIGGER, GITEA, on("github", "git.example.com", "acme/app"), False),
        (GITHUB_TRIGGER, GITEA, on("gitea", "git.example.com:8443", "acme/app"), False),
        (GITHUB_TRIGGER, GITEA, on("gitea", "git.example.com.evil.example", "acme/app"), False),
        (GITHUB_TRIGGER, GITEA, on("gitea", "evil.example/git.example.com", "acme/app"), False),
        (GITHUB_TRIGGER, GITEA, APP, False),
        # Cloud Source Repositories: mirrors of the public forges, and repositories of their own.
        (mirrored("lib"), None, bare("lib"), True),
        (mirrored("lib"), None, bare("Lib"), False),
        (mirrored("github_acme_app"), None, APP, True),
        (mirrored("github_acme_app"), None, on("gitea", "git.example.com", "acme/app"), False),
        (mirrored("app"), None, APP, False),
        # Connected repositories: where the settings say, whatever transport they name.
        (CONNECTED, None, on("gitea", "git.example.com", "acme/app"), True),
        (CONNECTED, None, on("gitlab", "git.example.com", "acme/app"), True),
        (CONNECTED, GITEA, on("gitlab", "git.example.com", "acme/app"), False),
        (CONNECTED, None, on("gitea", "git.example.com:3000", "acme/app"), False),
        (CONNECTED, None, on("gitea", "git.example.com", "acme/other"), False),
        (CONNECTED, None, bare("app", "https://git.example.com/acme/app"), True),
        (CONNECTED, None, bare("app"), False),
        (CONNECTED, None, bare("other", "https://git.example.com/acme/app"), False),
        (AT_URL, None, APP, True),
        (AT_URL, None, on("github", "ghe.example.com", "acme/app"), False),
        (BARE, None, bare("lib"), True),
        (BARE, None, bare("other"), False),
        # A full name alone names no forge.
        (NAMED, None, APP, False),
        (NAMED, None, on("gitea", "git.example.com", "acme/app"), False),
        (NAMED, GITEA, on("gitea", "git.example.com", "Acme/App"), True),
        # GitLab's nested groups; a server needs its setting.
        (gitlab("g/s/app"), None, OF_GITLAB, True),
        (gitlab("s/app"), None, OF_GITLAB, False),
        (gitlab("g/s/app"), None, on("gitlab", "gitlab.example.com", "g/s/app"), False),
        (gitlab("acme/app"), None, APP, False),
        (gitlab("g/s/app"), GITEA, on("gitea", "git.example.com", "g/s/app"), False),
        (BITBUCKET, None, SERVER, False),
        (BITBUCKET, STASH, SERVER, True),
        (BITBUCKET, STASH, on("bitbucket-server", "bb.example.com", "stash/PRJ/app"), False),
        ({}, None, APP, False),
    ],
)
def test_a_trigger_is_for_one_repository_of_one_forge(
    config: dict, forge: ForgeSetting | None, repository: Repository, listens: bool
) -> None:
    requested = trigger(**config)
    wanted = trigger_repository(
        requested, forge, names=RepositoryNames(connected={"": REPOSITORIES})
    )
    verdict = match(requested, pushed("x", repository=repository), repository=wanted)
    assert verdict.fires is listens, verdict.rules


FIELDS = st.sampled_from([MAIN, ANY, on_pull(), on_pull(1), WEBHOOK, PUBSUB, {}])
EVENTS = st.one_of(
    st.builds(pushed, st.text(max_size=8), message=st.text(max_size=20)),
    st.builds(pull, action=st.text(max_size=8), base_branch=st.text(max_size=8)),
    st.builds(MessageEvent, kind=st.sampled_from(["webhook", "pubsub"]), body=st.none()),
)


@given(fields=FIELDS, event=EVENTS, disabled=st.booleans())
def test_whatever_happens_there_is_a_verdict_with_a_reason(
    fields: dict, event: object, disabled: bool
) -> None:
    verdict = match(trigger(**fields, disabled=disabled), event)  # type: ignore[arg-type]
    assert isinstance(verdict, Verdict)
    assert verdict.reason
    assert verdict.fires is all(rule.passed is not False for rule in verdict.rules)
    assert not (disabled and verdict.fires)


def test_a_comment_that_asks_for_nothing_says_so_also_where_the_branch_is_not_told() -> None:
    event = pull(action="commented", comment="nice", base_branch="", head_branch="")
    assert match(trigger(**on_pull()), event).reason == "the comment does not hold /gcbrun"


@pytest.mark.parametrize("inverted", [False, True])
def test_a_branch_that_nobody_tells_matches_nothing(inverted: bool) -> None:
    event = pull(action="commented", comment="/gcbrun", base_branch="", commenter_may_write=True)
    verdict = match(trigger(**on_pull(branch=".*", invertRegex=inverted)), event)
    assert not verdict.fires
    assert verdict.reason == "the base branch of pull request #7 is unknown"
