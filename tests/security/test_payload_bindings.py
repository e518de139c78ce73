"""Payload bindings: the work and the values of what a trigger takes from a payload are bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from buildrunner.build_run.compile import with_overrides
from buildrunner.build_run.request import BuildRequest
from buildrunner.errors import ConfigError
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.substitutions.expressions import BadExpression
from buildrunner.spec.substitutions.payload import bind
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.triggers import matching
from buildrunner.triggers.build import unsourced_run, webhook_run
from buildrunner.triggers.matching import payload_rule
from tests.api_server import api_server, now
from tests.security.test_expressions import counted
from tests.security.test_large_builds import peak_bytes
from tests.unit.triggers.test_forges import github_push

REASON = "payload bindings of the build take too much work together"
TOO_LONG = "substitutions._A0: the value grows beyond 32768 characters"
LARGE = {"a": list(range(20_000))}
MOST_CALLS = 5_000_000
MOST_BYTES = 16 << 20


def times(text: str) -> dict[str, str]:
    """As many variables as a trigger may have."""
    return {f"_A{number}": text.replace("N", str(number)) for number in range(200)}


ATTACKS: dict[str, tuple[dict[str, str], Any]] = {
    "all places, many times": (times("a$(body..*)[0:1]" * 200), {"a": list(range(2000))}),
    "no place, many times": (times("$(body..xN)" * 300), LARGE),
    "many selectors": (times(f"$(body..[{','.join('0' * 99)}])" * 10), LARGE),
    "many matches": (times(f"$(body..[{','.join('*' * 99)}])" * 10), LARGE),
    "many slices": (times(f"$(body.a[{','.join(':' * 99)}])" * 10), LARGE),
    "small values": (times("$(body.a)" * 400), {"a": "y"}),
    "text for expressions": (times("${_X:-$(body.a)}"), {"a": "$" * 30_000}),
    "no bindings": (times("$(" + "}$" * 1900), {}),
}
LONG = {
    "a long text": "x" * 10_000_000,
    "a long name": {"x" * 10_000_000: 1},
    "many values": list(range(1_000_000)),
    "many texts": ["x" * 1000] * 10_000,
}


@pytest.mark.parametrize(("values", "body"), ATTACKS.values(), ids=ATTACKS)
def test_bindings_that_take_too_much_work_are_refused(values: dict[str, str], body: Any) -> None:
    with counted(MOST_CALLS), pytest.raises(BadExpression) as refused:
        bind(values, {"body": body})
    assert REASON in str(refused.value) or "grows beyond" in str(refused.value)


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
@pytest.mark.parametrize("text", ["$(body)" * 500, "${_X:-$(body)}"])
def test_a_value_grows_no_larger_than_a_substitution_may_be(body: Any, text: str) -> None:
    def attack() -> None:
        with pytest.raises(BadExpression, match="grows beyond 32768"):
            bind(times(text), {"body": body})

    assert peak_bytes(attack) < MOST_BYTES


def test_the_limit_of_a_value_is_that_of_all_its_bindings() -> None:
    half = "x" * 16_384
    assert len(bind({"_A": "$(body)$(body)"}, {"body": half}).values["_A"]) == 32_768
    with pytest.raises(BadExpression, match="grows beyond"):
        bind({"_A": "$(body)$(body)$(body.x)$(body)"}, {"body": half})


def test_a_filter_of_such_values_does_not_fire_and_says_why() -> None:
    rule = payload_rule("_A0 != ''", times("$(body)"), {"body": "x" * 40_000})
    assert rule.passed is False
    assert TOO_LONG in rule.text


def test_a_build_of_such_values_fails_and_says_why() -> None:
    template = {"steps": [{"name": "busybox"}], "substitutions": times("$(body)")}
    document = {"id": "t", "name": "t", "build": template}
    trigger = decode_message(BuildTrigger, document).value
    with pytest.raises(ConfigError, match=TOO_LONG):
        webhook_run(trigger, "x" * 40_000)
    failed = unsourced_run(trigger, {}, {"body": "x" * 40_000})
    assert failed.request["substitutions"] == times("$(body)")


def test_values_for_a_filter_are_not_made_in_the_process_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_here(*_: object) -> Any:
        raise AssertionError("a binding is filled in by the thread that handles all deliveries")

    monkeypatch.setattr(matching, "filter_values", made_here)
    with api_server(tmp_path) as server:
        server.hook("github", "s3cret", owners=["acme"])
        for name, ref in (("main", "refs/heads/main"), ("other", "refs/heads/other")):
            trigger = {
                "name": name,
                "filter": f"_REF == '{ref}'",
                "substitutions": {"_REF": "$(body.ref)"},
                "build": {"steps": [{"name": "busybox"}]},
                "github": {"owner": "acme", "name": "app", "push": {"branch": "main"}},
            }
            made = server.http.post("/v1/projects/p/triggers", json=trigger)
            assert made.status_code == 200, made.text
        new = NewDelivery(
            hook="github",
            delivery_id="1",
            headers={"x-github-event": "push"},
            body=json.dumps(github_push()).encode(),
        )
        server.store.deliveries.add([new], now=now())
        (claimed,) = server.store.deliveries.claim(now=now(), lease_s=60, limit=1)
        outcome = DeliveryHandler(server.context).handle(claimed)
    fires = {one["trigger"]: one["fires"] for one in outcome["events"][0]["verdicts"]}
    assert fires == {"main": True, "other": False}


def test_a_config_of_such_values_is_refused() -> None:
    build = Build(substitutions=times("$(body)"))
    request = BuildRequest(build=build, event=lambda: {"body": "x" * 40_000})
    with pytest.raises(ConfigError, match=TOO_LONG):
        with_overrides(build, request)
