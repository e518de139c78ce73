"""Submodules, LFS, and what the Build is told about a Git source."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from buildrunner.errors import SourceError
from buildrunner.sources.git.checkout import GitOptions
from buildrunner.sources.git.credentials import GitCredentials, GitLogin
from buildrunner.sources.git.mirror import GitMirror
from buildrunner.sources.git.source import GitCheckout, GitRequest, fetch_git, request_of
from buildrunner.sources.git.url import parse_git_url
from buildrunner.spec.model.source import (
    ConnectedRepository,
    GitSource,
    RepoSource,
    Source,
    StorageSource,
)
from tests.conftest import program
from tests.fixtures_git import (
    DulwichServer,
    HttpServer,
    PlainServer,
    Repository,
    closing,
    git,
)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "served")


@pytest.fixture
def http(repository: Repository) -> Iterator[HttpServer]:
    with closing(HttpServer(repository.root)) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetch(
    url: str, cache: Path, credentials: GitCredentials | None = None, **options: int
) -> GitCheckout:
    return fetch_git(
        GitRequest(url=url, credentials=credentials, options=GitOptions(**options)),
        mirror=GitMirror(str(cache)),
        cancel=threading.Event(),
        wait_s=0.01,
    )


class TestSubmodules:
    @pytest.fixture
    def library(self, repository: Repository, tmp_path: Path) -> Repository:
        """A submodule of the repository, with one of its own; neither commit is a tip."""
        inner = Repository(tmp_path / "inner", "leaf.git")
        leaf = inner.commit({"leaf": b"leaf\n"})
        inner.commit({"leaf": b"newer\n"})
        inner.push("main")
        inner.path.rename(repository.root / "leaf.git")
        library = Repository(tmp_path / "library", "library.git")
        library.commit({".gitmodules": _gitmodules("deep/leaf", "../leaf.git")})
        _add_link(library, "deep/leaf", leaf)
        library.push("main")
        library.path.rename(repository.root / "library.git")
        library.path = repository.root / "library.git"
        git(library.work, "remote", "set-url", "origin", str(library.path))
        return library

    def _use(self, repository: Repository, library: Repository) -> None:
        tip = git(library.work, "rev-parse", "HEAD")
        repository.commit({".gitmodules": _gitmodules("lib", "../../library.git")})
        _add_link(repository, "lib", tip)
        repository.push("main")

    def test_they_are_left_empty_unless_asked_for(
        self, repository: Repository, library: Repository, http: HttpServer, cache: Path
    ):
        self._use(repository, library)
        checkout = fetch(http.url(), cache)
        assert list((Path(checkout.folder) / "lib").iterdir()) == []

    def test_they_come_with_theirs_and_move_with_the_commit(
        self, repository: Repository, library: Repository, http: HttpServer, cache: Path
    ):
        self._use(repository, library)
        library.commit({"later": b"x\n"})
        library.push("main")
        http.users = {"x-access-token": "secret-token"}
        token = GitCredentials(logins=(GitLogin(password="secret-token"),))
        checkout = fetch(http.url(), cache, token, submodules=True)
        folder = Path(checkout.folder)
        assert (folder / "lib/deep/leaf/leaf").read_bytes() == b"leaf\n"
        assert not (folder / "lib/later").exists()
        for config in (folder / ".git").rglob("config"):
            assert "secret-token" not in config.read_text()
        assert fetch(http.url(), cache, token, submodules=True).folder == checkout.folder
        checkout.release()
        self._use(repository, library)
        moved = fetch(http.url(), cache, token, submodules=True)
        assert (Path(moved.folder) / "lib/later").read_bytes() == b"x\n"
        assert git(moved.folder, "status", "--porcelain") == ""

    @pytest.mark.parametrize("kind", [DulwichServer, PlainServer])
    def test_hosts_that_give_out_neither_single_commits_nor_parts_of_a_history(
        self,
        repository: Repository,
        library: Repository,
        cache: Path,
        kind: type[DulwichServer | PlainServer],
    ):
        self._use(repository, library)
        library.commit({"later": b"x\n"})
        library.push("main")
        names = ("team/shop.git", "library.git", "leaf.git")
        with closing(kind(repository.root, *names)) as host:
            checkout = fetch(host.url(), cache, submodules=True)
            folder = Path(checkout.folder)
            assert (folder / "lib/deep/leaf/leaf").read_bytes() == b"leaf\n"
            assert not (folder / "lib/later").exists()
            assert git(checkout.folder, "status", "--porcelain") == ""
            checkout.release()
            self._use(repository, library)
            git(repository.path, "update-server-info")
            moved = fetch(host.url(), cache, submodules=True)
            assert (Path(moved.folder) / "lib/later").read_bytes() == b"x\n"

    def test_a_commit_that_a_submodule_lacks(
        self, repository: Repository, library: Repository, http: HttpServer, cache: Path
    ):
        repository.commit({".gitmodules": _gitmodules("lib", "../../library.git")})
        _add_link(repository, "lib", "1" * 40)
        repository.push("main")
        with pytest.raises(
            SourceError, match=r"does not give out the commit of its submodule lib$"
        ):
            fetch(http.url(), cache, submodules=True)

    def test_one_that_is_not_there(self, repository: Repository, http: HttpServer, cache: Path):
        repository.commit({".gitmodules": _gitmodules("lib", "../nosuch.git")})
        _add_link(repository, "lib", "1" * 40)
        repository.push("main")
        with pytest.raises(SourceError) as caught:
            fetch(http.url(), cache, submodules=True)
        assert f"there is no Git repository at {http.url('team/nosuch.git')}" in str(caught.value)


class TestLfs:
    CONTENT = b"large " * 1000

    @pytest.fixture(autouse=True, params=["git-lfs", "own transfers"])
    def way(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """How files come: where policy limits hosts, git-lfs connects to none itself."""
        if request.param == "own transfers":
            limited = partial(fetch_git, allow_host=lambda _: True)
            monkeypatch.setitem(globals(), "fetch_git", limited)

    @pytest.fixture
    def tracked(self, repository: Repository) -> str:
        program("git-lfs", "git-lfs")
        oid = hashlib.sha256(self.CONTENT).hexdigest()
        repository.commit(
            {
                ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
                "plain.txt": b"plain\n",
                "big file.bin": (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\n"
                    f"size {len(self.CONTENT)}\n"
                ).encode(),
            }
        )
        repository.push("main")
        return oid

    def test_pointers_unless_asked_for(self, http: HttpServer, cache: Path, tracked: str):
        checkout = fetch(http.url(), cache)
        assert tracked.encode() in (Path(checkout.folder) / "big file.bin").read_bytes()
        assert not any("/lfs/" in request for request in http.requests)

    def test_content_when_asked_for(
        self, repository: Repository, http: HttpServer, cache: Path, tracked: str
    ):
        http.users = {"x-access-token": "secret-token"}
        http.lfs_objects = {tracked: self.CONTENT}
        token = GitCredentials(logins=(GitLogin(password="secret-token"),))
        checkout = fetch(http.url(), cache, token, lfs=True)
        assert (Path(checkout.folder) / "big file.bin").read_bytes() == self.CONTENT
        assert "secret-token" not in (Path(checkout.folder) / ".git/config").read_text()
        requested = sum("/lfs/" in request for request in http.requests)
        again = fetch(http.url(), cache, token, lfs=True)
        assert again.folder == checkout.folder
        checkout.release()
        again.release()
        repository.commit({"plain.txt": b"changed\n"})
        repository.push("main")
        moved = fetch(http.url(), cache, token, lfs=True)
        assert (Path(moved.folder) / "big file.bin").read_bytes() == self.CONTENT
        assert sum("/lfs/" in request for request in http.requests) == requested

    def test_the_server_that_a_link_names_is_not_asked(
        self, repository: Repository, http: HttpServer, cache: Path, tracked: str
    ):
        config = b"[lfs]\nurl = https://lfs.example.com/private\n"
        repository.work.joinpath(".lfsconfig").symlink_to("elsewhere")
        repository.commit({"elsewhere": config})
        repository.push("main")
        with pytest.raises(SourceError, match=r"\.lfsconfig of .* is not a file"):
            fetch(http.url(), cache, lfs=True)

    def test_content_that_the_server_has_lost(self, http: HttpServer, cache: Path, tracked: str):
        with pytest.raises(SourceError) as caught:
            fetch(http.url(), cache, lfs=True)
        assert "\n" not in str(caught.value)
        assert tracked[:7] in str(caught.value) or "big file.bin" in str(caught.value)
        assert "files of Git LFS that 127.0.0.1 does not have" in str(caught.value)

    def test_content_that_the_server_has_spoilt(self, http: HttpServer, cache: Path, tracked: str):
        http.lfs_objects = {tracked: self.CONTENT[:-1] + b"?"}
        with pytest.raises(SourceError, match="did not arrive as it was committed") as caught:
            fetch(http.url(), cache, lfs=True)
        assert f"big file.bin: expected OID {tracked}" in str(caught.value)
        http.lfs_objects = {tracked: self.CONTENT}
        checkout = fetch(http.url(), cache, lfs=True)
        assert (Path(checkout.folder) / "big file.bin").read_bytes() == self.CONTENT

    def test_from_files(self, repository: Repository, cache: Path, tracked: str):
        store = repository.path / "lfs/objects" / tracked[:2] / tracked[2:4]
        store.mkdir(parents=True)
        (store / tracked).write_bytes(self.CONTENT)
        checkout = fetch(f"file://{repository.path}", cache, lfs=True)
        assert (Path(checkout.folder) / "big file.bin").read_bytes() == self.CONTENT

    def test_a_server_elsewhere(
        self, repository: Repository, http: HttpServer, cache: Path, tracked: str
    ):
        place = http.url("store/info/lfs")
        repository.commit({".lfsconfig": f"[lfs]\nurl = {place}\n".encode()})
        repository.push("main")
        http.lfs_objects = {tracked: self.CONTENT}
        checkout = fetch(http.url(), cache, lfs=True)
        assert (Path(checkout.folder) / "big file.bin").read_bytes() == self.CONTENT
        requested = {request.split()[1] for request in http.requests if "/lfs/" in request}
        assert requested == {
            "/store/info/lfs/objects/batch",
            f"/store/info/lfs/objects/{tracked}",
        }

    def test_a_server_elsewhere_that_policy_refuses(
        self, repository: Repository, http: HttpServer, cache: Path, tracked: str
    ):
        assert tracked
        repository.commit({".lfsconfig": b"[lfs]\nurl = http://metadata.internal/lfs\n"})
        repository.push("main")
        with pytest.raises(SourceError, match=r"on metadata\.internal are not allowed"):
            fetch_git(
                GitRequest(url=http.url(), options=GitOptions(lfs=True)),
                mirror=GitMirror(str(cache)),
                cancel=threading.Event(),
                allow_host=lambda host: host == "127.0.0.1",
            )

    def test_no_git_lfs(
        self,
        http: HttpServer,
        cache: Path,
        tracked: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        assert tracked
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("git", "sh", "env"):
            (programs / name).symlink_to(f"/usr/bin/{name}")
        monkeypatch.setenv("PATH", str(programs))
        with pytest.raises(SourceError, match="Git LFS is not installed"):
            fetch(http.url(), cache, lfs=True)


class TestProvenance:
    @pytest.fixture
    def tip(self, repository: Repository) -> str:
        sha = repository.commit({"README": b"one\n"})
        git(repository.work, "tag", "v1")
        repository.push("main", "v1")
        return sha

    def _fetch(self, source: Source, repository: Repository, cache: Path) -> GitCheckout:
        request = request_of(
            source,
            project_id="p",
            repositories={"shop": str(repository.path), "projects/x": str(repository.path)},
        )
        return fetch_git(request, mirror=GitMirror(str(cache)), cancel=threading.Event())

    def test_of_a_git_source(self, repository: Repository, cache: Path, tip: str):
        requested = GitSource(url=str(repository.path), revision="main", dir="sub")
        checkout = self._fetch(Source(git_source=requested), repository, cache)
        assert checkout.provenance.resolved_git_source == GitSource(
            url=str(repository.path), revision=tip, dir="sub"
        )

    @pytest.mark.parametrize(
        ("field", "branch", "tag"), [("branch_name", "main", ""), ("tag_name", "", "v1")]
    )
    def test_of_a_repo_source(
        self, repository: Repository, cache: Path, tip: str, field: str, branch: str, tag: str
    ):
        requested = RepoSource(repo_name="shop", dir="sub", **{field: branch or tag})
        checkout = self._fetch(Source(repo_source=requested), repository, cache)
        assert checkout.provenance.resolved_repo_source == RepoSource(
            repo_name="shop", dir="sub", commit_sha=tip
        )
        resolved = checkout.resolved
        assert (resolved.branch, resolved.tag, resolved.repo_full_name) == (branch, tag, "shop")

    def test_a_branch_name_is_no_tag(self, repository: Repository, cache: Path, tip: str):
        assert tip
        requested = Source(repo_source=RepoSource(repo_name="shop", branch_name="v1"))
        with pytest.raises(SourceError, match="has no revision 'v1'"):
            self._fetch(requested, repository, cache)

    def test_of_a_connected_repository(self, repository: Repository, cache: Path, tip: str):
        requested = ConnectedRepository(repository="projects/x", revision="main")
        checkout = self._fetch(Source(connected_repository=requested), repository, cache)
        found = checkout.provenance.resolved_connected_repository
        assert found == ConnectedRepository(repository="projects/x", revision=tip)

    def test_a_repo_source_that_nobody_maps_is_a_cloud_source_repository(self):
        request = request_of(Source(repo_source=RepoSource(repo_name="r")), project_id="p")
        assert request.url == "https://source.developers.google.com/p/p/r/r"

    @pytest.mark.parametrize(
        "source",
        [
            Source(storage_source=StorageSource(bucket="b", object="o")),
            Source(connected_repository=ConnectedRepository(repository="projects/unknown")),
            Source(git_source=GitSource(url="https://example.test/x", dir="../out")),
            Source(git_source=GitSource(url="https://example.test/x", dir="/abs")),
        ],
    )
    def test_what_cannot_be_fetched(self, source: Source):
        with pytest.raises(SourceError):
            request_of(source, project_id="p")


@pytest.mark.parametrize(
    ("url", "text", "host", "name"),
    [
        ("https://example.test/o/r.git", "https://example.test/o/r.git", "example.test", "o/r"),
        (
            "https://u:p@Example.test:8443/o/r/",
            "https://example.test:8443/o/r/",
            "example.test",
            "o/r",
        ),
        ("https://token@example.test/a/b/c", "https://example.test/a/b/c", "example.test", "a/b/c"),
        ("git@example.test:o/r.git", "git@example.test:o/r.git", "example.test", "o/r"),
        ("ssh://git@example.test:22/o/r", "ssh://git@example.test:22/o/r", "example.test", "o/r"),
        ("http://[::1]:80/o/r", "http://[::1]:80/o/r", "::1", "o/r"),
        ("git://example.test/r", "git://example.test/r", "example.test", "r"),
        ("file:///srv/team/r.git", "file:///srv/team/r.git", "", "r"),
        ("/srv/team/r", "/srv/team/r", "", "r"),
    ],
)
def test_a_url_is_taken_apart(url: str, text: str, host: str, name: str):
    parsed = parse_git_url(url)
    assert (parsed.text, parsed.host, parsed.full_name) == (text, host, name)


@pytest.mark.parametrize("url", ["https:/u:hunter2@h/r", "HTTP:h/r", "ssh:/h/r", "git:o/r"])
def test_a_scheme_without_its_slashes_is_no_host(url: str):
    """Issue: ssh was told to connect to a host of the name `https`."""
    scheme = url.partition(":")[0]
    with pytest.raises(SourceError, match="has no two slashes") as refused:
        parse_git_url(url)
    assert f"{scheme.lower()}://HOST/PATH" in refused.value.hint
    assert "hunter2" not in f"{refused.value} {refused.value.hint}"
    assert parse_git_url(f"me@{scheme}:o/r").host == scheme.lower()
    assert parse_git_url(f"ssh://{scheme}/r").host == scheme.lower()


def _gitmodules(path: str, url: str) -> bytes:
    return f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n'.encode()


def _add_link(repository: Repository, path: str, commit: str) -> None:
    git(repository.work, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    git(repository.work, "commit", "-q", "-m", "submodule")
