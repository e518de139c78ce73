"""Everything that is wrong with a trigger is said."""

import pytest

from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.validation.check import errors_of
from buildrunner.triggers.check import check_trigger

BUILD = {"steps": [{"name": "busybox"}]}
SECRET = "projects/p/secrets/s/versions/1"


def problems_of(**fields):
    loaded = decode_message(BuildTrigger, {"name": "t", "build": BUILD, **fields})
    assert loaded.ok, loaded.problems
    return errors_of(check_trigger(loaded.value))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "a"},
        {"name": "a" * 64},
        {"build": None, "filename": "cloudbuild.yaml"},
        {"build": None, "autodetect": True},
        {"webhookConfig": {"secret": SECRET}},
        {"pubsubConfig": {"topic": "projects/p/topics/t"}},
        {"github": {"owner": "o", "name": "r", "push": {"branch": "^main$"}}},
        {"github": {"owner": "o", "name": "r", "pullRequest": {"branch": ".*"}}},
        {"triggerTemplate": {"repoName": "r", "branchName": "^release-[0-9]+$"}},
        {"sourceToBuild": {"uri": "https://e.com/r", "ref": "refs/heads/main"}},
        {"filter": '_A == "x" && body.a.startsWith("y")'},
        {"substitutions": {"_X": "1", "BRANCH_NAME": "main"}},
        {"build": {"steps": [{"name": "busybox", "args": ["$_X", "$_Y"]}]}},
    ],
)
def test_good_triggers_pass(fields):
    assert problems_of(**fields) == []


@pytest.mark.parametrize(
    ("fields", "path", "text"),
    [
        ({"name": "-a"}, "name", "no name for a trigger"),
        ({"name": "a" * 65}, "name", "no name for a trigger"),
        ({"name": "a b"}, "name", "no name for a trigger"),
        ({"build": None}, "", "must say what to build"),
        ({"build": None, "autodetect": False}, "", "must say what to build"),
        ({"webhookConfig": {"secret": "s"}}, "webhookConfig.secret", "no secret version"),
        ({"webhookConfig": {}}, "webhookConfig.secret", "no secret version"),
        ({"pubsubConfig": {"topic": "t"}}, "pubsubConfig.topic", "no topic"),
        (
            {"github": {"owner": "x/../acme", "name": "app", "push": {"branch": "a"}}},
            "github",
            "no full name of a repository",
        ),
        (
            {"bitbucketServerTriggerConfig": {"projectKey": "P", "repoSlug": "../r"}},
            "bitbucketServerTriggerConfig",
            "no full name of a repository",
        ),
        (
            {"github": {"push": {"branch": "("}}},
            "github.push.branch",
            "no regular expression of RE2",
        ),
        (
            {"github": {"push": {"tag": "(?=x)"}}},
            "github.push.tag",
            "no regular expression of RE2",
        ),
        ({"github": {"pullRequest": {}}}, "github.pullRequest", "base branch"),
        ({"github": {"owner": "o"}}, "github", "either push or pullRequest"),
        ({"github": {"push": {}}}, "github.push", "either branch or tag"),
        ({"triggerTemplate": {"branchName": "["}}, "triggerTemplate.branchName", "RE2"),
        (
            {
                "github": {"push": {"branch": "x"}},
                "webhookConfig": {"secret": SECRET},
            },
            "webhookConfig",
            "one kind of event",
        ),
        ({"substitutions": {"x": "1"}}, "substitutions.x", "does not respect format"),
        ({"substitutions": {"BUILD_ID": "1"}}, "substitutions.BUILD_ID", "does not respect"),
        ({"sourceToBuild": {"ref": "refs/heads/x"}}, "sourceToBuild", "uri and repository"),
        (
            {"sourceToBuild": {"uri": "https://e.com/r", "ref": "main"}},
            "sourceToBuild.ref",
            "refs/",
        ),
        ({"filter": "_A =="}, "filter", "no CEL expression"),
        (
            {"filter": "size(_A)", "substitutions": {"_A": "xy"}},
            "filter",
            "gives 2, which is neith",
        ),
        ({"includedFiles": ["src/**", "src/["]}, "includedFiles[1]", "a ] is missing"),
        ({"ignoredFiles": ["docs\\"]}, "ignoredFiles[0]", "ends with a backslash"),
        ({"build": None, "gitFileSource": {}}, "gitFileSource", "path of the config"),
        ({"build": {"steps": [{}]}}, "build.steps[0]", "must specify name"),
    ],
)
def test_bad_triggers_are_told_what_is_wrong(fields, path, text):
    found = problems_of(**fields)
    assert (path, True) in [(problem.path, text in problem.message) for problem in found], found


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ({"schedule": "0 3 * * *", "timeZone": "Europe/Berlin"}, ""),
        ({"schedule": "0 3 * *"}, "five fields are needed"),
        ({"schedule": "0 25 * * *"}, "is no schedule"),
        ({"schedule": "0 3 31 2 *"}, "cron"),
        ({"schedule": "0 3 * * *", "timeZone": "Mars/Olympus"}, "is no time zone"),
        ({}, "five fields are needed"),
    ],
)
def test_a_schedule_is_checked(cron: dict[str, str], said: str) -> None:
    document = {"name": "nightly", "cron": cron, "build": {"steps": [{"name": "busybox"}]}}
    problems = check_trigger(decode_message(BuildTrigger, document).value)
    assert [problem.path for problem in problems] == (["cron"] if said else [])
    assert not said or said in problems[0].text()
    is_of_the_fields = bool(said) and "zone" not in said
    assert [problem.hint != "" for problem in problems] == ([is_of_the_fields] if said else [])


@pytest.mark.parametrize("config", ["githubEnterpriseConfig", "bitbucketServerConfig"])
def test_a_connection_that_only_the_service_has_is_a_warning(config):
    source = {"uri": "https://e.com/r", "ref": "refs/heads/main", config: "projects/p/x/y"}
    loaded = decode_message(BuildTrigger, {"name": "t", "build": BUILD, "sourceToBuild": source})
    problems = check_trigger(loaded.value)
    assert [problem.path for problem in problems] == [f"sourceToBuild.{config}"]
    assert errors_of(problems) == []


def test_a_forge_that_only_the_service_reaches_is_refused_with_a_reason():
    source = {"uri": "r", "ref": "refs/heads/main", "repoType": "BITBUCKET_CLOUD"}
    loaded = decode_message(BuildTrigger, {"name": "t", "build": BUILD, "sourceToBuild": source})
    assert [problem.rule for problem in loaded.problems] == ["unsupported-value"]
    assert "whole URL" in loaded.problems[0].hint
