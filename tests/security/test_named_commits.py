"""A commit that somebody names in a short form is never another's branch, tag or commit."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from buildrunner.build_run.compile import PlannedBuild
from buildrunner.build_run.execution import BuildExecution
from buildrunner.containers.fake import FakeEngine
from buildrunner.engine.cancellation import CancelToken
from buildrunner.errors import BuildrunnerError, SourceError, UsageError
from buildrunner.settings import Settings
from buildrunner.sources.git.command import GitCommand
from buildrunner.sources.git.errors import GitFailed
from buildrunner.sources.git.revision import RevisionKind, resolve_revision
from buildrunner.sources.git.source import GitCheckout, GitRequest, fetch_git
from buildrunner.sources.git.url import parse_git_url
from buildrunner.sources.policy import SourcePolicy
from buildrunner.worker.program import request_of
from tests.api_server import ApiServer, api_server
from tests.fixtures_git import Repository, git
from tests.security.server_build import Log


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path / "server", sources=SourcePolicy(files=True)) as running:
        yield running


class Reviewed(Repository):
    """A repository with a reviewed commit, and with what the author of a branch adds to it.

    Attributes:
        good: the reviewed commit, which is no tip.
        evil: the author's commit.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.good = self.commit({"cloudbuild.yaml": b"reviewed"})
        self.commit({"README": b"later"})
        self.push("main")
        git(self.work, "checkout", "-q", "-b", "evil")
        self.evil = self.commit({"cloudbuild.yaml": b"evil"})


@pytest.fixture
def repository(tmp_path: Path) -> Reviewed:
    return Reviewed(tmp_path / "served")


def fetched_by_run(server: ApiServer, repository: Reviewed, tmp_path: Path, sha: str) -> str:
    """Run a trigger by hand on a commit; the commit that its build fetches, or the error."""
    trigger = {
        "name": "deploy",
        "build": {"steps": [{"name": "busybox"}]},
        "sourceToBuild": {"uri": f"file://{repository.path}", "ref": "refs/heads/main"},
    }
    path = "/v1/projects/p/triggers"
    assert server.http.post(path, json=trigger).status_code == 200
    answer = server.http.post(f"{path}/deploy:run", json={"commitSha": sha})
    assert answer.status_code == 200, answer.text
    stored = server.store.builds.find(answer.json()["metadata"]["build"]["id"])
    found: list[str] = []

    def plan(checkout: GitCheckout | None) -> PlannedBuild:
        assert checkout is not None
        found.append(checkout.resolved.commit_sha)
        raise UsageError("it is fetched")

    settings = Settings()
    log = Log()
    execution = BuildExecution(
        settings=replace(settings, git=replace(settings.git, cache=str(tmp_path / "cache"))),
        engine=FakeEngine(),
        sink=log,
        on_event=lambda _: None,
        on_planned=lambda _: None,
        cancel=CancelToken(),
    )
    try:
        execution.execute(request_of(stored, settings, privileged_place=False), plan)
    except BuildrunnerError as error:
        return str(error)
    return found[0] if found else log.text


def test_a_tag_or_branch_is_not_taken_for_a_shortened_commit(
    server: ApiServer, repository: Reviewed, tmp_path: Path
) -> None:
    """Attack: whoever may push a tag calls it like the commit that a colleague has reviewed."""
    short = repository.good[:12]
    repository.push(f"evil:refs/tags/{short}", f"evil:refs/heads/{short}")
    assert fetched_by_run(server, repository, tmp_path, short) == repository.good


def test_a_tip_with_the_same_first_digits_makes_a_shortened_commit_ambiguous(
    server: ApiServer, repository: Reviewed, tmp_path: Path
) -> None:
    """Attack: whoever may push a branch tries messages until their commit begins alike."""
    prefix = repository.good[:4]
    commit_with_prefix(repository, prefix)
    repository.push("evil")
    assert f"has 2 commits that start with {prefix}" in fetched_by_run(
        server, repository, tmp_path, prefix
    )


def commit_with_prefix(repository: Reviewed, prefix: str) -> None:
    """Let the branch ``evil`` end at a commit whose id begins with some digits."""
    text = git(repository.work, "cat-file", "commit", repository.evil) + "\n"
    for number in range(1 << 22):
        body = f"{text}{number}\n".encode()
        if hashlib.sha1(b"commit %d\0" % len(body) + body).hexdigest().startswith(prefix):
            break
    path = repository.root / "commit"
    path.write_bytes(body)
    made = git(repository.work, "hash-object", "-t", "commit", "-w", str(path))
    assert made.startswith(prefix)
    git(repository.work, "update-ref", "refs/heads/evil", made)


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_the_default_branch_is_no_branch_or_tag_of_the_name_head(
    repository: Reviewed, kind: RevisionKind
) -> None:
    """Attack: whoever may run a trigger has untagged code built as the tag HEAD."""
    git(repository.path, "symbolic-ref", "HEAD", "refs/heads/main")
    git_command = GitCommand(parse_git_url(f"file://{repository.path}"))
    with pytest.raises(GitFailed, match="has no revision 'HEAD'"):
        resolve_revision(git_command, "HEAD", kind)
    repository.push(f"evil:refs/{'heads' if kind == 'branch' else 'tags'}/HEAD")
    assert resolve_revision(git_command, "HEAD", kind).commit == repository.evil


@pytest.mark.parametrize("named", ["main", "HEAD", "refs/heads/main", "abc", "a" * 65])
def test_a_commit_is_named_by_its_id_alone(
    server: ApiServer, repository: Reviewed, named: str
) -> None:
    trigger = {
        "name": "deploy",
        "build": {"steps": [{"name": "busybox"}]},
        "sourceToBuild": {"uri": f"file://{repository.path}", "ref": "refs/heads/main"},
    }
    assert server.http.post("/v1/projects/p/triggers", json=trigger).status_code == 200
    answer = server.http.post("/v1/projects/p/triggers/deploy:run", json={"commitSha": named})
    assert answer.status_code == 400
    assert "must be the id of a commit" in answer.text


def test_where_any_revision_may_stand_a_name_wins_over_a_shortened_commit(
    repository: Reviewed,
) -> None:
    """This is stated as no wall: `gitSource.revision` is a name first, as for Git itself."""
    short = repository.good[:12]
    repository.push(f"evil:refs/tags/{short}")

    def fetched(revision: str) -> str:
        request = GitRequest(url=f"file://{repository.path}", revision=revision)
        checkout = fetch_git(request, mirror=None, cancel=threading.Event(), wait_s=0.01)
        checkout.release()
        return checkout.resolved.commit_sha

    assert fetched(short) == repository.evil
    assert fetched(repository.good) == repository.good
    with pytest.raises(SourceError, match="no revision"):
        fetched("f" * 12)
