"""What every way to reach a Git repository must do alike, on real servers."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec, Mount
from buildrunner.errors import SourceError
from buildrunner.sources.git.checkout import GitOptions
from buildrunner.sources.git.credentials import GitCredentials, GitLogin
from buildrunner.sources.git.mirror import GitMirror
from buildrunner.sources.git.source import GitCheckout, GitRequest, fetch_git
from buildrunner.sources.local_folder import LocalFolder
from buildrunner.workspace.fetched import GitWorkspace
from buildrunner.workspace.protocol import Preparation
from buildrunner.workspace.volume import FolderWorkspace
from tests.fixtures_git import (
    DaemonServer,
    DulwichServer,
    HttpServer,
    PlainServer,
    Shop,
    SshServer,
    closing,
    git,
)

# Without the cache the last steps differ, not the transport.
WAYS = ["path", "file", "http", "ssh", "git", "dulwich", "http, no mirror"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def servers(
    shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[str, GitCredentials | None]]]:
    http = HttpServer(shop.root)
    http.users = {"reader": "p@ss/word?"}
    ssh = SshServer(shop.root, tmp_path_factory.mktemp("ssh"))
    other = DulwichServer(shop.root, shop.name)
    with closing(http), closing(ssh), closing(other), closing(DaemonServer(shop.root)) as daemon:
        yield {
            "path": (str(shop.path), None),
            "file": (f"file://{shop.path}", None),
            "http": (
                http.url(),
                GitCredentials(logins=(GitLogin(username="reader", password="p@ss/word?"),)),
            ),
            "ssh": (
                ssh.url(),
                GitCredentials(ssh_key=str(ssh.key), known_hosts=str(ssh.known_hosts)),
            ),
            "git": (daemon.url(), None),
            "dulwich": (other.url(), None),
        }


class Fetcher:
    """Fetches from one server; every checkout is released at the end."""

    def __init__(
        self, url: str, credentials: GitCredentials | None, mirror: GitMirror | None, tmp: Path
    ) -> None:
        self.url = url
        self.made: list[GitCheckout] = []
        self._credentials = credentials
        self._mirror = mirror
        self._tmp = tmp

    def __call__(self, revision: str = "", **options: int) -> GitCheckout:
        checkout = fetch_git(
            GitRequest(
                url=self.url,
                revision=revision,
                credentials=self._credentials,
                options=GitOptions(**options),
            ),
            mirror=self._mirror,
            cancel=threading.Event(),
            temporary=str(self._tmp),
            wait_s=0.01,
        )
        self.made.append(checkout)
        return checkout


@pytest.fixture(params=WAYS)
def fetch(
    request: pytest.FixtureRequest,
    servers: dict[str, tuple[str, GitCredentials | None]],
    tmp_path: Path,
) -> Iterator[Fetcher]:
    transport, _, without = request.param.partition(", ")
    mirror = None if without else GitMirror(str(tmp_path / "mirror"))
    outside = tmp_path / "temporary"
    outside.mkdir()
    fetcher = Fetcher(*servers[transport], mirror, outside)
    yield fetcher
    for checkout in fetcher.made:
        checkout.release()
    assert list(outside.iterdir()) == []


def read(checkout: GitCheckout, name: str) -> bytes:
    return Path(checkout.folder, name).read_bytes()


class TestGitSource:
    def test_without_a_revision_the_remote_head_is_fetched(self, fetch: Fetcher, shop: Shop):
        checkout = fetch()
        assert read(checkout, "README") == b"three\n"
        assert checkout.resolved.commit_sha == shop.tip
        assert checkout.resolved.branch == "main"
        assert checkout.resolved.tag == ""
        assert checkout.resolved.repo_full_name.endswith("shop")

    def test_a_branch_with_a_slash(self, fetch: Fetcher, shop: Shop):
        checkout = fetch("feature/x")
        assert checkout.resolved.commit_sha == shop.feature
        assert checkout.resolved.branch == "feature/x"
        assert read(checkout, "feature") == b"x\n"

    def test_a_light_tag(self, fetch: Fetcher, shop: Shop):
        checkout = fetch("light")
        assert (checkout.resolved.commit_sha, checkout.resolved.tag) == (shop.first, "light")
        assert checkout.resolved.branch == ""

    def test_an_annotated_tag_is_peeled_and_its_object_is_there(self, fetch: Fetcher, shop: Shop):
        checkout = fetch("v1.0")
        assert checkout.resolved.commit_sha == shop.second
        assert git(checkout.folder, "rev-parse", "HEAD") == shop.second
        assert git(checkout.folder, "rev-parse", "refs/tags/v1.0") == shop.tag_object
        assert git(checkout.folder, "describe") == "v1.0"

    def test_a_commit_on_a_tip(self, fetch: Fetcher, shop: Shop):
        checkout = fetch(shop.feature.upper())
        assert checkout.resolved.commit_sha == shop.feature
        assert checkout.resolved.branch == ""

    def test_a_commit_that_no_ref_names(self, fetch: Fetcher, shop: Shop):
        checkout = fetch(shop.first)
        assert read(checkout, "README") == b"one\n"
        assert checkout.resolved.commit_sha == shop.first

    def test_a_commit_from_a_server_that_gives_out_only_what_refs_name(
        self, fetch: Fetcher, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ):
        # The older protocol refuses such requests unless the server's owner allows them.
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.version")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "0")
        checkout = fetch(shop.first)
        assert read(checkout, "README") == b"one\n"
        assert git(checkout.folder, "rev-parse", "HEAD") == shop.first

    @pytest.mark.parametrize("which", ["tip", "first"])
    def test_a_short_commit(self, fetch: Fetcher, shop: Shop, which: str):
        sha = getattr(shop, which)
        assert fetch(sha[:9]).resolved.commit_sha == sha

    def test_a_full_ref_on_no_branch(self, fetch: Fetcher, shop: Shop):
        checkout = fetch("refs/pull/1/head")
        assert checkout.resolved.commit_sha == shop.pull
        assert (checkout.resolved.branch, checkout.resolved.tag) == ("", "")
        assert read(checkout, "pull") == b"1\n"

    @pytest.mark.parametrize(
        "revision", ["nosuch", "0" * 40, "abcdef0", "refs/heads/none", "a..b", "--upload-pack=x"]
    )
    def test_an_unknown_revision_is_one_sentence(self, fetch: Fetcher, revision: str):
        with pytest.raises(SourceError, match="has no revision") as caught:
            fetch(revision)
        assert "\n" not in str(caught.value)
        assert "p@ss" not in str(caught.value)

    def test_the_repository_stands_alone_with_a_detached_head_and_no_credentials(
        self, fetch: Fetcher, tmp_path: Path, shop: Shop
    ):
        checkout = fetch("main")
        moved = tmp_path / "elsewhere"
        shutil.copytree(checkout.folder, moved, symlinks=True)
        assert git(moved, "rev-parse", "HEAD") == shop.tip
        assert git(moved, "rev-parse", "origin/main") == shop.tip
        assert git(moved, "status", "--porcelain") == ""
        assert git(moved, "rev-list", "--count", "HEAD") == "1"
        git(moved, "fsck", "--full")
        with pytest.raises(subprocess.CalledProcessError):
            git(moved, "symbolic-ref", "HEAD")
        assert not (moved / ".git/objects/info/alternates").exists()
        config = (moved / ".git/config").read_text()
        assert "p@ss" not in config
        assert "p%40ss" not in config
        assert git(moved, "remote", "get-url", "origin") == fetch.url

    def test_names_of_any_bytes_modes_and_links_survive(self, fetch: Fetcher):
        folder = Path(fetch("main").folder)
        assert (folder / os.fsdecode(b"latin-\xe9\xff.txt")).read_bytes() == b"bytes\n"
        assert (folder / "with space/and\nnewline").read_bytes() == b"odd\n"
        assert (folder / "crlf.txt").read_bytes() == b"a\r\nb\r\n"
        assert stat.S_IMODE((folder / "run.sh").stat().st_mode) == 0o755
        assert stat.S_IMODE((folder / "README").stat().st_mode) == 0o644
        assert str((folder / "outside").readlink()) == "/etc/passwd"
        assert str((folder / "broken").readlink()) == "nowhere/at all"

    def test_history_as_deep_as_asked_for(self, fetch: Fetcher):
        assert git(fetch("main", depth=2).folder, "rev-list", "--count", "HEAD") == "2"
        whole = fetch("main", depth=0).folder
        assert git(whole, "rev-list", "--count", "HEAD") == "3"
        assert git(whole, "rev-parse", "--is-shallow-repository") == "false"

    def test_tags_of_the_history_come_along_when_asked_for(self, fetch: Fetcher):
        whole = fetch("main", depth=0, tags=True).folder
        assert git(whole, "tag").split() == ["light", "v1.0"]
        assert git(whole, "describe", "HEAD").startswith("v1.0-1-g")
        assert git(fetch("main").folder, "tag") == ""

    def test_a_missing_repository_is_one_sentence(self, fetch: Fetcher):
        fetch.url = fetch.url.replace("shop", "nosuch")
        with pytest.raises(SourceError, match="there is no Git repository at") as caught:
            fetch()
        assert "nosuch" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_repository_of_longer_shas(tmp_path: Path, mirrored: bool):
    for folder in ("served", "work"):
        git(tmp_path, "init", "-q", "-b", "main", "--object-format=sha256", folder)
    work = tmp_path / "work"
    git(work, "commit", "-q", "--allow-empty", "-m", "old")
    old = git(work, "rev-parse", "HEAD")
    git(work, "commit", "-q", "--allow-empty", "-m", "new")
    git(work, "push", "-q", "../served", "HEAD:refs/heads/trunk")
    mirror = GitMirror(str(tmp_path / "mirror")) if mirrored else None
    fetcher = Fetcher(f"file://{tmp_path}/served", None, mirror, tmp_path)
    for revision in (old, old[:9], "trunk"):
        checkout = fetcher(revision)
        commit = git(work, "rev-parse", "HEAD") if revision == "trunk" else old
        assert len(commit) == 64
        assert checkout.resolved.commit_sha == git(checkout.folder, "rev-parse", "HEAD") == commit
        checkout.release()


class TestPlainWebServer:
    """A repository behind a server that knows nothing of Git: all of its history comes along."""

    @pytest.fixture
    def plain(self, shop: Shop, tmp_path: Path) -> Iterator[Fetcher]:
        with closing(PlainServer(shop.root, shop.name)) as server:
            fetcher = Fetcher(server.url(), None, GitMirror(str(tmp_path / "mirror")), tmp_path)
            yield fetcher
            for checkout in fetcher.made:
                checkout.release()

    @pytest.mark.parametrize(
        ("revision", "commit"),
        [
            ("", "tip"),
            ("feature/x", "feature"),
            ("v1.0", "second"),
            ("refs/pull/1/head", "pull"),
        ],
    )
    def test_what_refs_name(self, plain: Fetcher, shop: Shop, revision: str, commit: str):
        assert plain(revision).resolved.commit_sha == getattr(shop, commit)

    @pytest.mark.parametrize("length", [9, 40])
    def test_a_commit_that_no_ref_names(self, plain: Fetcher, shop: Shop, length: int):
        checkout = plain(shop.first[:length])
        assert read(checkout, "README") == b"one\n"
        assert git(checkout.folder, "rev-parse", "HEAD") == shop.first

    @pytest.mark.parametrize("revision", ["nosuch", "1" * 40, "abcdef0"])
    def test_an_unknown_revision_is_one_sentence(self, plain: Fetcher, revision: str):
        with pytest.raises(SourceError, match="has no revision"):
            plain(revision)


@pytest.mark.docker
@pytest.mark.parametrize("copy", [False, True], ids=["layers", "copy"])
def test_a_step_sees_the_commit_with_a_repository_that_works(
    docker_engine: DockerEngine, busybox: str, shop: Shop, tmp_path: Path, copy: bool
):
    checkout = fetch_git(
        GitRequest(url=str(shop.path), revision="main"),
        mirror=GitMirror(str(tmp_path / "mirror")),
        cancel=threading.Event(),
    )

    def layers(folder: LocalFolder) -> FolderWorkspace:
        return FolderWorkspace(folder, copy=copy)

    workspace = GitWorkspace(checkout, layers)
    build = f"test-{uuid.uuid4().hex[:12]}"
    try:
        prepared = workspace.prepare(
            Preparation(docker_engine, build, {LABEL_BUILD: build}, threading.Event())
        )
        assert any(shop.tip in line for line in prepared.log)
        container = docker_engine.create_container(
            ContainerSpec(
                image=busybox,
                entrypoint=("sh", "-c", "cat README .git/HEAD && echo changed > README"),
                workdir="/workspace",
                mounts=(Mount(source=prepared.volume, target="/workspace"),),
                network="none",
                labels={LABEL_BUILD: build},
            )
        )
        try:
            output = b"".join(docker_engine.start_container(container, attach=True))
            assert docker_engine.wait_container(container).code == 0
            archive = b"".join(docker_engine.get_archive(container, "/workspace"))
        finally:
            docker_engine.remove_container(container)
        assert output == b"three\n" + shop.tip.encode() + b"\n"
        assert workspace.changed_on_host() == ()
    finally:
        workspace.release()
    assert read(checkout, "README") == b"three\n"
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        tar.extractall(tmp_path / "seen")
    seen = tmp_path / "seen/workspace"
    assert git(seen, "status", "--porcelain") == " M README"
    assert str((seen / "broken").readlink()) == "nowhere/at all"
    git(seen, "fsck", "--full")
