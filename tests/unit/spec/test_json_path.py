"""Paths into parsed JSON, by what RFC 9535 says of each selector."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.spec.substitutions.expressions import BadExpression
from buildrunner.spec.substitutions.payload import NOTHING, find

VALUE = {
    "commits": [
        {"id": "a", "author": {"name": "A"}, "files": ["1", "2"]},
        {"id": "b", "author": {"name": "B"}, "files": []},
        {"id": "c"},
    ],
    "o": {"x": 1, "y": {"id": "d"}},
    "*": "star",
    "n": None,
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", VALUE),
        (".commits[0].id", "a"),
        (".commits[-1].id", "c"),
        (".n", None),
        (".o.x", 1),
        (".commits[*].id", ["a", "b", "c"]),
        (".commits.*.id", ["a", "b", "c"]),
        (".commits[*].author.name", ["A", "B"]),
        (".commits[*].files[*]", ["1", "2"]),
        (".commits[*].files", [["1", "2"], []]),
        (".commits[1:].id", ["b", "c"]),
        (".commits[:2].id", ["a", "b"]),
        (".commits[-2:-1].id", ["b"]),
        (".commits[::2].id", ["a", "c"]),
        (".commits[::-1].id", ["c", "b", "a"]),
        (".commits[ 0 , 2 ].id", ["a", "c"]),
        (".o['x','y']", [1, {"id": "d"}]),
        (".o.*", [1, {"id": "d"}]),
        ("..id", ["a", "b", "c", "d"]),
        (".o..id", ["d"]),
        ("..files[0]", ["1"]),
        ("..['name']", ["A", "B"]),
        (".commits..*[0]", ["1"]),
        ("['*']", "star"),
        ('["o"].y["id"]', "d"),
    ],
)
def test_what_a_path_leads_to(path, expected):
    assert find(VALUE, path) == expected


@pytest.mark.parametrize(
    "path",
    [
        ".none",
        ".none[*]",
        ".commits.id",
        ".commits[3]",
        ".commits[-4]",
        ".o[0]",
        ".o.x.y",
        ".commits[::0]",
        ".commits[?@.id]",
        ".commits[x]",
        ".commits['id",
        ".commits[0",
        "[]",
        "..",
        ".",
    ],
)
def test_what_leads_nowhere(path):
    assert find(VALUE, path) is NOTHING


def test_a_path_that_grows_without_end_is_given_up():
    deep: object = "x"
    for _ in range(150):
        deep = [deep, deep] if isinstance(deep, str) else [deep]
    with pytest.raises(BadExpression, match="too much work"):
        find([deep] * 50, "..*..*..*")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=12,
)


@given(JSON, st.text(alphabet=".*[]'\"ab0-:, ?@()", max_size=20))
def test_any_text_leads_somewhere_or_nowhere(value, path):
    found = find(value, path)
    assert found is NOTHING or find(value, path) == found


@given(JSON)
def test_what_is_below_has_every_place_once(value):
    def places(one):
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        return [place for each in inner for place in (each, *places(each))]

    found = find(value, "..*")
    assert len(places(value)) == (0 if found is NOTHING else len(found))
