"""Questions to real Git servers: where refs are, which files changed, what a commit says."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from buildrunner.errors import SourceError
from buildrunner.server.events.facts import may_pass
from buildrunner.settings import Settings
from buildrunner.sources.git.errors import GitFailed
from buildrunner.sources.git.source import (
    GitPlace,
    GitRequest,
    changed_files,
    commit_message,
    list_refs,
)
from buildrunner.wiring import GitRemotes
from tests.fixtures_git import DulwichServer, PlainServer, Shop, closing, git


class Served(Shop):
    """The repository, and where it can be asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.url = f"file://{self.path}"


@pytest.fixture(params=["all", "no filters", "first protocol", "dulwich", "plain"])
def shop(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    """A repository behind a server that can do all, and behind less able ones.

    The first protocol gives out no commit by its SHA; dulwich leaves out too much when asked to
    leave something out; a plain web server knows nothing of Git.
    """
    made = Served(tmp_path)
    if request.param == "dulwich":
        with closing(DulwichServer(made.root, made.name)) as server:
            made.url = server.url()
            yield made
    elif request.param == "plain":
        git(made.path, "config", "--bool", "receive.updateServerInfo", "true")
        with closing(PlainServer(made.root, made.name)) as server:
            made.url = server.url()
            yield made
    else:
        whether = "false" if request.param == "no filters" else "true"
        git(made.path, "config", "uploadpack.allowFilter", whether)
        if request.param == "first protocol":
            monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
            monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.version")
            monkeypatch.setenv("GIT_CONFIG_VALUE_0", "0")
        yield made


def requested(shop: Served) -> GitRequest:
    return GitRequest(url=shop.url)


def test_refs_are_listed_with_tags_peeled(shop: Served) -> None:
    found = list_refs(requested(shop), GitPlace(), threading.Event())
    assert found == {
        "refs/heads/main": shop.tip,
        "refs/heads/feature/x": shop.feature,
        "refs/tags/light": shop.first,
        "refs/tags/v1.0": shop.second,
    }


def test_files_differ_between_two_commits_or_since_they_parted(shop: Served) -> None:
    def changed(old: str, new: str, *, from_merge_base: bool = False) -> tuple[str, ...]:
        return changed_files(
            requested(shop),
            old,
            new,
            from_merge_base=from_merge_base,
            place=GitPlace(),
            cancel=threading.Event(),
        )

    assert changed(shop.second, shop.tip) == ("README",)
    assert changed(shop.tip, shop.feature) == ("README", "feature")
    assert changed(shop.tip, shop.feature, from_merge_base=True) == ("feature",)
    assert changed(shop.tip, shop.tip) == ()
    git(shop.work, "checkout", "--quiet", "--orphan", "alone")
    alone = shop.commit({"feature": b"mine"})
    shop.push("alone")
    # They never parted: compared as they are.
    assert changed(shop.tip, alone, from_merge_base=True) == changed(shop.tip, alone)
    assert "feature" in changed(shop.tip, alone)


def test_a_renamed_file_counts_under_both_names(shop: Served) -> None:
    git(shop.work, "mv", "README", "with space\nand newline")
    new = shop.commit({})
    shop.push("main")
    found = changed_files(
        requested(shop),
        shop.tip,
        new,
        from_merge_base=False,
        place=GitPlace(),
        cancel=threading.Event(),
    )
    assert found == ("README", "with space\nand newline")


def test_a_commit_s_message_is_read(shop: Served) -> None:
    commit = shop.commit({"a": b"1"}, "fix [skip ci]\n\nbecause")
    shop.push("main")
    said = commit_message(requested(shop), commit, place=GitPlace(), cancel=threading.Event())
    assert said == "fix [skip ci]\n\nbecause"


def test_what_is_not_utf8_can_be_stored_and_compared_all_the_same(shop: Served) -> None:
    (shop.work / os.fsdecode(b"caf\xe9")).write_bytes(b"old")
    git(shop.work, "add", "-A")
    git(shop.work, "commit", "--quiet", "-m", "CAFE [skip ci]")
    made = subprocess.run(
        ["git", "cat-file", "commit", "HEAD"], cwd=shop.work, check=True, capture_output=True
    ).stdout.replace(b"CAFE", b"caf\xe9")  # git itself would take it for Latin-1
    hashed = ("git", "hash-object", "-t", "commit", "-w", "--stdin")
    done = subprocess.run(hashed, cwd=shop.work, check=True, capture_output=True, input=made)
    new = done.stdout.decode().strip()
    git(shop.work, "reset", "--quiet", new)
    git(shop.work, "push", "--quiet", "origin", "main", os.fsdecode(b"main:refs/heads/caf\xe9"))
    never = threading.Event()
    refs = list_refs(requested(shop), GitPlace(), never)
    assert refs["refs/heads/main"] == new
    assert not any("caf" in name for name in refs)
    where = {"place": GitPlace(), "cancel": never}
    assert commit_message(requested(shop), new, **where) == "caf\ufffd [skip ci]"
    files = changed_files(requested(shop), shop.tip, new, from_merge_base=False, **where)
    assert files == ("caf\ufffd",)


def test_a_repository_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    request = GitRequest(url=f"file://{tmp_path}/none")
    with pytest.raises(SourceError):
        list_refs(request, GitPlace(), threading.Event())
    with pytest.raises(SourceError):
        commit_message(request, "a" * 40, place=GitPlace(), cancel=threading.Event())


def test_what_policy_forbids_is_not_asked(shop: Served) -> None:
    closed = GitPlace(allow_host=lambda _: False)
    with pytest.raises(SourceError, match="not allowed here"):
        list_refs(requested(shop), closed, threading.Event())


@pytest.fixture
def silent() -> Iterator[tuple[str, threading.Event]]:
    """The address of a repository on a server that takes connections and answers nothing."""
    came = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take() -> None:
            with suppress(OSError):
                taken.append(listening.accept()[0])
                came.set()

        taken: list[socket.socket] = []
        thread = threading.Thread(target=take)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/acme/app.git", came
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in taken:
            one.close()


def test_a_server_that_does_not_answer_is_given_up_in_time(
    silent: tuple[str, threading.Event],
) -> None:
    remotes = GitRemotes(Settings(), None, limit_s=0.2)
    with pytest.raises(GitFailed, match=r"acme/app.git did not answer within 0.2 s") as raised:
        remotes.message(silent[0], "a" * 40)
    assert may_pass(raised.value)


def test_a_question_ends_with_whoever_asks(silent: tuple[str, threading.Event]) -> None:
    url, came = silent
    remotes = GitRemotes(Settings(), None)
    with ThreadPoolExecutor(1) as other:
        requested = other.submit(remotes.list_refs, url)
        assert came.wait(30)
        remotes.stop()
        with pytest.raises(GitFailed, match="was cancelled"):
            requested.result(timeout=30)
    with pytest.raises(GitFailed, match="was cancelled"):
        remotes.list_refs(url)
