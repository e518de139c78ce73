"""All that the fetches of one build write together has a limit, and stops while it is written."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildrunner.errors import SourceError
from buildrunner.settings import Settings
from buildrunner.sources.git import source
from buildrunner.sources.git.checkout import GitOptions
from buildrunner.sources.git.mirror import GitMirror
from buildrunner.sources.git.room import FetchRoom
from buildrunner.sources.git.source import (
    GitCheckout,
    GitPlace,
    GitRequest,
    changed_files,
    fetch_git,
)
from buildrunner.sources.policy import SourcePolicy, policy_from, policy_text
from buildrunner.wiring.sources import git_place
from buildrunner.workspace.dependencies import GitDependency
from tests.conftest import program
from tests.fixtures_git import HttpServer, Repository, closing, git

MIB = 1 << 20
HELD_S = 30  # so long do servers here hold an answer back from a client that does not hang up
REFUSED = "takes more of the disk than is allowed here"


def served(root: Path, name: str, size: int, files: int = 1) -> Repository:
    """A repository whose pack and whose files take ``size`` each."""
    repository = Repository(root / f"of-{name.partition('/')[0]}", name)
    for number in range(files):
        (repository.work / f"noise{number}").write_bytes(os.urandom(size // files))
    repository.commit({})
    repository.push("main")
    return repository


def with_submodules(root: Path, names: list[str], base: str) -> Repository:
    """A repository whose submodules have 700,000 bytes each; all are below ``root / "all"``."""
    parent = served(root, "team/app.git", 1000)
    modules = ""
    for name in names:
        child = served(root, f"{name}/{name}.git", 700_000)
        commit = git(child.work, "rev-parse", "HEAD")
        (root / "all").mkdir(exist_ok=True)
        child.path.parent.rename(root / "all" / name)
        modules += f'[submodule "{name}"]\n\tpath = {name}\n\turl = {base}/{name}/{name}.git\n'
        git(parent.work, "update-index", "--add", "--cacheinfo", f"160000,{commit},{name}")
    (parent.work / ".gitmodules").write_text(modules)
    git(parent.work, "add", ".gitmodules")
    git(parent.work, "commit", "-q", "-m", "with submodules")
    parent.push("main")
    parent.path.parent.rename(root / "all/team")
    return parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fetched").mkdir()
    return tmp_path / "fetched"


def place_of(folder: Path, limit: int) -> GitPlace:
    policy = SourcePolicy(private=True, files=True, largest_bytes=limit)
    return git_place(Settings(), folder=str(folder), policy=policy_from(policy_text(policy)))


def fetch(
    url: str,
    room: FetchRoom | None,
    *,
    folder: Path | None = None,
    mirror: GitMirror | None = None,
    said: list[str] | None = None,
    **options: bool,
) -> GitCheckout:
    return fetch_git(
        GitRequest(url=url, revision="main", options=GitOptions(**options)),
        mirror=mirror,
        cancel=threading.Event(),
        progress=lambda text, _: said.append(text) if said is not None else None,
        allow_host=lambda _: True,
        temporary=str(folder) if folder else None,
        wait_s=0.01,
        room=room,
    )


def test_the_sum_of_all_files_has_the_limit(tmp_path: Path, folder: Path) -> None:
    repository = served(tmp_path, "a/a.git", 700_000)
    with pytest.raises(SourceError, match=REFUSED):
        fetch(repository.path.as_uri(), place_of(folder, MIB).room, folder=folder)
    assert list(folder.iterdir()) == []
    fetch(repository.path.as_uri(), place_of(folder, 2 * MIB).room, folder=folder).release()


@contextmanager
def web_server(root: Path, held: str) -> Iterator[str]:
    """Serve the files of a folder, except that the answer for one of them never begins."""
    ended = threading.Event()

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(root))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            if self.path.endswith(held):
                ended.wait(HELD_S)
            with suppress(OSError):
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def test_git_is_ended_while_it_fetches_many_small_objects(tmp_path: Path, folder: Path) -> None:
    """A plain web server sends each object as a file of its own, so that no file is large."""
    repository = served(tmp_path, "a/a.git", 2 * MIB, files=50)
    git(repository.path, "update-server-info")
    large = [p for p in repository.path.glob("objects/??/*") if p.stat().st_size > 30_000]
    assert len(large) == 50
    with web_server(repository.path, f"{large[0].parent.name}/{large[0].name}") as url:
        began_s = time.monotonic()
        with pytest.raises(SourceError, match=REFUSED):
            fetch(url, place_of(folder, MIB).room, folder=folder)
        assert time.monotonic() - began_s < HELD_S / 2
    assert list(folder.iterdir()) == []


def test_submodules_have_one_limit_with_their_repository(tmp_path: Path, folder: Path) -> None:
    with closing(HttpServer(tmp_path / "all")) as http:
        with_submodules(tmp_path, ["one", "two"], http.base)
        url = http.url("team/app.git")
        fetch(url, place_of(folder, 4 * MIB).room, folder=folder, submodules=True).release()
        with pytest.raises(SourceError, match=REFUSED):
            fetch(url, place_of(folder, 2 * MIB).room, folder=folder, submodules=True)
    assert list(folder.iterdir()) == []


def test_all_fetches_of_a_build_have_one_limit(tmp_path: Path, folder: Path) -> None:
    first, second = (served(tmp_path, f"{name}/{name}.git", 700_000) for name in "ab")
    place = place_of(folder, 2 * MIB)
    fetch(first.path.as_uri(), place.room, folder=folder).release()
    dependency = GitDependency(GitRequest(url=second.path.as_uri()), "second", place)
    with pytest.raises(SourceError, match=REFUSED):
        dependency.place(lambda _: None, cancel=threading.Event(), line=lambda _: None)
    assert list(folder.iterdir()) == []


def test_what_earlier_builds_fetched_makes_no_build_fail(tmp_path: Path) -> None:
    repository = served(tmp_path, "a/a.git", 500_000)
    mirror = GitMirror(str(tmp_path / "cache"))
    url = repository.path.as_uri()
    for _ in range(3):
        said: list[str] = []
        fetch(url, FetchRoom(MIB * 5 // 4), mirror=mirror, said=said).release()
        repository.commit({"noise0": os.urandom(500_000)})
        repository.push("main")
    assert "Fetching the repository anew: its copy in the cache is too large" in said


def test_what_is_too_large_does_not_stay_in_the_cache(tmp_path: Path) -> None:
    with closing(HttpServer(tmp_path / "all")) as http:
        with_submodules(tmp_path, ["one"], http.base)
        url = http.url("team/app.git")
        mirror = GitMirror(str(tmp_path / "cache"))
        with pytest.raises(SourceError, match=REFUSED):
            fetch(url, FetchRoom(MIB), mirror=mirror, submodules=True)
        assert list((tmp_path / "cache").glob("*/0")) == []
        before = len(http.requests)
        with pytest.raises(SourceError, match=REFUSED):
            fetch(url, FetchRoom(MIB), mirror=mirror, submodules=True)
        packs = [
            one for one in http.requests[before:] if one == "POST /one/one.git/git-upload-pack"
        ]
        assert len(packs) <= 2  # refs and pack: nothing is fetched twice


def test_a_checkout_that_failed_counts_for_the_quota_of_the_cache(tmp_path: Path) -> None:
    with closing(HttpServer(tmp_path / "all")) as http:
        with_submodules(tmp_path, ["one", "two"], http.base)
        (tmp_path / "all/two").rename(tmp_path / "all/gone")
        mirror = GitMirror(str(tmp_path / "cache"), quota_bytes=1)
        with pytest.raises(SourceError, match="two"):
            fetch(http.url("team/app.git"), None, mirror=mirror, submodules=True)
        mirror.trim()
    assert list((tmp_path / "cache").glob("*/0")) == []


def test_files_of_submodules_count_for_the_quota_of_the_cache(tmp_path: Path) -> None:
    with closing(HttpServer(tmp_path / "all")) as http:
        with_submodules(tmp_path, ["one"], http.base)
        mirror = GitMirror(str(tmp_path / "cache"), quota_bytes=MIB)  # its repositories have less
        fetch(http.url("team/app.git"), None, mirror=mirror, submodules=True).release()
        mirror.trim()
    assert list((tmp_path / "cache").glob("*/0")) == []


def test_a_question_of_the_server_has_the_limit_for_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = served(tmp_path, "a/a.git", 100_000, files=50)
    old = git(repository.work, "rev-parse", "HEAD")
    new = repository.commit({"noise0": b""})
    repository.push("main")
    request = GitRequest(url=repository.path.as_uri())
    arguments = {"from_merge_base": False, "place": GitPlace(), "cancel": threading.Event()}
    assert changed_files(request, old, new, **arguments) == ("noise0",)  # type: ignore[arg-type]
    monkeypatch.setattr(source, "_MOST_BYTES", 10_000)
    with pytest.raises(SourceError, match=REFUSED):
        changed_files(request, old, new, **arguments)  # type: ignore[arg-type]


class SlowLfs(HttpServer):
    """Sends a file of LFS in small pieces, until the client hangs up.

    Attributes:
        hung_up: set when the client did.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hung_up = threading.Event()
        handler = self._server.RequestHandlerClass
        send = handler._send  # type: ignore[attr-defined]

        def send_slowly(
            own: SimpleHTTPRequestHandler, status: int, headers: object, body: bytes
        ) -> None:
            if own.command != "GET" or "/info/lfs/" not in own.path:
                send(own, status, headers, body)
                return
            own.send_response(200)
            own.send_header("Content-Length", str(1 << 40))
            own.end_headers()
            with suppress(OSError):
                until_s = time.monotonic() + HELD_S
                while time.monotonic() < until_s:
                    own.wfile.write(bytes(256 << 10))
                    self.hung_up.wait(0.02)
                return
            self.hung_up.set()

        handler._send = send_slowly  # type: ignore[attr-defined]


@pytest.mark.parametrize("reason", ["limit", "cancelled"])
def test_a_file_of_lfs_ends_while_it_comes(tmp_path: Path, folder: Path, reason: str) -> None:
    program("git-lfs", "git-lfs")
    repository = Repository(tmp_path / "served")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\n"
    repository.commit(
        {
            ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
            "big.bin": f"{pointer}size {1 << 40}\n".encode(),
        }
    )
    repository.push("main")
    with closing(SlowLfs(repository.root)) as http:
        http.lfs_objects = {"0" * 64: b""}
        cancel = threading.Event()
        if reason == "cancelled":
            http.on_request = lambda line: cancel.set() if f"objects/{'0' * 64}" in line else None
        with pytest.raises(SourceError, match=REFUSED if reason == "limit" else "was cancelled"):
            fetch_git(
                GitRequest(url=http.url(), options=GitOptions(lfs=True)),
                mirror=None,
                cancel=cancel,
                allow_host=lambda _: True,
                temporary=str(folder),
                room=FetchRoom(2 * MIB if reason == "limit" else 1 << 40),
            )
        assert http.hung_up.wait(HELD_S / 2)
    assert list(folder.iterdir()) == []
