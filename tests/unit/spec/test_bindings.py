"""Payload bindings: paths into an event, whose data stays data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.spec.substitutions.payload import bind
from buildrunner.spec.substitutions.templates import expand
from buildrunner.spec.substitutions.variables import is_user_variable

EVENT = {
    "body": {
        "ref": "refs/heads/main",
        "n": 3,
        "on": True,
        "nothing": None,
        "list": [{"a": 1}, {"a": 2}],
        "with space": "s",
        "dotted.key": "d",
        "ä": "umlaut",
    },
    "push": {"head_commit": {"message": "fix: x"}},
}


def bound(template):
    return expand(bind({"_X": template}, EVENT).values, {}, is_template=is_user_variable)["_X"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("$(body.ref)", "refs/heads/main"),
        ("$(body.n)-$(body.on)", "3-true"),
        ("[$(body.nothing)]", "[]"),
        ("$(body.list[0].a)$(body.list[-1].a)", "12"),
        ("$(body.list)", '[{"a":1},{"a":2}]'),
        ("$(body.list[*])", '[{"a":1},{"a":2}]'),
        ("$(body.list[*].a)", "[1,2]"),
        ("$(body.list[-1:].a)", "[2]"),
        ("$(body..a)", "[1,2]"),
        ("$(body['ref','n'])", '["refs/heads/main",3]'),
        ("${_X2:-$(body.list[*].a)}", "[1,2]"),
        ("$(body['with space'])", "s"),
        ('$(body["dotted.key"])', "d"),
        ("$(body.ä)", "umlaut"),
        ("$(push.head_commit.message)/x", "fix: x/x"),
        ("$(pull_request.title)", "$(pull_request.title)"),
        ("$(date) $(body", "$(date) $(body"),
        ("$$(body.ref)", "$(body.ref)"),
        ("${_X2:-$(body.ref)}", "refs/heads/main"),
        ("${_X2:-${_X3:-$(body.n)}}", "3"),
    ],
)
def test_a_binding_is_filled_from_the_event(template, expected):
    assert bound(template) == expected


@pytest.mark.parametrize(
    "path", ["none", "ref.x", "list[9]", "list[-3]", "n[0]", "list.a", "list[x]", "ref[*]", "['x']"]
)
def test_a_path_that_leads_nowhere_is_empty_and_told(path):
    template = f"$(body{'' if path.startswith('[') else '.'}{path})"
    found = bind({"_X": f"[{template}]"}, EVENT)
    if found.missing:
        assert (found.values, found.missing) == ({"_X": "[]"}, (template,))
    else:
        assert found.values == {"_X": f"[{template}]"}  # no path at all


def test_the_whole_body_is_compact_json():
    assert bound("$(body)").startswith('{"ref":"refs/heads/main","n":3,"on":true,')


@given(st.text(alphabet="${}()_AB:-/\\#%*?[]!^,body. x", max_size=30))
def test_data_is_never_looked_at_again(data):
    event = {"body": {"x": data}}
    for template, values in [
        ("$(body.x)", {}),
        ("${_U:-$(body.x)}", {}),
        ("${_U:-a${_V:-$(body.x)}b}", {}),
        ("${_W:+$(body.x)}", {"_W": "set"}),
    ]:
        found = bind({"_X": template, "_A": "secret", **values}, event)
        result = expand(found.values, {}, is_template=is_user_variable)["_X"]
        assert result == (f"a{data}b" if "_V" in template else data)
    # In a pattern, data matches itself and nothing else.
    found = bind({"_X": "${_T//$(body.x)/}", "_T": "${_S}", "_S": "$(body.x)"}, event)
    assert expand(found.values, {}, is_template=is_user_variable)["_X"] == ""
