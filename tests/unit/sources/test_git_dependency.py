"""What a dependency asks for, where it goes, and what of a commit may be read as a config."""

import io
import tarfile
import threading

import pytest

from buildrunner.errors import SourceError
from buildrunner.sources.git.checkout import GitOptions, read_file
from buildrunner.sources.git.source import GitPlace
from buildrunner.spec.model.source import GitSourceDependency, GitSourceRepository
from buildrunner.workspace.dependencies import GitDependency, dependency_request
from tests.fixtures_git import Repository


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, GitOptions(depth=1)),
        ({"depth": 5}, GitOptions(depth=5)),
        ({"depth": -1}, GitOptions(depth=0)),
        ({"fetch_tags": True}, GitOptions(tags=True)),
        ({"recurse_submodules": True}, GitOptions(submodules=True)),
    ],
)
def test_a_dependency_is_asked_for_as_it_is_written(fields, options):
    repository = GitSourceRepository(url="https://example.com/x.git")
    request = dependency_request(
        GitSourceDependency(repository=repository, revision="v1", dest_path="x", **fields)
    )
    assert (request.url, request.revision) == ("https://example.com/x.git", "v1")
    assert request.options == options


def test_all_of_it_lies_below_its_folder(tmp_path):
    made = Repository(tmp_path / "served")
    made.work.joinpath("link").symlink_to("file")
    made.commit({"file": b"one\n", "deep/er/file": b"two\n"})
    made.push("main")
    url = GitSourceRepository(url=str(made.path))
    request = dependency_request(GitSourceDependency(repository=url, revision="main"))
    streams = []
    lines = []
    GitDependency(request, "/workspace/third/../third/party", GitPlace()).place(
        lambda tar: streams.append(b"".join(tar)), cancel=threading.Event(), line=lines.append
    )
    with tarfile.open(fileobj=io.BytesIO(streams[0])) as tar:
        assert tar.getmember("workspace/third/party/link").linkname == "file"
        names = [name.removeprefix("workspace/") for name in tar.getnames()]
        assert all(name.startswith("workspace/") for name in tar.getnames())
    assert names[:2] == ["third", "third/party"]
    assert {"third/party/file", "third/party/deep/er/file", "third/party/.git"} < set(names)
    assert all(name == "third" or name.startswith("third/party") for name in names)
    assert lines[-1].endswith("(fetched) in /workspace/third/party")


@pytest.mark.parametrize("path", ["", ".", "/etc", "../x", "/workspace"])
def test_it_has_a_folder_of_its_own(path):
    repository = GitSourceRepository(url="https://example.com/x.git")
    with pytest.raises(SourceError, match="no place below /workspace"):
        GitDependency(
            dependency_request(GitSourceDependency(repository=repository)), path, GitPlace()
        )


def test_a_file_of_the_commit_is_read_and_nothing_else(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "ci").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (tmp_path / "outside").write_text("secret")
    (folder / "ci" / "build.yaml").write_text("steps")
    (folder / "inner").symlink_to("ci/build.yaml")
    (folder / "out").symlink_to("../outside")
    (folder / "absolute").symlink_to("/etc/passwd")
    (folder / "into-git").symlink_to(".git/config")
    (folder / "loop").symlink_to("loop")
    assert read_file(str(folder), "ci/build.yaml") == b"steps"
    assert read_file(str(folder), "inner") == b"steps"
    assert read_file(str(folder), "none") is None
    assert read_file(str(folder), "ci") is None
    assert read_file(str(folder), "ci/build.yaml/x") is None
    for path in ("out", "absolute", "into-git", ".git/config", "../outside", "/etc/passwd"):
        with pytest.raises(SourceError, match="leads out of the files"):
            read_file(str(folder), path)
    with pytest.raises(SourceError, match="can't be read"):
        read_file(str(folder), "loop")
