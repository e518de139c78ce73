"""What Git says of a folder of this machine."""

import pytest

from buildrunner.sources.git.folder import FolderCommit, commit_of_folder
from tests.fixtures_git import git


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main", ".")
    return folder


def commit(folder, name="file", text="x"):
    (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", name)
    return git(folder, "rev-parse", "HEAD")


def test_a_folder_outside_of_git_and_one_before_its_first_commit_have_none(tmp_path, work):
    assert commit_of_folder(str(tmp_path)) is None
    assert commit_of_folder(str(work)) is None


def test_a_branch_is_named_and_a_remote_names_the_repository(work):
    sha = commit(work)
    git(work, "remote", "add", "origin", "git@github.com:acme/app.git")
    assert commit_of_folder(str(work)) == FolderCommit(
        root=str(work),
        commit_sha=sha,
        branch="main",
        url="git@github.com:acme/app.git",
        full_name="acme/app",
    )


def test_without_a_remote_the_folder_names_the_repository(work):
    commit(work)
    found = commit_of_folder(str(work))
    assert (found.full_name, found.url) == ("shop", "")


def test_a_folder_further_down_belongs_to_the_repository(work):
    (work / "a" / "b").mkdir(parents=True)
    sha = commit(work, "a/b/file")
    found = commit_of_folder(str(work / "a" / "b"))
    assert (found.root, found.commit_sha) == (str(work), sha)


def test_a_tag_of_the_commit_is_found_and_a_detached_head_has_no_branch(work):
    commit(work)
    git(work, "tag", "v1.0")
    found = commit_of_folder(str(work))
    assert (found.branch, found.tag) == ("main", "v1.0")
    git(work, "checkout", "-q", "--detach")
    found = commit_of_folder(str(work))
    assert (found.branch, found.tag) == ("", "v1.0")
    git(work, "checkout", "-q", "main")
    commit(work, "later")
    assert commit_of_folder(str(work)).tag == ""


@pytest.mark.parametrize("change", ["edit", "add"])
def test_changes_that_are_not_committed_show(work, change):
    commit(work)
    commit(work, ".gitignore", "ignored\n")
    (work / "ignored").write_text("x")
    assert not commit_of_folder(str(work)).changed
    (work / ("file" if change == "edit" else "new")).write_text("y")
    assert commit_of_folder(str(work)).changed


@pytest.mark.parametrize(
    ("remotes", "upstream", "expected"),
    [
        ({"up": "https://h.example/a/b.git"}, "", "a/b"),
        ({"x": "https://h.example/a/x", "y": "https://h.example/a/y"}, "", "shop"),
        ({"x": "https://h.example/a/x", "origin": "https://h.example/a/o"}, "", "a/o"),
        ({"x": "https://h.example/a/x", "origin": "https://h.example/a/o"}, "x", "a/x"),
        ({"origin": "ext::sh -c true"}, "", "shop"),
    ],
)
def test_the_repository_is_that_of_the_branchs_remote(work, remotes, upstream, expected):
    commit(work)
    for name, url in remotes.items():
        git(work, "remote", "add", name, url)
    if upstream:
        git(work, "config", "branch.main.remote", upstream)
        git(work, "config", "branch.main.merge", "refs/heads/main")
    assert commit_of_folder(str(work)).full_name == expected


def test_a_password_of_the_remote_is_not_part_of_its_url(work):
    commit(work)
    git(work, "remote", "add", "origin", "https://me:hunter2@h.example/a/b.git")
    assert commit_of_folder(str(work)).url == "https://h.example/a/b.git"
