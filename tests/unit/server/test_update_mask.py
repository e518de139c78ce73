"""Masks: what they name is changed, everything else stays."""

import pytest

from buildrunner.errors import ConfigError
from buildrunner.server.services.triggers import updated

STORED = {
    "id": "1",
    "resourceName": "projects/p/locations/global/triggers/1",
    "createTime": "2024-05-31T12:00:00Z",
    "name": "t",
    "description": "old",
    "github": {"owner": "o", "push": {"branch": "a", "invertRegex": True}},
    "substitutions": {"_A": "1", "_B": "2"},
}


@pytest.mark.parametrize(
    ("mask", "given", "changes"),
    [
        ("description", {"description": "new"}, {"description": "new"}),
        ("description", {}, {"description": None}),
        ("description,disabled", {"disabled": True}, {"description": None, "disabled": True}),
        (" included_files ", {"includedFiles": ["x"]}, {"includedFiles": ["x"]}),
        ("includedFiles", {"includedFiles": ["x"]}, {"includedFiles": ["x"]}),
        (
            "github.push.branch",
            {"github": {"push": {"branch": "b"}}},
            {"github": {"owner": "o", "push": {"branch": "b", "invertRegex": True}}},
        ),
        ("github.push", {}, {"github": {"owner": "o"}}),
        (
            "substitutions._A",
            {"substitutions": {"_A": "9"}},
            {"substitutions": {"_A": "9", "_B": "2"}},
        ),
        ("substitutions", {"substitutions": {"_C": "3"}}, {"substitutions": {"_C": "3"}}),
        ("description", {"description": "new", "disabled": True}, {"description": "new"}),
        (
            "approval_config.approval_required",
            {"approvalConfig": {"approvalRequired": True}},
            {"approvalConfig": {"approvalRequired": True}},
        ),
    ],
)
def test_only_the_named_fields_change(mask, given, changes):
    expected = {**STORED, **changes}
    assert updated(STORED, given, mask) == {k: v for k, v in expected.items() if v is not None}


def test_without_a_mask_everything_that_callers_set_is_replaced():
    assert updated(STORED, {"description": "new"}, "") == {
        "id": "1",
        "resourceName": "projects/p/locations/global/triggers/1",
        "createTime": "2024-05-31T12:00:00Z",
        "name": "t",
        "description": "new",
    }


@pytest.mark.parametrize(
    "mask",
    ["nothing", "id", "create_time", "github.nothing", "description.x", "github.push.branch.x"],
)
def test_what_can_not_be_changed_is_refused(mask):
    with pytest.raises(ConfigError, match="updateMask"):
        updated(STORED, {}, mask)
