from __future__ import annotations

import pytest

from buildrunner.triggers.cel import (
    MAX_LENGTH,
    check_filter,
    filter_rule,
    values_answer,
)

BODY = {"message": {"data": {"tags": ["latest", "x"], "status": "SUCCESS"}}, "n": 3, "none": None}


@pytest.mark.parametrize(
    ("text", "values", "passed"),
    [
        ("", {}, None),
        ('_ACTION == "INSERT"', {"_ACTION": "INSERT"}, True),
        ('_ACTION == "INSERT"', {"_ACTION": "DELETE"}, False),
        ('_NAME.matches("^rel-[0-9]+$")', {"_NAME": "rel-12"}, True),
        ('_X.contains("y")', {"_X": "xyz"}, True),
        ("size(_R) > 0", {"_R": ""}, False),
        ('"latest" in body.message.data.tags && body.message.data.status == "SUCCESS"', {}, True),
        ("body.n == 3 || body.nosuch == 1", {}, True),
        ('!(_A == "x")', {"_A": "y"}, True),
        ("body.none == null", {}, True),
        ("body.nosuch == 1", {}, False),
        ("_UNKNOWN == 1", {}, False),
        ("body.n", {}, False),
    ],
)
def test_a_filter_is_true_or_it_does_not_fire(
    text: str, values: dict[str, str], passed: bool | None
) -> None:
    rule = filter_rule(text, values, BODY)
    assert rule.passed is passed
    assert rule.text
    assert "activation" not in rule.text


def test_a_pattern_made_to_take_for_ever_does_not() -> None:
    text = '_A.matches("(a+)+$")'
    assert filter_rule(text, {"_A": "a" * 200 + "b"}, None).passed is False


@pytest.mark.parametrize("text", ["body.tags[", "a &&", "1 ==", '"open', "(" * 3000])
def test_a_filter_that_is_none_is_told_when_the_trigger_is_made(text: str) -> None:
    assert check_filter(text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('"yes"', "the filter gives 'yes', which is neither true nor false"),
        ("_A", "the filter gives '$(body.x)', which is neither true nor false"),
        ('_A == "x"', ""),
        ("body", ""),  # who knows what it will be
        ("_NONE", ""),
    ],
)
def test_a_filter_that_gives_no_answer_is_told_when_the_trigger_is_made(
    text: str, wrong: str
) -> None:
    assert values_answer(text, {"_A": "$(body.x)"}) == wrong


def test_a_filter_may_not_be_endless() -> None:
    assert "longer" in check_filter("x" * (MAX_LENGTH + 1))


def test_a_place_is_named() -> None:
    assert "line 1, column" in check_filter("body.tags[ == 1")


@pytest.mark.parametrize(
    "text",
    [
        "body.all(a, body.all(b, body.all(c, a + b + c >= 0)))",
        "body.exists(a, body.exists(b, body.exists(c, a + b + c < 0)))",
        "body.map(a, body.map(b, body.map(c, a + b + c)))[0][0][0] == 0",
    ],
)
def test_an_expression_that_takes_for_ever_is_given_up(text):
    rule = filter_rule(text, {}, list(range(1000)), longest_s=0.2)
    assert rule.passed is False
    assert (
        rule.text
        == "the filter can't be evaluated for this event: it takes longer than 0.2 seconds"
    )


def test_a_body_that_nobody_looks_at_is_not_looked_at():
    assert filter_rule('_A == "1"', {"_A": "1"}, object(), longest_s=5).passed


def test_a_large_body_is_given_up_too():
    assert "takes longer" in filter_rule("body.size() > 0", {}, [[]] * 1000, longest_s=-1).text


def test_regular_expressions_can_not_explode():
    rule = filter_rule('body.text.matches("^(a+)+$")', {}, {"text": "a" * 100_000 + "b"})
    assert rule.text == 'the filter is false: body.text.matches("^(a+)+$")'
