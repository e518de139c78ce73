"""Which files a path of `artifacts.objects` names, and what they are called in the bucket."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.artifacts.objects import ObjectGlob
from buildrunner.errors import UploadError


def matches(text, path):
    """Whether a file of the workspace is meant."""
    glob = ObjectGlob(text)
    if glob.literal:
        return path == glob.folder
    start = f"{glob.folder}/" if glob.folder else ""
    return path.startswith(start) and glob.matches(path.removeprefix(start))


@pytest.mark.parametrize(
    ("text", "path", "meant"),
    [
        ("a.txt", "a.txt", True),
        ("./out//a.txt", "out/a.txt", True),
        ("/workspace/out/a.txt", "out/a.txt", True),
        ("*.txt", "a.txt", True),
        ("*.txt", "out/a.txt", False),
        ("*.txt", ".hidden.txt", False),
        (".*.txt", ".hidden.txt", True),
        ("?.txt", "a.txt", True),
        ("?.txt", ".txt", False),
        ("[ab].txt", "b.txt", True),
        ("[!ab].txt", "b.txt", False),
        ("[a-c]*", "bell", True),
        ("a[.txt", "a[.txt", True),
        ("*[.txt", "a[.txt", True),
        ("out/*/x", "out/a/x", True),
        ("out/*/x", "out/a/b/x", False),
        ("out/*/x", "out/.a/x", False),
        ("**", "a", True),
        ("**", "a/.b/c", True),
        ("out/**", "out/a", True),
        ("out/**", "out", False),
        ("out/**", "other/a", False),
        ("**/*.xml", "a.xml", True),
        ("**/*.xml", "a/b/c.xml", True),
        ("**/*.xml", "a/b/.c.xml", True),
        ("**.xml", "a/b/c.xml", True),
        ("out/**/report/*.html", "out/report/i.html", True),
        ("out/**/report/*.html", "out/a/b/report/i.html", True),
        ("out/**/report/*.html", "out/a/b/report/sub/i.html", False),
        ("***/a", "x/a", True),
        ("a\\*", "a\\b", True),
    ],
)
def test_what_is_meant(text, path, meant):
    assert matches(text, path) is meant


@pytest.mark.parametrize(
    ("text", "path", "name"),
    [
        ("out/a.txt", "out/a.txt", "a.txt"),
        ("out/*/a.txt", "out/x/a.txt", "a.txt"),
        ("out/**", "out/x/a.txt", "x/a.txt"),
        ("**/a.txt", "out/x/a.txt", "out/x/a.txt"),
        ("out/*/deep/**", "out/x/deep/a", "x/deep/a"),
    ],
)
def test_what_it_is_called_in_the_bucket(text, path, name):
    glob = ObjectGlob(text)
    start = f"{glob.folder}/" if glob.folder else ""
    inner = path.rpartition("/")[2] if glob.literal else path.removeprefix(start)
    assert glob.object_name(inner) == name


def test_paths_begin_in_the_folder_of_the_source():
    assert ObjectGlob("out/*.txt", workdir="/workspace/app").folder == "app/out"
    assert ObjectGlob("../x.txt", workdir="/workspace/app").folder == "x.txt"
    assert ObjectGlob("/workspace/x.txt", workdir="/workspace/app").folder == "x.txt"


@pytest.mark.parametrize(
    "text", ["../x", "/etc/passwd", "/builder/home/x", ".", "/workspace", "a/../.."]
)
def test_a_path_that_leaves_the_workspace_is_refused(text):
    with pytest.raises(UploadError, match="not a path below /workspace"):
        ObjectGlob(text)


def test_many_stars_take_no_time():
    assert not ObjectGlob("*a" * 60 + "b").matches("a" * 250)
    assert not ObjectGlob("**/" * 40 + "b").matches("/".join("a" * 200))


# A second opinion, as plain as it gets: names by a regular expression, folders by recursion.


def reference(names, path, *, hidden=False):
    if not names:
        return not path
    if names[0] == "**":
        rest = names[1:] or ["*"]
        return reference(rest, path, hidden=True) or (
            len(path) > 1 and reference(names, path[1:], hidden=True)
        )
    if not path:
        return False
    name, wanted = path[0], names[0]
    if name.startswith(".") and not wanted.startswith(".") and not hidden:
        return False
    pattern = re.escape(wanted).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return bool(re.fullmatch(pattern, name)) and reference(names[1:], path[1:], hidden=hidden)


NAMES = st.text("ab.", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
GLOBS = st.one_of(
    st.just("**"),
    st.text("ab.*?", min_size=1, max_size=4).filter(
        lambda name: name not in (".", "..") and "**" not in name
    ),
)


@given(st.lists(GLOBS, min_size=1, max_size=5), st.lists(NAMES, min_size=1, max_size=5))
def test_any_glob_matches_what_the_reference_matches(globs, path):
    wanted = reference(globs, path)
    assert matches("/".join(globs), "/".join(path)) == wanted
