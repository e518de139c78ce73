from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from buildrunner.errors import ConfigError
from buildrunner.triggers.schedule import Missed, Overlap, Schedule
from buildrunner.triggers.settings import OnLost, TriggerSettings, read_settings


def test_nothing_set_is_cloud_builds_own_behaviour() -> None:
    settings = read_settings({})
    assert settings == TriggerSettings()
    assert settings.schedule({"schedule": "0 3 * * *"}) == Schedule(cron="0 3 * * *")
    assert settings.approval_expires is None


def test_everything_can_be_set() -> None:
    settings = read_settings(
        {
            "jitter": "300s",
            "missed": "once",
            "overlap": "cancel",
            "concurrency": {"group": "deploy", "limit": 1, "policy": "cancel_queued"},
            "approval": {"approvers": ["alice"], "notAuthor": True, "expires": "86400s"},
            "identity": {"audiences": ["sts.amazonaws.com", "https://a"], "forks": True},
            "onLost": "rerun",
            "publicBadge": True,
        }
    )
    schedule = settings.schedule({"schedule": "0 3 * * *", "timeZone": "Europe/Berlin"})
    assert schedule == Schedule(
        cron="0 3 * * *",
        time_zone="Europe/Berlin",
        jitter_s=300,
        missed=Missed.ONCE,
        overlap=Overlap.CANCEL,
    )
    assert settings.approval_expires == timedelta(days=1)
    assert settings.approval.approvers == ("alice",)
    assert settings.identity.audiences == ("sts.amazonaws.com", "https://a")
    assert settings.identity.forks
    assert settings.on_lost is OnLost.RERUN


@pytest.mark.parametrize(
    ("document", "path", "said"),
    [
        ({"missed": "later"}, "missed", "invalid enum value 'later'"),
        ({"jitters": "1s"}, "", "unknown field `jitters`"),
        ({"concurrency": {"limits": 1}}, "concurrency", "unknown field `limits`"),
        ({"concurrency": {"limit": "1"}}, "concurrency.limit", "expected `int`, got `str`"),
        ({"concurrency": {"limit": -1}}, "concurrency.limit", "from 0 to 1000"),
        ({"concurrency": {"group": "a b"}}, "concurrency.group", "no name for a group"),
        ({"concurrency": {"policy": "x"}}, "concurrency.policy", "invalid enum value 'x'"),
        ({"jitter": "5m"}, "jitter", "'5m' is no duration in seconds"),
        ({"jitter": "3601s"}, "jitter", "longer than 3600s"),
        ({"approval": {"expires": "1d"}}, "approval.expires", "no duration"),
        ({"approval": {"approvers": "alice"}}, "approval.approvers", "expected `array`"),
        ({"identity": {"audiences": "a"}}, "identity.audiences", "expected `array`"),
        ({"identity": {"audiences": ["a", "b c"]}}, "identity.audiences", "'b c' is no audience"),
        ({"identity": {"fork": True}}, "identity", "unknown field `fork`"),
        ([], "", "expected `object`, got `array`"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(document: Any, path: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings(document)
    (problem,) = refused.value.problems
    assert problem.path == path
    assert said in problem.message


def test_settings_are_not_as_large_as_a_body_may_be() -> None:
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        read_settings({"approval": {"approvers": ["somebody"] * 10_000}})
