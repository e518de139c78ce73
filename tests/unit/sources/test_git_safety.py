"""A repository is data: whatever is in it, nothing runs here and nothing is written elsewhere."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.build_run.execution import missing_dir
from buildrunner.errors import SourceError
from buildrunner.file_trees import remove_tree
from buildrunner.sources.git.checkout import GitOptions, update_submodules
from buildrunner.sources.git.command import GitCommand
from buildrunner.sources.git.mirror import GitMirror
from buildrunner.sources.git.source import GitCheckout, GitRequest, fetch_git
from buildrunner.sources.git.url import parse_git_url
from buildrunner.spec.model.source import GitSource, Source
from tests.fixtures_git import HttpServer, Repository, closing, git


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "served")
    repository.commit({"README": b"one\n"})
    repository.push("main")
    return repository


@pytest.fixture
def http(repository: Repository) -> Iterator[HttpServer]:
    with closing(HttpServer(repository.root)) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that must never come to be."""
    return tmp_path / "it-ran"


def fetch(
    url: str, tmp_path: Path, *, allow_host: object = None, revision: str = "", **options: int
) -> GitCheckout:
    return fetch_git(
        GitRequest(url=url, revision=revision, options=GitOptions(**options)),
        mirror=GitMirror(str(tmp_path / "cache")),
        cancel=threading.Event(),
        allow_host=allow_host,  # type: ignore[arg-type]
        wait_s=0.01,
    )


def executable(path: Path, marker: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ntouch {marker}\n")
    path.chmod(0o755)


def raw_tree(repository: Repository, *entries: tuple[bytes, bytes, str]) -> str:
    """A tree with entries that git itself would refuse to make: (mode, name, sha)."""
    content = b"".join(
        mode + b" " + name + b"\0" + bytes.fromhex(sha) for mode, name, sha in entries
    )
    done = subprocess.run(
        ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
        cwd=repository.work,
        input=content,
        check=True,
        capture_output=True,
    )
    return done.stdout.decode().strip()


def push_tree(repository: Repository, tree: str) -> None:
    commit = git(repository.work, "commit-tree", "-m", "evil", tree)
    repository.push(f"{commit}:refs/heads/main")


def add_submodule(repository: Repository, path: str, commit: str, url: str) -> None:
    repository.commit({".gitmodules": _gitmodules(path, url)})
    git(repository.work, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    git(repository.work, "commit", "-q", "-m", "submodule")
    repository.push("main")


def hostile_folder(tmp_path: Path, url: str, marker: Path) -> Path:
    """A folder whose own settings have ``git submodule update`` run a command."""
    folder = tmp_path / "folder"
    (folder / "x").mkdir(parents=True)
    git(folder / "x", "init", "-q")
    git(folder / "x", "commit", "-q", "--allow-empty", "-m", "x")
    git(folder, "init", "-q")
    (folder / ".gitmodules").write_bytes(_gitmodules("x", url))
    tip = git(folder / "x", "rev-parse", "HEAD")
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{tip},x")
    git(folder, "config", "submodule.x.active", "true")
    git(folder, "config", "submodule.x.url", url)
    git(folder, "config", "submodule.x.update", f"!touch {marker}; :")
    return folder


class TestNothingRuns:
    def test_hooks_of_the_user_the_template_and_the_server(
        self, repository: Repository, home: Path, marker: Path, tmp_path: Path
    ):
        executable(home / "hooks/post-checkout", marker)
        executable(home / "template/hooks/post-checkout", marker)
        executable(repository.path / "hooks/post-checkout", marker)
        executable(home / "fsmonitor", marker)
        (home / ".gitconfig").write_text(
            f"[core]\nhooksPath = {home}/hooks\nfsmonitor = {home}/fsmonitor\n"
            f"[init]\ntemplateDir = {home}/template\n"
        )
        checkout = fetch(str(repository.path), tmp_path)
        assert not (Path(checkout.folder) / ".git/hooks").exists()
        assert not marker.exists()

    def test_filters_of_the_users_configuration(
        self, repository: Repository, home: Path, marker: Path, tmp_path: Path
    ):
        executable(home / "smudge", marker)
        (home / ".gitconfig").write_text(
            f'[filter "x"]\nsmudge = {home}/smudge\nrequired = true\n'
            f'[filter "lfs"]\nprocess = {home}/smudge\nrequired = true\n'
        )
        repository.commit({".gitattributes": b"a filter=x\nb filter=lfs\n", "a": b"A", "b": b"B"})
        repository.push("main")
        folder = Path(fetch(str(repository.path), tmp_path).folder)
        assert (folder / "a").read_bytes() + (folder / "b").read_bytes() == b"AB"
        assert not marker.exists()

    @pytest.mark.parametrize("url", ["ext::sh -c touch% {}", "fd::3", "foo::bar", "gopher://x/y"])
    def test_protocols_that_run_programs(self, url: str, tmp_path: Path, marker: Path):
        with pytest.raises(SourceError, match="is not allowed"):
            fetch(url.format(marker), tmp_path)
        assert not marker.exists()

    @pytest.mark.parametrize(
        "url",
        ["--upload-pack=touch", "", "ssh://-oProxyCommand=touch/x", "-x:y", "https://", "a\nb"],
    )
    def test_what_is_no_url(self, url: str, tmp_path: Path):
        with pytest.raises(SourceError):
            fetch(url, tmp_path)

    @pytest.mark.parametrize("inner", ["ext::sh -c touch% {}", "file://{}", "{}"])
    def test_submodules_that_leave_the_network(
        self, repository: Repository, http: HttpServer, tmp_path: Path, marker: Path, inner: str
    ):
        target = str(marker) if "ext" in inner else str(repository.path)
        tip = git(repository.work, "rev-parse", "HEAD")
        repository.commit({".gitmodules": _gitmodules("sub", inner.format(target))})
        git(repository.work, "update-index", "--add", "--cacheinfo", f"160000,{tip},sub")
        git(repository.work, "commit", "-q", "-m", "sub")
        repository.push("main")
        with pytest.raises(SourceError, match="not allowed"):
            fetch(http.url(), tmp_path, submodules=True)
        assert not marker.exists()

    @pytest.mark.parametrize("way", ["{}", "../../../{}", "link", "link/../folder", "dir/link"])
    def test_a_folder_that_gitmodules_names_and_no_commit_has(
        self, repository: Repository, http: HttpServer, tmp_path: Path, marker: Path, way: str
    ):
        """Issue: Git ran in any folder, with its settings, which may name commands."""
        folder = hostile_folder(tmp_path, http.url(), marker)
        (repository.work / "dir").mkdir()
        for link in ("link", "dir/link"):
            (repository.work / link).symlink_to(folder)
        path = way.format(folder if way == "{}" else "folder")
        repository.commit({".gitmodules": _gitmodules(path, http.url(), "y")})
        repository.push("main")
        before = (folder / ".git/config").read_bytes()
        assert fetch(http.url(), tmp_path, submodules=True).resolved.files
        assert not marker.exists()
        assert (folder / ".git/config").read_bytes() == before

    def test_a_submodule_that_is_another_repository(
        self, http: HttpServer, tmp_path: Path, marker: Path
    ):
        folder = hostile_folder(tmp_path, http.url(), marker)
        outer = tmp_path / "outer"
        for inner in ("sub", "way/sub"):
            git(tmp_path, "init", "-q", str(outer))
            (outer / ".gitmodules").write_bytes(_gitmodules(inner, http.url()))
            tip = git(folder / "x", "rev-parse", "HEAD")
            git(outer, "update-index", "--add", "--cacheinfo", f"160000,{tip},{inner}")
            if inner == "sub":
                (outer / "sub").mkdir()
                (outer / "sub/.git").write_text(f"gitdir: {folder}/.git\n")
            else:
                (folder / "sub").mkdir()
                (outer / "way").symlink_to(folder)
            git_command = GitCommand(parse_git_url(http.url()))
            with pytest.raises(SourceError, match=f"{inner} of .* leads out of the repository"):
                update_submodules(git_command, str(outer), str(outer / ".git"))
            remove_tree(str(outer))
        assert not marker.exists()

    @pytest.mark.parametrize(
        "settings",
        [
            {"submodule.sub.update": "!touch {marker}; :"},
            {"protocol.ext.allow": "always", "url.ext::touch% {marker}.insteadOf": "{url}"},
        ],
    )
    def test_settings_in_the_repository_of_a_checkout(
        self,
        repository: Repository,
        http: HttpServer,
        tmp_path: Path,
        marker: Path,
        settings: dict[str, str],
    ):
        """A second wall: nobody else writes there."""
        first = git(repository.work, "rev-parse", "HEAD")
        add_submodule(repository, "sub", first, http.url())
        checkout = fetch(http.url(), tmp_path, submodules=True)
        checkout.release()
        for name, value in settings.items():
            key = name.format(marker=marker, url=http.url())
            git(checkout.folder, "config", key, value.format(marker=marker, url=http.url()))
        second = repository.commit({"README": b"two\n"})
        add_submodule(repository, "sub", second, http.url())
        if "submodule.sub.update" in settings:
            moved = fetch(http.url(), tmp_path, submodules=True)
            assert (Path(moved.folder) / "sub/README").read_bytes() == b"two\n"
        else:
            with pytest.raises(SourceError, match="not allowed"):
                fetch(http.url(), tmp_path, submodules=True)
        assert not marker.exists()

    def test_a_path_that_old_versions_of_git_shorten(
        self, repository: Repository, http: HttpServer, tmp_path: Path
    ):
        add_submodule(repository, "sub\r", git(repository.work, "rev-parse", "HEAD"), http.url())
        with pytest.raises(SourceError, match=r'"sub\\r" of a submodule of .* is not supported'):
            fetch(http.url(), tmp_path, submodules=True)

    def test_settings_of_a_repository_around_the_cache_or_of_a_hook_that_runs_us(
        self,
        repository: Repository,
        tmp_path: Path,
        marker: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        outer = tmp_path
        git(outer, "init", "-q", ".")
        git(outer, "config", "core.fsmonitor", f"touch {marker}")
        monkeypatch.setenv("GIT_DIR", str(outer / ".git"))
        monkeypatch.setenv("GIT_INDEX_FILE", str(outer / ".git/index"))
        monkeypatch.setenv("GIT_WORK_TREE", str(outer))
        checkout = fetch(str(repository.path), tmp_path)
        monkeypatch.undo()
        assert git(checkout.folder, "rev-parse", "HEAD") == checkout.resolved.commit_sha
        assert not (outer / "README").exists()
        assert not marker.exists()


@pytest.mark.parametrize("folder", ["etc", "none"])
def test_no_dir_says_which_folders_the_machine_has(
    repository: Repository, tmp_path: Path, folder: str
):
    """Issue: only for a folder that the machine lacks, the log said that it is missing."""
    (repository.work / "link").symlink_to("/")
    repository.commit({})
    repository.push("main")
    checkout = fetch(str(repository.path), tmp_path)
    url = str(repository.path)
    for path, missing in {"none": "none", "": "", f"link/{folder}": ""}.items():
        source = Source(git_source=GitSource(url=url, dir=path))
        assert missing_dir(source, checkout) == missing


class TestNothingIsWrittenElsewhere:
    @pytest.mark.parametrize("name", [b".git", b".GIT", b"..", b"a/b", b".git\xe2\x80\x8c"])
    def test_names_that_lead_out_of_the_folder(
        self, repository: Repository, tmp_path: Path, name: bytes
    ):
        blob = git(repository.work, "rev-parse", "HEAD:README")
        inner = raw_tree(repository, (b"100755", b"hooks", blob))
        push_tree(repository, raw_tree(repository, (b"40000", name, inner)))
        with pytest.raises(SourceError, match="could harm this machine"):
            fetch(str(repository.path), tmp_path)
        assert not (tmp_path / "cache/hooks").exists()

    def test_a_link_that_becomes_a_folder(self, repository: Repository, tmp_path: Path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (repository.work / "way").symlink_to(outside)
        repository.commit({})
        repository.push("main")
        fetch(str(repository.path), tmp_path).release()
        (repository.work / "way").unlink()
        repository.commit({"way/file": b"inside\n"})
        repository.push("main")
        checkout = fetch(str(repository.path), tmp_path)
        assert (Path(checkout.folder) / "way/file").read_bytes() == b"inside\n"
        assert list(outside.iterdir()) == []

    def test_a_link_and_a_file_below_it_in_one_commit(self, repository: Repository, tmp_path: Path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (repository.work / "target").write_text(str(outside))
        link = git(repository.work, "hash-object", "-w", "target")
        blob = git(repository.work, "rev-parse", "HEAD:README")
        inner = raw_tree(repository, (b"100644", b"file", blob))
        push_tree(
            repository,
            raw_tree(repository, (b"120000", b"way", link), (b"40000", b"way", inner)),
        )
        with pytest.raises(SourceError):
            fetch(str(repository.path), tmp_path)
        assert list(outside.iterdir()) == []

    def test_more_files_than_allowed(self, repository: Repository, tmp_path: Path):
        blob = git(repository.work, "rev-parse", "HEAD:README")
        tree = raw_tree(repository, *((b"100644", b"f%d" % n, blob) for n in range(10)))
        for _ in range(9):  # 10 objects, 10^10 files
            tree = raw_tree(repository, *((b"40000", b"d%d" % n, tree) for n in range(10)))
        push_tree(repository, tree)
        with pytest.raises(SourceError, match="has more than 5,000 files"):
            fetch(str(repository.path), tmp_path, max_files=5000)

    def test_more_bytes_than_allowed(self, repository: Repository, tmp_path: Path):
        repository.commit({"zeros": bytes(3_000_000)})
        repository.push("main")
        with pytest.raises(SourceError, match="has more than"):
            fetch(str(repository.path), tmp_path, max_size_bytes=2_000_000)


class TestHosts:
    def test_a_host_that_policy_refuses_is_not_talked_to(self, http: HttpServer, tmp_path: Path):
        with pytest.raises(SourceError, match=r"sources on 127\.0\.0\.1 are not allowed here"):
            fetch(http.url(), tmp_path, allow_host=lambda host: host == "example.test")
        assert http.requests == []

    def test_files_of_this_machine_are_a_host_too(self, repository: Repository, tmp_path: Path):
        with pytest.raises(SourceError, match="on this machine are not allowed"):
            fetch(str(repository.path), tmp_path, allow_host=bool)

    def test_a_redirection_to_another_host_is_not_followed(
        self, http: HttpServer, repository: Repository, tmp_path: Path
    ):
        with closing(HttpServer(repository.root)) as inside:
            http.redirect_to = inside.base
            with pytest.raises(SourceError):
                fetch(http.url(), tmp_path, allow_host=lambda _: True)
            assert inside.requests == []

    def test_a_submodule_on_a_refused_host(
        self, http: HttpServer, repository: Repository, tmp_path: Path
    ):
        tip = git(repository.work, "rev-parse", "HEAD")
        repository.commit({".gitmodules": _gitmodules("sub", "http://metadata.internal/x")})
        git(repository.work, "update-index", "--add", "--cacheinfo", f"160000,{tip},sub")
        git(repository.work, "commit", "-q", "-m", "sub")
        repository.push("main")
        with pytest.raises(SourceError, match=r"on metadata\.internal are not allowed"):
            fetch(
                http.url(),
                tmp_path,
                allow_host=lambda host: host == "127.0.0.1",
                submodules=True,
            )


def _gitmodules(path: str, url: str, name: str = "") -> bytes:
    return f'[submodule "{name or path}"]\n\tpath = {path}\n\turl = {url}\n'.encode()
