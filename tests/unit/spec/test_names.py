"""Names of images and variables, and paths, as text."""

from __future__ import annotations

import pytest

from buildrunner.spec.lexical_path import clean_path, join_paths
from buildrunner.spec.substitutions.variables import (
    BUILT_IN,
    BuiltIns,
    is_user_variable,
    may_be_set,
    merged,
)
from buildrunner.spec.validation.references import ImageReference, parse_image_reference

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("busybox", ("busybox", "", "")),
        ("a/b:v1", ("a/b", "v1", "")),
        ("localhost:5000/a", ("localhost:5000/a", "", "")),
        ("host.example:5000/a/b:V_1.2-3", ("host.example:5000/a/b", "V_1.2-3", "")),
        ("Host/a", ("Host/a", "", "")),
        (f"a@{DIGEST}", ("a", "", DIGEST)),
        (f"a:t@{DIGEST}", ("a", "t", DIGEST)),
        ("a__b/c-d/e.f---g", ("a__b/c-d/e.f---g", "", "")),
        ("[::1]:5000/a", ("[::1]:5000/a", "", "")),
    ],
)
def test_an_image_reference_has_parts(text, expected):
    assert parse_image_reference(text) == ImageReference(*expected)


@pytest.mark.parametrize(
    "text",
    ["", "A", "a/B", "a:", "a@", "a@sha256:0", "a b", "-a", "a/", "/a", "a//b", "a:b:c", "a..b",
     "a___b", "https://a/b", "a\n", "a:" + "t" * 129, "ä", "a" * 256]
)  # fmt: skip
def test_what_is_no_image_reference(text):
    assert parse_image_reference(text) is None


@pytest.mark.parametrize(
    ("path", "clean"),
    [("", "."), ("/", "/"), ("//", "/"), ("a/../..", ".."), ("/a/../../b", "/b"), ("./a/./", "a")],
)
def test_a_clean_path(path, clean):
    assert clean_path(path) == clean
    assert join_paths("", path) == clean


def test_built_ins_come_from_the_source():
    values = BuiltIns(
        project_id="p",
        commit_sha="0123456789",
        branch="main",
        repo_full_name="owner/name",
        service_account_email="a@b",
        pull_request={"_PR_NUMBER": "7", "_OTHER": "x"},
    ).values()
    assert values.keys() == BUILT_IN | {"_PR_NUMBER"}
    assert values["SHORT_SHA"] == "0123456"
    assert values["REVISION_ID"] == "0123456789"
    assert values["REPO_NAME"] == "name"
    assert values["REF_NAME"] == "main"
    assert values["LOCATION"] == "global"
    assert values["SERVICE_ACCOUNT"] == "projects/p/serviceAccounts/a@b"
    assert BuiltIns(commit_sha="abc", tag="v1").values()["SHORT_SHA"] == "abc"
    assert BuiltIns(tag="v1").values()["REF_NAME"] == "v1"
    assert set(BuiltIns().values().values()) == {"", "global"}


def test_who_may_be_set():
    assert is_user_variable("_A1")
    assert not is_user_variable("_")
    assert not is_user_variable("_Ä")
    assert may_be_set("TAG_NAME")
    assert not may_be_set("PROJECT_ID")
    assert merged({"_A": "1", "_B": "1"}, {"_A": "2"}) == {"_A": "2", "_B": "1"}
