"""The build that a trigger makes of a run or a payload."""

import pytest

from buildrunner.errors import ConfigError, UsageError
from buildrunner.spec.model.source import RepoSource
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.triggers.build import (
    filter_values,
    manual_run,
    webhook_run,
)
from buildrunner.triggers.hook_binding import HookBinding
from buildrunner.triggers.labels import (
    BUILT_REF,
    CONFIG_LABEL,
    GIVEN_FOLDER,
    GIVEN_VALUES,
    TRIGGER_NAME,
)
from buildrunner.triggers.repository import RepositoryNames, trigger_repository
from buildrunner.triggers.settings import ForgeSetting

INLINE = {"steps": [{"name": "busybox"}], "substitutions": {"_A": "file", "_B": "file"}}


def a_trigger(**fields):
    loaded = decode_message(BuildTrigger, {"id": "7", "name": "t", **fields})
    assert loaded.ok, loaded.problems
    return loaded.value


def a_source(**fields):
    loaded = decode_message(RepoSource, fields)
    assert loaded.ok, loaded.problems
    return loaded.value


def test_values_of_the_run_beat_the_triggers_which_beat_the_files():
    trigger = a_trigger(build=INLINE, substitutions={"_B": "trigger", "_C": "trigger"})
    made = manual_run(trigger, a_source(substitutions={"_C": "run"}))
    values = made.request["substitutions"]
    assert (values["_A"], values["_B"], values["_C"]) == ("file", "trigger", "run")
    assert values["TRIGGER_NAME"] == "t"
    assert made.labels == {TRIGGER_NAME: "t", GIVEN_VALUES: "_C"}


def test_the_caller_may_override_what_the_trigger_knows():
    made = manual_run(a_trigger(build=INLINE), a_source(substitutions={"TRIGGER_NAME": "other"}))
    assert made.request["substitutions"]["TRIGGER_NAME"] == "other"


def test_tags_of_the_build_and_of_the_trigger_are_kept_once():
    trigger = a_trigger(build={**INLINE, "tags": ["a"]}, tags=["a", "b"])
    assert manual_run(trigger, None).request["tags"] == ["a", "b", "trigger-7"]


@pytest.mark.parametrize(
    ("fields", "run", "source", "values"),
    [
        (
            {"github": {"owner": "o", "name": "r", "push": {"branch": "^main$"}}},
            {"branchName": "dev", "dir": "sub"},
            {
                "gitSource": {
                    "url": "https://github.com/o/r.git",
                    "revision": "refs/heads/dev",
                    "dir": "sub",
                }
            },
            {"BRANCH_NAME": "dev", "REF_NAME": "dev", "REPO_FULL_NAME": "o/r", "REPO_NAME": "r"},
        ),
        (
            {"github": {"owner": "o", "name": "r", "push": {"branch": "^main$"}}},
            {},
            {"gitSource": {"url": "https://github.com/o/r.git", "revision": "refs/heads/main"}},
            {"BRANCH_NAME": "main"},
        ),
        (
            {"github": {"owner": "o", "name": "r", "push": {"tag": "v1"}}},
            {},
            {"gitSource": {"url": "https://github.com/o/r.git", "revision": "refs/tags/v1"}},
            {"TAG_NAME": "v1", "REF_NAME": "v1"},
        ),
        (
            {"github": {"owner": "o", "name": "r", "push": {"branch": ".*"}}},
            {"commitSha": "abc123"},
            {"gitSource": {"url": "https://github.com/o/r.git", "revision": "abc123"}},
            {},
        ),
        (
            {"triggerTemplate": {"repoName": "r", "branchName": ".*", "dir": "d"}},
            {"tagName": "v2"},
            {"repoSource": {"repoName": "r", "tagName": "v2", "dir": "d"}},
            {"TAG_NAME": "v2", "REPO_NAME": "r"},
        ),
        (
            {"repositoryEventConfig": {"repository": "c/r", "push": {"branch": "main"}}},
            {},
            {"connectedRepository": {"repository": "c/r", "revision": "refs/heads/main"}},
            {"BRANCH_NAME": "main"},
        ),
        (
            {
                "gitlabEnterpriseEventsConfig": {
                    "projectNamespace": "g/r",
                    "push": {"branch": "^main$"},
                }
            },
            {},
            {"gitSource": {"url": "https://gitlab.com/g/r.git", "revision": "refs/heads/main"}},
            {"BRANCH_NAME": "main"},
        ),
        (
            {"sourceToBuild": {"uri": "https://e.com/r", "ref": "refs/tags/v3"}},
            {},
            {"gitSource": {"url": "https://e.com/r", "revision": "refs/tags/v3"}},
            {"TAG_NAME": "v3"},
        ),
        (
            {"sourceToBuild": {"uri": "o/r", "ref": "refs/heads/x", "repoType": "GITHUB"}},
            {"branchName": "y"},
            {"gitSource": {"url": "https://github.com/o/r", "revision": "refs/heads/y"}},
            {"BRANCH_NAME": "y"},
        ),
    ],
)
def test_the_source_is_the_repository_at_the_revision(fields, run, source, values):
    trigger = a_trigger(filename="ci/cloudbuild.yaml", **fields)
    names = RepositoryNames(connected={"": {"c/r": "ssh://git@inside/r"}})
    wanted = trigger_repository(trigger, names=names)
    made = manual_run(trigger, a_source(**run), wanted)
    assert made.request["source"] == source
    assert values.items() <= made.request["substitutions"].items()
    assert made.labels[CONFIG_LABEL] == "ci/cloudbuild.yaml"
    assert made.request["substitutions"]["TRIGGER_BUILD_CONFIG_PATH"] == "ci/cloudbuild.yaml"


@pytest.mark.parametrize(
    ("fields", "url", "labels"),
    [
        (
            {"github": {"owner": "o", "name": "r", "push": {"branch": "main"}}},
            "https://git.example.com/o/r.git",
            {"repository": "o/r"},
        ),
        (
            {"repositoryEventConfig": {"repository": "o/r", "push": {"branch": "main"}}},
            "https://git.example.com/o/r.git",
            {"repository": "o/r"},
        ),
        (
            {"repositoryEventConfig": {"repository": "bare", "push": {"branch": "main"}}},
            "file:///srv/bare.git",
            None,
        ),
        (
            {"triggerTemplate": {"repoName": "bare", "branchName": "main", "dir": "d"}},
            "file:///srv/bare.git",
            None,
        ),
    ],
)
def test_a_repository_is_fetched_from_its_forge_or_from_where_its_hook_is(fields, url, labels):
    trigger = a_trigger(filename="c.yaml", **fields)
    forge = ForgeSetting(kind="gitea", host="https://git.example.com")
    hooks = {"git/bare": HookBinding(repository="file:///srv/bare.git")}
    wanted = trigger_repository(trigger, forge, names=RepositoryNames(hooks=hooks))
    made = manual_run(trigger, None, wanted)
    folder = {"dir": "d"} if "triggerTemplate" in fields else {}
    fetched = {"url": url, "revision": "refs/heads/main", **folder}
    assert made.request["source"] == {"gitSource": fetched}
    on_forge = {"forge": "gitea", "forge_url": "https://git.example.com", **(labels or {})}
    told = {name: made.labels[name] for name in ("forge", "forge_url", "repository")
            if name in made.labels}  # fmt: skip
    assert told == (on_forge if labels else {})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"repositoryEventConfig": {"repository": "o/r"}}, "nothing says which forge has o/r"),
        ({"repositoryEventConfig": {"repository": "bare"}}, "nothing says where the bare"),
        (
            {"bitbucketServerTriggerConfig": {"projectKey": "P", "repoSlug": "r"}},
            "nothing says which Bitbucket Server has P/r",
        ),
        (
            {
                "gitlabEnterpriseEventsConfig": {
                    "projectNamespace": "g/r",
                    "gitlabConfigResource": "projects/p/locations/l/gitLabConfigs/c",
                }
            },
            "gitLabConfigs/c exists only inside Google Cloud",
        ),
        (
            {
                "github": {
                    "owner": "o",
                    "name": "r",
                    "enterpriseConfigResourceName": "projects/p/githubEnterpriseConfigs/c",
                }
            },
            "githubEnterpriseConfigs/c exists only inside Google Cloud",
        ),
    ],
)
def test_a_repository_of_an_unknown_forge_is_not_run(fields, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        manual_run(a_trigger(build=INLINE, **fields), a_source(branchName="main"))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "run", "ref"),
    [
        ({"github": {"owner": "o", "name": "r"}}, {"branchName": "dev"}, "refs/heads/dev"),
        ({"github": {"owner": "o", "name": "r"}}, {"tagName": "v1"}, "refs/tags/v1"),
        ({"github": {"owner": "o", "name": "r"}}, {"commitSha": "a" * 40}, ""),
        ({"sourceToBuild": {"uri": "https://e.com/r", "ref": "refs/heads/m"}}, {}, "refs/heads/m"),
        ({"build": INLINE}, {"branchName": "main"}, ""),
    ],
    ids=["branch", "tag", "commit", "sourceToBuild", "no repository"],
)
def test_the_ref_that_is_built_is_known_and_no_value_of_the_run_changes_it(fields, run, ref):
    config = {} if "build" in fields else {"filename": "c.yaml"}
    values = {"BRANCH_NAME": "main", "TRIGGER_NAME": "deploy"}
    made = manual_run(a_trigger(**config, **fields), a_source(substitutions=values, **run))
    assert made.labels.get(BUILT_REF, "") == ref
    assert made.labels[TRIGGER_NAME] == "t"


def test_the_labels_say_which_values_and_folder_the_caller_gave():
    trigger = a_trigger(filename="c.yaml", github={"owner": "o", "name": "r"})
    given = a_source(branchName="main", dir="sub", substitutions={"_B": "1", "_A": "2"})
    labels = manual_run(trigger, given).labels
    assert (labels[GIVEN_VALUES], labels[GIVEN_FOLDER]) == ("_A _B", "sub")
    labels = manual_run(trigger, a_source(branchName="main")).labels
    assert not {GIVEN_VALUES, GIVEN_FOLDER} & set(labels)


def test_where_the_listened_to_repository_is_says_nothing_of_another_to_build():
    trigger = a_trigger(
        filename="c.yaml", sourceToBuild={"uri": "https://e.com/r", "ref": "refs/heads/m"}
    )
    source = manual_run(trigger, None).request["source"]
    assert source["gitSource"]["url"] == "https://e.com/r"


def test_autodetect_looks_for_the_usual_names():
    trigger = a_trigger(
        autodetect=True, sourceToBuild={"uri": "https://e.com/r", "ref": "refs/heads/m"}
    )
    made = manual_run(trigger, None)
    assert made.labels[CONFIG_LABEL] == "?"
    assert "TRIGGER_BUILD_CONFIG_PATH" not in made.request["substitutions"]


def test_a_pattern_is_no_revision():
    trigger = a_trigger(
        build=INLINE, github={"owner": "o", "name": "r", "push": {"branch": "^(main|dev)$"}}
    )
    with pytest.raises(UsageError, match="more than one revision"):
        manual_run(trigger, None)
    with pytest.raises(ConfigError, match="not a regular expression"):
        manual_run(trigger, a_source(branchName="^main$"))
    inverted = {"owner": "o", "name": "r", "push": {"branch": "main", "invertRegex": True}}
    with pytest.raises(UsageError, match="more than one revision"):
        manual_run(a_trigger(build=INLINE, github=inverted), None)
    inverted = {"repoName": "r", "branchName": "main", "invertRegex": True}
    with pytest.raises(UsageError, match="more than one revision"):
        manual_run(a_trigger(build=INLINE, triggerTemplate=inverted), None)


def test_a_config_in_no_repository_can_not_be_read():
    with pytest.raises(UsageError, match="names no repository"):
        manual_run(a_trigger(filename="cloudbuild.yaml"), None)


def test_an_absolute_folder_is_refused():
    with pytest.raises(ConfigError, match="relative"):
        manual_run(a_trigger(build=INLINE), a_source(dir="/etc"))


def test_a_filter_sees_plain_values():
    values = {"_REF": "$(body.ref)", "_SHORT": "${_REF##*/}"}
    seen = filter_values(values, {"body": {"ref": "refs/heads/$x-1"}})
    assert seen == {"_REF": "refs/heads/$x-1", "_SHORT": "$x-1"}


def test_a_payload_fills_the_bindings_and_is_data():
    trigger = a_trigger(
        build=INLINE,
        substitutions={"_REF": "$(body.ref)", "_SHORT": "${_REF##*/}", "_NONE": "$(body.none)"},
    )
    made = webhook_run(trigger, {"ref": "refs/heads/$_A"})
    assert made.request["substitutions"]["_REF"] == "refs/heads/$$_A"
    assert made.request["substitutions"]["_NONE"] == ""
    assert made.warnings == ("$(body.none) is not in the event: empty",)


def test_bindings_of_an_inline_build_are_filled_too_and_the_triggers_values_win():
    own = {"_A": "$(body.a)", "_B": "$(body.b)", "_C": "$(body.c)"}
    trigger = a_trigger(build={**INLINE, "substitutions": own}, substitutions={"_B": "trigger"})
    made = webhook_run(trigger, {"a": "x${_B}", "b": "y"})
    values = made.request["substitutions"]
    assert (values["_A"], values["_B"], values["_C"]) == ("x$${_B}", "trigger", "")
    assert made.warnings == ("$(body.c) is not in the event: empty",)
