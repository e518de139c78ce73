"""The settings of a pool: what is refused, and how tolerations are written."""

from __future__ import annotations

import pytest

from buildrunner.kubernetes.pool import Pool, parse_toleration, pool_problems

NEEDED = {
    "name": "ci",
    "server": "http://buildrunner:8080",
    "worker_image": "buildrunner/worker",
    "engine_image": "buildrunner/engine",
}


@pytest.mark.parametrize(
    ("text", "toleration"),
    [
        ("builds", {"key": "builds", "operator": "Exists"}),
        ("builds:NoSchedule", {"key": "builds", "operator": "Exists", "effect": "NoSchedule"}),
        ("team=web", {"key": "team", "operator": "Equal", "value": "web"}),
        (
            "example.com/team=web:NoExecute",
            {
                "key": "example.com/team",
                "operator": "Equal",
                "value": "web",
                "effect": "NoExecute",
            },
        ),
        ("spot=", {"key": "spot", "operator": "Equal", "value": ""}),
    ],
)
def test_a_toleration_is_written_as_kubectl_writes_taints(text, toleration):
    assert parse_toleration(text) == toleration


@pytest.mark.parametrize("text", ["", ":NoSchedule", "=web", "team=web:Never", "a:b:c"])
def test_another_form_of_toleration_is_none(text):
    assert parse_toleration(text) is None


def test_a_pool_needs_a_server_and_two_images():
    assert list(pool_problems(Pool(**NEEDED))) == []


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("name", "CI", "small letters, digits and hyphens"),
        ("name", "a" * 64, "at most 63 characters"),
        ("server", "buildrunner:8080", "needs the URL"),
        ("worker_image", "", "needs the name of an image"),
        ("engine_image", "", "needs the name of an image"),
        ("isolation", "none", "is one of user-namespace, capabilities, privileged"),
        ("pull_policy", "Sometimes", "is one of IfNotPresent, Always, Never"),
        ("max_builds", 0, "is a number from 1 to 10000"),
        ("spare", -1, "is a number from 0 to 1000"),
        ("spare", 11, "is at most max_builds, which is 10"),
        ("cpu_request_percent", 0, "from 1 to 100"),
        ("cpu_request_percent", 101, "from 1 to 100"),
        ("cpu", "", "is a quantity, such as 500m or 4Gi"),
        ("cpu", "two", "is a quantity"),
        ("memory", "4 GB", "is a quantity"),
        ("disk", "-1Gi", "is a quantity"),
        ("tolerations", ("a:b",), "'a:b' has another form than KEY, KEY=VALUE"),
    ],
)
def test_a_value_that_no_cluster_accepts_is_a_problem(setting, value, message):
    ((found, text),) = pool_problems(Pool(**{**NEEDED, setting: value}))
    assert found == setting
    assert message in text
