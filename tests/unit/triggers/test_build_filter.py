from __future__ import annotations

from typing import Any

import pytest

from buildrunner.triggers.build_filter import build_rule, check_filter

BUILD = {
    "id": "1",
    "status": "FAILURE",
    "tags": ["prod"],
    "substitutions": {"_X": "y"},
    "createTime": "2026-05-01T12:00:00.123456Z",
    "steps": [{"name": "a"}, {"name": "b", "id": "x"}],
    "timeout": "600s",
    "failureInfo": {"detail": "bad"},
    "unknownToUs": 1,
}
OTHERS: dict[str, Any] = {"change": "broken", "previous": {"status": "SUCCESS"}, "trigger": "t"}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("", None),
        ('build.status == Build.Status.FAILURE && "prod" in build.tags', True),
        ("build.status in [Build.Status.TIMEOUT, Build.Status.INTERNAL_ERROR]", False),
        ('build.status == "FAILURE"', True),
        ("has(build.failure_info)", True),
        ("has(build.failure_info.detail)", True),
        ("has(build.failure_info.type)", False),
        ("has(build.results)", False),
        ("has(build.results.images)", False),
        ("has(build.tags) && !has(build.images)", True),
        ("build.results.images.size() == 0", True),
        ('build.results.build_step_outputs.size() == 0 && build.source.git_source.url == ""', True),
        ("build.steps.exists(s, has(s.id))", True),
        ("build.steps.all(s, has(s.id))", False),
        ('build.build_trigger_id == "" && build.buildTriggerId == ""', True),
        ('build.create_time > timestamp("2025-01-01T00:00:00Z")', True),
        ('build.finish_time == timestamp("1970-01-01T00:00:00Z")', True),
        ('build.timeout > duration("60s")', True),
        ("build.options.disk_size_gb == 0 && !build.options.dynamic_substitutions", True),
        ('build.substitutions["_X"] == "y"', True),
        ('"_Z" in build.substitutions && build.substitutions["_Z"] == "y"', False),
        ('build.substitutions["_Z"] == "y"', False),  # can't be evaluated
        ('build.failure_info.detail.matches("^b")', True),
        ('change == "broken" && previous.status == Build.Status.SUCCESS', True),
        ("build.status", False),  # neither true nor false
    ],
)
def test_a_filter_sees_the_build_message(text: str, passed: bool | None) -> None:
    assert check_filter(text) == ""
    rule = build_rule(text, BUILD, OTHERS)
    assert rule.passed is passed, rule
    assert rule.text


def test_no_build_before_is_null() -> None:
    rule = build_rule("previous == null", BUILD, {**OTHERS, "previous": None})
    assert rule.passed is True


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("build.status ==", "no CEL expression"),
        ("build.statsu == 1", "Build has no field statsu; did you mean status?"),
        ("build.failure_info.reason == 1", "FailureInfo has no field reason"),
        ("build.status == Build.Status.FAILED", "there is no Build.Status.FAILED; there are"),
        ("x" * 5000, "longer than"),
    ],
)
def test_what_can_never_be_right_is_told_at_once(text: str, wrong: str) -> None:
    assert wrong in check_filter(text)


def test_words_in_quotes_are_no_fields() -> None:
    assert (
        check_filter("build.id != \"build.nosuch\" && build.substitutions._ANY == 'build.x'") == ""
    )


def test_a_filter_that_takes_too_long_is_given_up() -> None:
    many = {**BUILD, "steps": [{"name": "a"}] * 300}
    text = "build.steps.all(a, build.steps.all(b, build.steps.all(c, c.name == a.name)))"
    rule = build_rule(text, many, OTHERS, longest_s=0.05)
    assert rule.passed is False
    assert "it takes longer than 0.05 seconds" in rule.text
