"""The cache of checkouts: what it saves, what it survives, what it keeps."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buildrunner.errors import SourceError
from buildrunner.file_trees import disk_bytes
from buildrunner.sources.git import mirror
from buildrunner.sources.git.checkout import GitOptions
from buildrunner.sources.git.mirror import GitMirror
from buildrunner.sources.git.source import GitCheckout, GitRequest, fetch_git
from tests.fixtures_git import HttpServer, Repository, closing, git

NOISE = os.urandom(300_000)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "served")
    repository.commit({"README": b"one\n", "noise": NOISE, "sub/keep": b"k"})
    repository.push("main")
    return repository


@pytest.fixture
def http(repository: Repository) -> Iterator[HttpServer]:
    with closing(HttpServer(repository.root)) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetch(
    url: str, cache: Path, revision: str = "", quota_bytes: int = 10**9, **options: int
) -> GitCheckout:
    return fetch_git(
        GitRequest(url=url, revision=revision, options=GitOptions(**options)),
        mirror=GitMirror(str(cache), quota_bytes=quota_bytes),
        cancel=threading.Event(),
        wait_s=0.01,
    )


def checkouts(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("*/*") if path.is_dir())


class TestReuse:
    def test_the_same_commit_is_shared_and_nothing_is_transferred(
        self, http: HttpServer, cache: Path
    ):
        first = fetch(http.url(), cache)
        before = http.sent_bytes
        second = fetch(http.url(), cache)
        assert second.folder == first.folder
        assert http.sent_bytes - before < 2000
        assert "in the cache already" in second.log[0]

    def test_another_commit_transfers_and_writes_the_difference_only(
        self, http: HttpServer, repository: Repository, cache: Path
    ):
        first = fetch(http.url(), cache)
        written = (Path(first.folder) / "noise").stat().st_ino
        first.release()
        before = http.sent_bytes
        repository.commit({"README": b"two\n", "new": b"n"})
        repository.push("main")
        second = fetch(http.url(), cache)
        assert second.folder == first.folder
        assert http.sent_bytes - before < 10_000
        assert (Path(second.folder) / "noise").stat().st_ino == written
        assert (Path(second.folder) / "README").read_bytes() == b"two\n"
        assert git(second.folder, "rev-list", "--count", "HEAD") == "1"
        assert git(second.folder, "status", "--porcelain", "--ignored") == ""

    def test_going_back_transfers_nothing(
        self, http: HttpServer, repository: Repository, cache: Path
    ):
        old = fetch(http.url(), cache)
        old.release()
        repository.commit({"README": b"two\n", "noise": os.urandom(300_000)})
        repository.push("main")
        fetch(http.url(), cache).release()
        before = http.sent_bytes
        back = fetch(http.url(), cache, old.resolved.commit_sha)
        assert (Path(back.folder) / "noise").read_bytes() == NOISE
        assert http.sent_bytes - before < 2000

    def test_a_checkout_in_use_is_left_alone(
        self, http: HttpServer, repository: Repository, cache: Path
    ):
        first = fetch(http.url(), cache)
        times = _change_times(first.folder)
        repository.commit({"README": b"two\n"})
        repository.push("main")
        before = http.sent_bytes
        second = fetch(http.url(), cache)
        assert second.folder != first.folder
        assert http.sent_bytes - before < 10_000
        assert (Path(first.folder) / "README").read_bytes() == b"one\n"
        assert (Path(second.folder) / "README").read_bytes() == b"two\n"
        assert _change_times(first.folder) == times
        git(second.folder, "fsck", "--full")

    def test_a_checkout_is_held_again_by_a_build_that_goes_on(
        self, http: HttpServer, repository: Repository, cache: Path
    ):
        first = fetch(http.url(), cache)
        commit = first.resolved.commit_sha
        first.release()  # its process has died
        mirror = GitMirror(str(cache))
        assert mirror.hold(first.folder, "0" * 40) is None
        assert mirror.hold(str(repository.work), commit) is None
        lease = mirror.hold(first.folder, commit)
        assert lease is not None
        repository.commit({"README": b"two\n"})
        repository.push("main")
        second = fetch(http.url(), cache)
        assert second.folder != first.folder
        assert (Path(first.folder) / "README").read_bytes() == b"one\n"
        lease.release()
        second.release()
        repository.commit({"README": b"three\n"})
        repository.push("main")
        third = fetch(http.url(), cache)
        held = {first.folder: commit, second.folder: second.resolved.commit_sha}
        assert mirror.hold(third.folder, held[third.folder]) is None

    def test_files_that_a_commit_drops_are_gone(self, repository: Repository, cache: Path):
        fetch(str(repository.path), cache).release()
        git(repository.work, "rm", "-rq", "sub", "noise")
        repository.commit({".gitignore": b"noise\nsub\n"})
        repository.push("main")
        checkout = fetch(str(repository.path), cache)
        names = {path.name for path in Path(checkout.folder).iterdir()}
        assert names == {".git", ".gitignore", "README"}

    def test_a_tag_on_the_same_commit_gets_its_own_refs(self, repository: Repository, cache: Path):
        git(repository.work, "tag", "-a", "v2", "-m", "v2")
        repository.push("v2")
        branch = fetch(str(repository.path), cache, "main")
        tag = fetch(str(repository.path), cache, "v2")
        assert git(tag.folder, "tag") == "v2"
        assert git(branch.folder, "tag") == ""

    def test_other_options_have_their_own_checkouts(self, repository: Repository, cache: Path):
        repository.commit({"README": b"two\n"})
        repository.push("main")
        assert git(fetch(str(repository.path), cache).folder, "rev-list", "--count", "HEAD") == "1"
        whole = fetch(str(repository.path), cache, depth=0)
        assert git(whole.folder, "rev-list", "--count", "HEAD") == "2"

    def test_many_builds_at_once_fetch_once(self, http: HttpServer, cache: Path):
        with ThreadPoolExecutor(6) as pool:
            made = list(pool.map(lambda _: fetch(http.url(), cache), range(6)))
        assert len({checkout.folder for checkout in made}) == 1
        assert http.sent_bytes < 2 * len(NOISE)

    def test_many_builds_of_several_commits_never_mix(
        self, http: HttpServer, repository: Repository, cache: Path
    ):
        commits = {}
        for number in range(4):
            sha = repository.commit({"README": b"%d" % number, f"only{number}": b"x"})
            commits[sha] = b"%d" % number
        repository.push("main")

        def build(sha: str) -> bytes:
            checkout = fetch(http.url(), cache, sha)
            read = (Path(checkout.folder) / "README").read_bytes()
            assert git(checkout.folder, "rev-parse", "HEAD") == sha
            assert git(checkout.folder, "status", "--porcelain") == ""
            checkout.release()
            return read

        shas = list(commits) * 3
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(build, shas)) == [commits[sha] for sha in shas]


class TestRepair:
    @pytest.mark.parametrize("damage", ["pack", "index", "head", "no packs", "locks", "all"])
    def test_a_broken_checkout_is_made_anew(self, repository: Repository, cache: Path, damage: str):
        first = fetch(str(repository.path), cache)
        first.release()
        _damage(Path(first.folder), damage)
        repository.commit({"README": b"two\n", "noise": NOISE + b"!"})
        repository.push("main")
        second = fetch(str(repository.path), cache)
        assert (Path(second.folder) / "README").read_bytes() == b"two\n"
        assert (Path(second.folder) / "sub/keep").read_bytes() == b"k"
        git(second.folder, "fsck", "--full")

    @pytest.mark.parametrize("change", ["edit", "remove", "add", "add ignored"])
    def test_a_checkout_that_someone_changed_is_not_reused_as_it_is(
        self, repository: Repository, cache: Path, change: str
    ):
        repository.commit({".gitignore": b"*.o\n"})
        repository.push("main")
        first = fetch(str(repository.path), cache)
        first.release()
        folder = Path(first.folder)
        if change == "edit":
            (folder / "README").write_bytes(b"evil\n")
        elif change == "remove":
            (folder / "README").unlink()
        else:
            (folder / ("x.o" if "ignored" in change else "x.c")).write_bytes(b"evil\n")
        second = fetch(str(repository.path), cache)
        names = {path.name for path in Path(second.folder).iterdir()}
        assert names == {".git", ".gitignore", "README", "noise", "sub"}
        assert (Path(second.folder) / "README").read_bytes() == b"one\n"

    def test_a_failed_fetch_leaves_the_old_checkout_usable(
        self, http: HttpServer, repository: Repository, cache: Path
    ):
        first = fetch(http.url(), cache)
        first.release()
        with pytest.raises(SourceError, match="has no revision"):
            fetch(http.url(), cache, "f" * 40)
        assert "in the cache already" in fetch(http.url(), cache).log[0]

    def test_a_cache_that_cannot_be_written_is_one_sentence(
        self, repository: Repository, cache: Path
    ):
        cache.write_text("a file in its place")
        with pytest.raises(SourceError, match="can't be used") as caught:
            fetch(str(repository.path), cache)
        assert "--no-git-cache" in caught.value.hint


class TestQuota:
    def test_the_longest_unused_checkout_goes_first(self, tmp_path: Path, cache: Path):
        urls = []
        for name in ("a", "b", "c"):
            repository = Repository(tmp_path / name)
            repository.commit({"noise": os.urandom(200_000)})
            repository.push("main")
            urls.append(str(repository.path))
        for url in urls:
            fetch(url, cache).release()
        fetch(urls[0], cache).release()  # b is the oldest now
        quota = 1_000_000
        assert len(checkouts(cache)) == 3
        assert GitMirror(str(cache), quota_bytes=quota).trim() <= quota
        assert "in the cache already" in fetch(urls[0], cache).log[0]
        assert "in the cache already" in fetch(urls[2], cache).log[0]
        assert len(checkouts(cache)) == 2

    def test_an_incomplete_checkout_is_measured_once(
        self,
        http: HttpServer,
        repository: Repository,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        """Issue: one failed checkout was measured anew at each lease of the whole cache."""
        measured: list[str] = []

        def counted(path: str) -> int:
            measured.append(path)
            return disk_bytes(path)

        monkeypatch.setattr(mirror, "disk_bytes", counted)
        used = fetch(http.url(), cache)
        (number,) = checkouts(cache)
        number.with_suffix(".json").unlink()  # as when the process of a change has died
        GitMirror(str(cache)).trim()  # its lock is held: the size of before counts
        assert measured == []
        used.release()
        for _ in range(3):
            assert GitMirror(str(cache)).trim() == disk_bytes(str(number))
        assert measured == [str(number)]
        repository.commit({"noise": os.urandom(900_000)})
        repository.push("main")
        fetch(http.url(), cache).release()  # the new content counts, not what was noted
        assert GitMirror(str(cache)).trim() > 1_800_000
        number.with_suffix(".json").unlink()
        before = disk_bytes(str(number))
        assert [GitMirror(str(cache)).trim() for _ in range(2)] == [before, before]
        assert measured == [str(number)] * 2
        assert GitMirror(str(cache), quota_bytes=1).trim() == 0
        assert checkouts(cache) == []

    def test_what_can_not_be_removed_is_no_reason_to_fail(
        self, repository: Repository, cache: Path
    ):
        (cache / "odd/0").mkdir(parents=True)
        (cache / "odd/0.lock").mkdir()
        said: list[str] = []
        checkout = fetch_git(
            GitRequest(url=str(repository.path)),
            mirror=GitMirror(str(cache), quota_bytes=1),
            cancel=threading.Event(),
            progress=lambda text, percent: said.append(text) if percent is None else None,
        )
        assert (Path(checkout.folder) / "README").read_bytes() == b"one\n"
        assert f"The Git cache {cache} can't be trimmed: Is a directory" in said

    def test_what_is_in_use_stays(self, repository: Repository, cache: Path):
        checkout = fetch(str(repository.path), cache, quota_bytes=1)
        assert (Path(checkout.folder) / "noise").read_bytes() == NOISE
        checkout.release()
        GitMirror(str(cache), quota_bytes=1).trim()
        assert checkouts(cache) == []

    def test_many_small_packs_are_made_one(self, repository: Repository, cache: Path):
        for number in range(25):
            repository.commit({"README": b"%d\n" % number})
            repository.push("main")
            checkout = fetch(str(repository.path), cache)
            checkout.release()
        packs = list(Path(checkout.folder, ".git/objects/pack").glob("*.pack"))
        assert len(packs) <= 21
        git(checkout.folder, "fsck", "--full")


class TestRaces:
    def test_a_push_between_resolve_and_fetch_changes_nothing(
        self, http: HttpServer, repository: Repository, cache: Path
    ):
        before = git(repository.work, "rev-parse", "HEAD")

        def push() -> None:
            repository.commit({"README": b"two\n"})
            repository.push("main")

        http.before_pack = push
        checkout = fetch(http.url(), cache)
        assert checkout.resolved.commit_sha == before
        assert (Path(checkout.folder) / "README").read_bytes() == b"one\n"

    def test_a_forced_push_that_loses_the_commit_is_resolved_again(
        self, http: HttpServer, repository: Repository, cache: Path
    ):
        after: list[str] = []

        def rewrite() -> None:
            git(repository.work, "commit", "-q", "--amend", "-m", "rewritten")
            after.append(repository.commit({"README": b"rewritten\n"}))
            repository.push("main")
            git(repository.path, "reflog", "expire", "--expire=now", "--all")
            git(repository.path, "gc", "-q", "--prune=now")

        http.before_pack = rewrite
        checkout = fetch(http.url(), cache)
        assert checkout.resolved.commit_sha == after[0]
        assert (Path(checkout.folder) / "README").read_bytes() == b"rewritten\n"

    def test_a_forced_push_on_a_server_that_gives_out_only_tips(
        self,
        http: HttpServer,
        repository: Repository,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.version")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "0")
        requested: list[str] = []
        seen: list[str] = []

        def rewrite(request: str) -> None:
            requested.append(request)
            if len(requested) == 2:  # the first one resolves, the second one fetches
                git(repository.work, "commit", "-q", "--amend", "-m", "rewritten")
                seen.append(repository.commit({"README": b"rewritten\n"}))
                repository.push("main")

        http.on_request = rewrite
        checkout = fetch(http.url(), cache)
        assert seen == [checkout.resolved.commit_sha]
        assert (Path(checkout.folder) / "README").read_bytes() == b"rewritten\n"


def _change_times(folder: str) -> dict[str, int]:
    return {
        str(path): path.lstat().st_ctime_ns for path in Path(folder).rglob("*") if path.is_file()
    }


def _damage(folder: Path, what: str) -> None:
    packs = list((folder / ".git/objects/pack").glob("*.pack"))
    if what == "pack":
        packs[0].chmod(0o600)
        content = bytearray(packs[0].read_bytes())
        content[20:200] = bytes(180)
        packs[0].write_bytes(content)
    elif what == "index":
        (folder / ".git/index").write_bytes(b"nonsense")
    elif what == "head":
        (folder / ".git/HEAD").write_bytes(b"")
    elif what == "no packs":
        for path in packs:
            path.unlink()
    elif what == "locks":
        for name in ("index.lock", "HEAD.lock", "shallow.lock", "config.lock"):
            (folder / ".git" / name).write_bytes(b"")
        (folder / ".git/objects/pack/tmp_pack_x").write_bytes(b"half")
    else:
        for path in (folder / ".git").rglob("*"):
            if path.is_file():
                path.chmod(0o600)
                path.write_bytes(b"")
