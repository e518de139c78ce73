from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.triggers.file_filter import check_pattern, file_rule, matches


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a", "a", True), ("a", "b/a", False), ("*", "a", True), ("*", "a/b", False),
        ("**", "a/b/c", True), ("**/a", "a", True), ("**/a", "x/y/a", True), ("**/a", "xa", False),
        ("a/**", "a/b", True), ("a/**", "a", False), ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True), ("a**b", "a/x/b", True), ("*.md", "README.md", True),
        ("*.md", ".md", True), ("?", "a", True), ("?", "/", False), ("[a-c]", "b", True),
        ("[a-c]", "d", False), ("[^a-c]", "d", True), ("[^a-c]", "a", False), ("[^a]", "/", False),
        (r"\*", "*", True), (r"\*", "a", False), (r"[\]]", "]", True), (r"[\-x]", "-", True),
        ("a.b", "axb", False), ("(a)", "(a)", True), ("a+", "aa", False), ("ä/*", "ä/ö", True),
        ("[z-a]", "m", False), (".github/**", ".github/workflows/x", True), ("a\nb", "a\nb", True),
    ],
)  # fmt: skip
def test_patterns_are_those_of_go_with_two_stars(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@pytest.mark.parametrize("pattern", ["[a", "[", "[^", "a\\", "[a-", "[]", "[-a]"])
def test_a_broken_pattern_is_named(pattern: str) -> None:
    assert check_pattern(pattern)


def test_a_sound_pattern_is_not_complained_about() -> None:
    assert check_pattern("src/**/[a-z]*.{c,h}") == ""


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_pattern_breaks_it(pattern: str, path: str) -> None:
    if not check_pattern(pattern):
        assert isinstance(matches(pattern, path), bool)


@given(st.text(alphabet=st.characters(exclude_characters="*?[\\", codec="utf-8"), max_size=20))
def test_a_name_matches_itself(path: str) -> None:
    assert matches(path, path)


def test_the_reason_names_some_files() -> None:
    files = [f"src/{n}" for n in range(5)]
    rule = file_rule(files, included=["src/*"], ignored=[])
    assert rule.text == "changed, and in includedFiles: src/0, src/1, src/2 and 2 more"


def test_files_that_take_long_to_look_at_count_as_matching() -> None:
    rule = file_rule(["a"], included=["b"], ignored=[], longest_s=-1)
    assert rule.passed
    assert "count as matching" in rule.text


@given(st.lists(st.sampled_from(["a/*", "**/b", "[^/]", "*.md", "a|b", "?"])), st.text(max_size=9))
def test_patterns_together_match_what_one_of_them_does(patterns: list[str], path: str) -> None:
    rule = file_rule([path], included=[], ignored=patterns)
    if patterns:
        assert rule.passed is not any(matches(pattern, path) for pattern in patterns)
