"""Bash-style expressions in substitutions: a small request takes a bounded amount of work.

Work is counted in calls of Python functions, which do not depend on the speed of the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from buildrunner.errors import ConfigError
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.substitutions.expressions import BadExpression
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.spec.validation.check import check_build
from buildrunner.triggers.build import filter_values
from tests.api_server import api_server

# A budget's worth of steps takes about 300,000 calls. The attacks take many millions without it.
MOST_CALLS = 1_000_000
REASON = "of the build take too much work together"

DIFFERENT = "".join(chr(code) for code in range(0x800, 0x800 + 20_000))


class TooManyCalls(Exception):
    """The code under test did too many calls."""


@contextmanager
def counted(most: int = MOST_CALLS) -> Iterator[None]:
    calls = 0

    def note(_: FrameType, event: str, __: Any) -> None:
        nonlocal calls
        if event == "call":
            calls += 1
            if calls > most:
                sys.setprofile(None)
                raise TooManyCalls

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def build(expression: str, times: int = 1, **values: str) -> dict[str, Any]:
    return {
        "steps": [{"name": "busybox", "args": ["$_X", *[expression] * times]}],
        "substitutions": {**values, "_X": expression},
        "options": {"dynamicSubstitutions": True, "substitutionOption": "ALLOW_LOOSE"},
    }


def long(text: str) -> dict[str, str]:
    """Values of at most 1,300 characters; ``$_L`` of another is all of them."""
    size = 1300
    parts = {f"_L{at}": text[at : at + size] for at in range(0, len(text), size)}
    return {**parts, "_L": "".join(f"${name}" for name in parts)}


ATTACKS = {
    "different characters, a long pattern": build(
        "${_L//$_P/x}", 60, **long(DIFFERENT[:1300]), _P="a?" * 2000
    ),
    "different characters, many sets": build(
        "${_L//$_P/x}", 60, **long(DIFFERENT), _P="".join(f"[{c}]" for c in DIFFERENT[:800])
    ),
    "different characters, one large set": build(
        "${_L//$_P/x}", 60, **long(DIFFERENT), _P=f"[{DIFFERENT[:1300]}]"
    ),
    "a long value, many times": build("${_L//[b-c]/x}", 200, **long("a" * 20_000)),
    "many stars": build("${_L//$_P/x}", 200, **long("a" * 20_000), _P="*a" * 500),
    "one expression, very many times": build("${_A:-b}" * 1200, 90, _A="a"),
    "nested": build("${_A/${_L/[b]/}/}" * 200, 1, _A="a", **long("a" * 20_000)),
    "case": build("${_L^^[b-c]}", 300, **long(DIFFERENT)),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_build_whose_expressions_take_too_much_work_is_refused_at_once(
    attack: dict[str, Any],
) -> None:
    requested = decode_message(Build, attack).value
    with counted():
        check_build(requested, built_ins=None, triggered=False)
    with counted():
        problems = check_build(requested, built_ins=BuiltIns(), triggered=False)
    assert any(REASON in one.message for one in problems)
    with counted(), pytest.raises(ConfigError, match=REASON):
        resolve(requested, context=PlanContext(built_ins=BuiltIns()))


def test_the_server_answers_such_a_request_with_the_reason(tmp_path: Path) -> None:
    attack = ATTACKS["different characters, a long pattern"]
    with api_server(tmp_path) as server:
        answer = server.http.post("/v1/projects/p/builds", json=attack, timeout=600)
        assert answer.status_code == 400
        assert REASON in answer.json()["error"]["message"]


def test_values_for_a_filter_take_bounded_work() -> None:
    values = ATTACKS["many stars"]["substitutions"]
    uses = {f"_U{number}": "${_L//$_P/x}" for number in range(100)}
    with counted(), pytest.raises(BadExpression, match=REASON):
        filter_values({**values, **uses}, {})


def test_a_large_config_is_far_from_the_limit() -> None:
    names = [f"_V{number}" for number in range(100)]
    values = dict.fromkeys(names, f"${{BRANCH_NAME//[\\/_]/-}}-{'x' * 60}")
    steps = [
        {"name": "busybox", "args": [f"${{{name}##*-}}", f"${{{name}^^}}", f"${{{name}:0:9}}"]}
        for name in names
    ]
    large = {"steps": steps, "substitutions": values, "options": {"dynamicSubstitutions": True}}
    requested = decode_message(Build, large).value
    built_ins = BuiltIns(branch="feature/" + "a_long_name_of_a_branch" * 4)
    assert check_build(requested, built_ins=built_ins, triggered=False) == []
    assert resolve(requested, context=PlanContext(built_ins=built_ins))
