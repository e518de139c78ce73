from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from buildrunner.server.pages.triggers.page import fires_on, trigger_view
from buildrunner.triggers.settings import ForgeSetting, TriggerSettings

NOW = datetime(2026, 1, 1, tzinfo=UTC)


EACH = {"push": {"branch": "."}}
CONNECTED = {"repository": "projects/p/locations/l/connections/c/repositories/app", **EACH}
BITBUCKET = {"projectKey": "P", "repoSlug": "a", **EACH}


def github(**event: Any) -> dict[str, Any]:
    return {"github": {"owner": "acme", "name": "app", **event}}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (github(push={"branch": "^main$"}), "push of a branch like ^main$ to acme/app (GitHub)"),
        (
            github(push={"tag": "v.*", "invertRegex": True}),
            "push of a tag not like v.* to acme/app (GitHub)",
        ),
        (
            github(pullRequest={"branch": "main"}),
            "pull request into a branch like main of acme/app (GitHub)",
        ),
        ({"repositoryEventConfig": CONNECTED}, "push of a branch like . to app (repository)"),
        (
            {"bitbucketServerTriggerConfig": BITBUCKET},
            "push of a branch like . to P/a (Bitbucket Server)",
        ),
        (
            {"triggerTemplate": {"repoName": "lib", "branchName": "main"}},
            "push of a branch like main to lib",
        ),
        ({"webhookConfig": {"secret": "s"}}, "a call of its webhook"),
        ({"pubsubConfig": {"topic": "projects/p/topics/t"}}, "a message of projects/p/topics/t"),
        ({"cron": {"schedule": "0 3 * * *"}}, "the clock"),
        ({}, "by hand only"),
    ],
)
def test_what_fires_it_is_said_in_words(document: dict[str, Any], text: str) -> None:
    assert fires_on(document) == text


@pytest.mark.parametrize(
    ("document", "settings", "word"),
    [
        (github(pullRequest={"branch": "main"}), None, "pull request"),
        (
            {
                "gitlabEnterpriseEventsConfig": {
                    "projectNamespace": "g/app",
                    "pullRequest": {"branch": "main"},
                }
            },
            None,
            "merge request",
        ),
        (
            {
                "repositoryEventConfig": {
                    "repository": CONNECTED["repository"],
                    "pullRequest": {"branch": "main"},
                }
            },
            TriggerSettings(forge=ForgeSetting(kind="gitlab", host="git.example.com")),
            "merge request",
        ),
    ],
)
def test_a_triggers_page_uses_the_word_of_its_forge(
    document: dict[str, Any], settings: TriggerSettings | None, word: str
) -> None:
    view = trigger_view(document, "p", now=NOW, settings=settings)
    assert view.request_word == word
    assert view.fires_on.startswith(f"{word} into a branch like main")


def test_the_next_runs_are_in_the_triggers_own_zone() -> None:
    cron = {"schedule": "30 2 * * *", "timeZone": "Europe/Berlin"}
    runs = trigger_view({"cron": cron}, "p", now=NOW, runs=2).next_runs
    assert [run.at for run in runs] == ["2026-01-01T01:30:00Z", "2026-01-02T01:30:00Z"]
    assert runs[0].local == "Thu 01 Jan 2026, 02:30 CET"


@pytest.mark.parametrize(
    "cron", [{"schedule": "nonsense"}, {"schedule": "0 3 * * *", "timeZone": "x"}]
)
def test_a_schedule_that_is_none_breaks_no_page(cron: dict[str, str]) -> None:
    assert trigger_view({"cron": cron}, "p", now=NOW).next_runs == ()


def test_conditions_are_told() -> None:
    document = {"includedFiles": ["src/**"], "ignoredFiles": ["*.md"], "filter": "_A == '1'"}
    assert len(trigger_view(document, "p", now=NOW).conditions) == 3
