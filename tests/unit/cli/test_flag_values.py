"""Flag values in gcloud's forms."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.cli.arguments import parse_duration, parse_map
from buildrunner.errors import UsageError


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["_A=x"], {"_A": "x"}),
        (["_A=x,_B=y"], {"_A": "x", "_B": "y"}),
        (["_A=x", "_B=y", "_A=z"], {"_A": "z", "_B": "y"}),
        (["_A=a=b"], {"_A": "a=b"}),
        (["_A="], {"_A": ""}),
        (["^:^_A=a,b:_B=c"], {"_A": "a,b", "_B": "c"}),
        (["^##^_A=a,b##_B=c#d"], {"_A": "a,b", "_B": "c#d"}),
        (["_A=x,"], {"_A": "x"}),
        (["^:^_A=x,:"], {"_A": "x,"}),
    ],
)
def test_maps(texts, expected):
    assert parse_map("--substitutions", texts) == expected


@pytest.mark.parametrize("text", ["_A", "=x", "_A=x,,", "_A=x,,_B=y", "^:", "^^_A=x"])
def test_what_is_no_map_is_refused(text):
    with pytest.raises(UsageError, match="--substitutions"):
        parse_map("--substitutions", [text])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600", 600), ("600s", 600), ("10m", 600), ("2h15m5s", 8105), ("1d", 86400), ("1m30", 90)],
)
def test_durations(text, seconds):
    assert parse_duration("--timeout", text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5", "10x", "m", "1.5h", "ten", "5 m", "²s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError, match="--timeout takes a duration"):
        parse_duration("--timeout", text)


@given(st.text())
def test_any_text_is_a_duration_or_refused(text):
    seconds = 1
    with suppress(UsageError):
        seconds = parse_duration("--timeout", text)
    assert seconds > 0


@given(
    st.dictionaries(
        st.from_regex(r"_[A-Z]{1,5}", fullmatch=True), st.text().filter(lambda v: "," not in v)
    )
)
def test_maps_round_trip(values):
    text = ",".join(f"{key}={value}" for key, value in values.items())
    if not text.startswith("^"):
        assert parse_map("--substitutions", [text]) == values
