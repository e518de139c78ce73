"""Ignore rules: the documented table, and what git and the real gcloud answer."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.errors import SourceError, UsageError
from buildrunner.sources.ignore_rules import IgnoreRules, load_ignore_rules, parse_rules

# What gcloud's documentation promises: (files of the folder, path, is it uploaded?)
TABLE = [
    ({}, ".env", True),
    ({".git/config": ""}, ".git/config", False),
    ({".gitignore": "*.log"}, "a/b.log", False),
    ({".gcloudignore": "", ".git/config": ""}, ".git/config", True),
    ({".gcloudignore": "*.log\n!keep.log"}, "keep.log", True),
    ({".gcloudignore": "build/\n!build/x"}, "build/x", False),
    ({".gcloudignore": "build/*\n!build/x"}, "build/x", True),
    ({".gcloudignore": "/a.txt"}, "sub/a.txt", True),
    ({".gcloudignore": "a.txt"}, "sub/a.txt", False),
    ({".gcloudignore": "sub/a.txt"}, "x/sub/a.txt", True),
    ({".gcloudignore": "**/a.txt"}, "x/sub/a.txt", False),
    ({".gcloudignore": "foo/"}, "foo", True),
    ({".gcloudignore": "\\#x"}, "#x", False),
    ({".gcloudignore": "#!include:.gitignore", ".gitignore": "dist"}, "dist/x", False),
    ({".gcloudignore": "", ".gitignore": "dist"}, "dist/x", True),
]


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")


def is_sent(rules: IgnoreRules, path: str) -> bool:
    """Whether a walk gets to the file ``path`` and keeps it."""
    names = path.split("/")
    for depth in range(1, len(names)):
        if rules.ignores("/".join(names[:depth]), is_directory=True):
            return False
    return not rules.ignores(path, is_directory=False)


def rules_of(*lines: str) -> IgnoreRules:
    return IgnoreRules(parse_rules("\n".join(lines), "/nowhere"))


@pytest.mark.parametrize(("files", "path", "sent"), TABLE)
def test_the_documented_table_holds(tmp_path, files, path, sent):
    write_tree(tmp_path, files)
    assert is_sent(load_ignore_rules(str(tmp_path)), path) is sent


@pytest.mark.parametrize(
    ("rule", "path", "ignored"),
    [
        ("*", "a", True),
        ("a b", "a b", True),
        ("a ", "a", True),
        ("a\\ ", "a ", True),
        ("a\\ ", "a", False),
        ("foo/ ", "foo/x", True),
        ("\\!x", "!x", True),
        ("x\\", "x\\", False),
        ("[ab]x", "bx", True),
        ("[!ab]x", "bx", False),
        ("[^ab]x", "cx", True),
        ("[a-c]x", "bx", True),
        ("[]]x", "]x", True),
        ("[[:digit:]]x", "7x", True),
        ("[ab", "[ab", False),
        ("a?b", "a/b", False),
        ("a*b", "a/b", False),
        ("*.py[co]", "deep/er/m.pyc", True),
        ("a/**", "a/b/c", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "a/xb", False),
        ("**/logs/**/x", "p/logs/q/r/x", True),
        ("a**b", "axxb", True),
        ("\\*", "x", False),
        ("\\*", "*", True),
        ("café", "café", True),
        ("caf?", "café", True),
    ],
)
def test_a_rule_means_what_gitignore_says(rule, path, ignored):
    assert is_sent(rules_of(rule), path) is not ignored


def test_directories_given_to_a_directory_rule_hide_what_is_below():
    rules = rules_of("node_modules/")
    assert rules.ignores("a/node_modules", is_directory=True)
    assert not is_sent(rules, "a/node_modules/left-pad/index.js")


def test_a_later_rule_by_name_beats_an_earlier_one_by_path_and_the_other_way_round():
    assert is_sent(rules_of("/a/x", "!x"), "a/x")
    assert not is_sent(rules_of("!x", "/a/x"), "a/x")


def test_a_folder_holding_dot_git_leaves_out_gcloudignore_itself_too(tmp_path):
    write_tree(tmp_path, {".git/config": "", "a": ""})
    rules = load_ignore_rules(str(tmp_path))
    assert rules.origin == "generated defaults"
    assert rules.ignores(".gcloudignore", is_directory=False)
    assert not rules.ignores("a", is_directory=False)


def test_ignore_file_beats_gcloudignore_and_is_relative_to_the_folder(tmp_path):
    write_tree(tmp_path, {".gcloudignore": "a", "ci/rules": "b"})
    rules = load_ignore_rules(str(tmp_path), ignore_file="ci/rules")
    assert not rules.ignores("a", is_directory=False)
    assert rules.ignores("b", is_directory=False)


def test_a_missing_ignore_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--ignore-file: there is no nope"):
        load_ignore_rules(str(tmp_path), ignore_file="nope")


def test_switched_off_rules_ignore_nothing(tmp_path):
    write_tree(tmp_path, {".gcloudignore": "a"})
    assert load_ignore_rules(str(tmp_path), enabled=False).empty


@pytest.mark.parametrize("name", ["../rules", "missing"])
def test_a_wrong_include_is_one_clear_sentence(tmp_path, name):
    write_tree(tmp_path, {".gcloudignore": f"#!include:{name}"})
    with pytest.raises(SourceError, match=f"#!include:{name}"):
        load_ignore_rules(str(tmp_path))


def test_an_include_inside_an_included_file_is_a_comment(tmp_path):
    write_tree(tmp_path, {".gcloudignore": "#!include:one", "one": "#!include:two\na", "two": "b"})
    rules = load_ignore_rules(str(tmp_path))
    assert rules.ignores("a", is_directory=False)
    assert not rules.ignores("b", is_directory=False)


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path):
    (tmp_path / ".gcloudignore").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    rules = load_ignore_rules(str(tmp_path))
    assert rules.ignores("a", is_directory=False)
    assert rules.ignores("b", is_directory=False)


def test_names_of_any_bytes_match_rules_of_the_same_bytes(tmp_path):
    (tmp_path / ".gcloudignore").write_bytes(b"caf\xe9*\n")
    rules = load_ignore_rules(str(tmp_path))
    assert rules.ignores(os.fsdecode(b"caf\xe9.txt"), is_directory=False)


def test_hostile_rules_and_names_come_to_an_end():
    rules = rules_of("*a" * 60 + "b", "**/" + "*x*/**/" * 30 + "z", "/".join(["*a*a*a*"] * 40))
    # A matcher that tries all ways takes longer than the universe has time.
    assert not rules.ignores("/".join(["a" * 200] * 20), is_directory=False)
    assert not rules.ignores("/".join(["x" * 200] * 20), is_directory=False)


# --- git as an oracle ----------------------------------------------------------------------------

NAMES = ["a", "b", "ab", "a.b", "foo", "#x", "!y", "a b", "-", "]", "*", "c"]
TREE = sorted(
    {f"{x}" for x in NAMES}
    | {f"d/{x}" for x in NAMES}
    | {f"d/e/{x}" for x in NAMES}
    | {f"foo.d/d/{x}" for x in NAMES}
)
PIECES = [
    *("a", "b", "foo", "d", "e", "*", "**", "?", "/", "/", "**/", "/**", "/**/", ".", " ", "\\"),
    *("[ab]", "[!a]", "[^b]", "[a-c]", "[", "]", "-", "#", "!", "\\*", "\\ ", "[[:alpha:]]", "[]]"),
]
RULES = st.lists(
    st.builds(
        lambda negated, pieces: ("!" if negated else "") + "".join(pieces),
        st.booleans(),
        st.lists(st.sampled_from(PIECES), max_size=6),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("oracle")
    write_tree(root, dict.fromkeys(TREE, ""))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "GIT_CONFIG_NOSYSTEM": "1",
        "XDG_CONFIG_HOME": str(root / ".none"),
    }
    subprocess.run(["git", "init", "-q", str(root)], check=True, env=environment)
    return root, environment


# git compares the text before the first wildcard on its own, which makes `a**/b` match `ab`.
GIT_IS_ODD = re.compile(r"[^/!]\*\*|^!?.+[^/]\*\*|\*\*[^/]|\*{3}")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=RULES)
def test_git_agrees_on_every_path(repository, lines):
    root, environment = repository
    lines = [line for line in lines if not GIT_IS_ODD.search(line)]
    (root / ".git" / "info" / "exclude").write_text("\n".join(lines) + "\n")
    answer = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin", "-z"],
        input="\0".join(TREE),
        capture_output=True,
        text=True,
        cwd=root,
        env=environment,
        check=False,
    )
    by_git = {path for path in answer.stdout.split("\0") if path}
    rules = rules_of(*lines)
    assert {path for path in TREE if not is_sent(rules, path)} == by_git


# --- what gcloud 528 answered, and answers where it is installed ----------------------------------

GCLOUD = shutil.which("gcloud")
SAMPLE = [
    *("a", "b.log", "keep.log", "build/x", "build/y/z", "sub/a", "sub/b.log", "dist/x/y"),
    *(".env", ".hidden/x", "#x", "!y", "with space", "foo"),
]


@pytest.mark.parametrize(
    ("files", "left_out"),
    [
        ({}, set()),
        ({".gcloudignore": ""}, set()),
        ({".gcloudignore": "*.log\n!keep.log\n"}, {"b.log", "sub/b.log"}),
        ({".gcloudignore": "build/*\n!build/x\n"}, {"build/y/z"}),
        ({".gcloudignore": "build/\n!build/x\n/a\nfoo/\n"}, {"a", "build/x", "build/y/z"}),
        (
            {".gcloudignore": "\\#x\n\\!y\nwith\\ space\n# comment\n\n"},
            {"!y", "#x", "with space"},
        ),
        (
            {".gcloudignore": "**/y\n.*\n"},
            {".env", ".gcloudignore", ".hidden/x", "build/y/z", "dist/x/y"},
        ),
        (
            {".gcloudignore": "#!include:.gitignore\n!b.log\n", ".gitignore": "dist\n*.log\n"},
            {"dist/x/y", "keep.log"},
        ),
        ({".gitignore": "dist\nsub\n"}, {".gitignore", "dist/x/y", "sub/a", "sub/b.log"}),
        ({".git/config": ""}, {".git/config"}),
    ],
)
def test_the_files_that_gcloud_sends_are_sent(tmp_path, files, left_out):
    write_tree(tmp_path, dict.fromkeys(SAMPLE, "") | files)
    sent = {*SAMPLE, *files} - left_out
    rules = load_ignore_rules(str(tmp_path))
    assert {path for path in {*SAMPLE, *files} if is_sent(rules, path)} == sent
    if GCLOUD is not None:
        argv = [GCLOUD, "meta", "list-files-for-upload", str(tmp_path)]
        answer = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert set(answer.stdout.splitlines()) == sent
