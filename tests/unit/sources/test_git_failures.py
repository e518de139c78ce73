"""Every way a fetch can fail ends in one sentence, soon, without secrets and without leftovers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.errors import SourceError
from buildrunner.sources.git.credentials import GitCredentials, GitLogin
from buildrunner.sources.git.errors import explain
from buildrunner.sources.git.mirror import GitMirror
from buildrunner.sources.git.source import GitCheckout, GitRequest, fetch_git
from tests.conftest import program
from tests.fixtures_git import HttpServer, Repository, SshServer, closing, free_port, git

SECRET = "t0ken-of-somebody"
TOKEN = GitCredentials(logins=(GitLogin(password=SECRET),))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository(tmp_path_factory.mktemp("served"))
    repository.commit({"README": b"one\n", "noise": os.urandom(200_000)})
    repository.push("main")
    return repository


@pytest.fixture
def http(repository: Repository) -> Iterator[HttpServer]:
    with closing(HttpServer(repository.root)) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with closing(SshServer(repository.root, tmp_path_factory.mktemp("ssh"))) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetch(
    url: str,
    cache: Path,
    credentials: GitCredentials | None = None,
    cancel: threading.Event | None = None,
    **request: str,
) -> GitCheckout:
    return fetch_git(
        GitRequest(url=url, credentials=credentials, **request),
        mirror=GitMirror(str(cache)),
        cancel=cancel or threading.Event(),
        wait_s=0.01,
    )


def refusal(
    url: str, cache: Path, credentials: GitCredentials | None = None, revision: str = ""
) -> str:
    """The sentence with which a fetch fails, which leaves nothing in the cache."""
    with pytest.raises(SourceError) as caught:
        fetch(url, cache, credentials, revision=revision)
    text = f"{caught.value} {caught.value.hint}"
    assert "\n" not in text
    assert SECRET not in text
    assert checkouts(cache) == []
    return str(caught.value)


def checkouts(cache: Path) -> list[Path]:
    return [path for path in cache.glob("*/*") if path.is_dir()]


class TestCredentials:
    def test_a_token_reaches_the_server_and_nobody_else(self, http: HttpServer, cache: Path):
        http.users = {"x-access-token": SECRET}
        checkout = fetch(http.url(), cache, TOKEN)
        for path in Path(checkout.folder).rglob("*"):
            assert path.is_dir() or SECRET.encode() not in path.read_bytes()
        checkout.release()

    def test_credentials_in_the_url_are_used_and_not_kept(self, http: HttpServer, cache: Path):
        http.users = {"me": SECRET}
        url = http.url().replace("http://", f"http://me:{SECRET}@")
        checkout = fetch(url, cache)
        assert git(checkout.folder, "remote", "get-url", "origin") == http.url()
        assert checkout.provenance.resolved_git_source is not None
        assert checkout.provenance.resolved_git_source.url == http.url()
        assert SECRET not in repr(checkout.log)
        checkout.release()

    def test_netrc(
        self, http: HttpServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        http.users = {"me": SECRET}
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        fetch(http.url(), cache).release()

    def test_the_users_own_credential_helper(
        self, http: HttpServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        http.users = {"me": SECRET}
        stored = tmp_path / "stored"
        stored.write_text(f"http://me:{SECRET}@127.0.0.1%3a{http.port}\n")
        (tmp_path / ".gitconfig").write_text(f"[credential]\nhelper = store --file={stored}\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        fetch(http.url(), cache).release()

    def test_a_given_token_is_not_stored_by_the_users_helper(
        self, http: HttpServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        http.users = {"x-access-token": SECRET}
        stored = tmp_path / "stored"
        (tmp_path / ".gitconfig").write_text(f"[credential]\nhelper = store --file={stored}\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        fetch(http.url(), cache, TOKEN).release()
        assert not stored.exists()

    def test_a_helper_that_stays_holds_nobody_up(
        self, http: HttpServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        http.users = {"me": SECRET}
        helper = tmp_path / "helper"
        helper.write_text(
            f"#!/bin/sh\nsleep 600 > /dev/null &\necho $! > {tmp_path}/stays\n"
            f'test "$1" = get && echo username=me && echo password={SECRET}\nexit 0\n'
        )
        helper.chmod(0o755)
        (tmp_path / ".gitconfig").write_text(f"[credential]\nhelper = {helper}\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        fetch(http.url(), cache).release()
        os.kill(int((tmp_path / "stays").read_text()), signal.SIGKILL)  # it was there all the time

    def test_a_refused_token(self, http: HttpServer, cache: Path):
        http.users = {"x-access-token": "another"}
        text = refusal(http.url(), cache, TOKEN)
        assert text == f"127.0.0.1 refused our credentials for {http.url()} (401)"

    def test_no_credentials_where_some_are_needed(
        self, http: HttpServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        http.users = {"me": SECRET}
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(SourceError) as caught:
            fetch(http.url(), cache)
        assert (
            str(caught.value)
            == f"{http.url()} asks for credentials, and there are none that it takes"
        )
        assert "one in [git.tokens] must begin with http://" in caught.value.hint

    def test_the_token_is_in_no_argv(self, http: HttpServer, cache: Path):
        http.users = {"x-access-token": SECRET}
        seen: list[bytes] = []

        def look() -> None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.append(path.read_bytes())

        http.before_pack = look
        fetch(http.url(), cache, TOKEN).release()
        assert any(b"fetch" in line for line in seen)
        assert not any(SECRET.encode() in line for line in seen)


class TestSsh:
    def test_a_host_that_is_known(self, ssh: SshServer, cache: Path):
        known = GitCredentials(ssh_key=str(ssh.key), known_hosts=str(ssh.known_hosts))
        fetch(ssh.url(), cache, known).release()

    def test_a_host_whose_fingerprint_is_given(self, ssh: SshServer, cache: Path):
        pinned = GitCredentials(ssh_key=str(ssh.key), host_fingerprints=(ssh.fingerprint,))
        fetch(ssh.url(), cache, pinned).release()

    def test_another_fingerprint_is_not_enough(self, ssh: SshServer, cache: Path):
        pinned = GitCredentials(ssh_key=str(ssh.key), host_fingerprints=("SHA256:" + "A" * 43,))
        assert "is not known, and no host is trusted unseen" in refusal(ssh.url(), cache, pinned)

    def test_a_word_that_is_no_fingerprint_runs_nothing(self, ssh: SshServer, cache: Path):
        bad = GitCredentials(host_fingerprints=("'; touch /tmp/owned; '",))
        assert "is not the fingerprint of a host key" in refusal(ssh.url(), cache, bad)

    def test_an_unknown_host_is_not_trusted(self, ssh: SshServer, cache: Path):
        with pytest.raises(SourceError, match="is not known, and no host") as caught:
            fetch(ssh.url(), cache, GitCredentials(ssh_key=str(ssh.key)))
        assert f"`ssh-keyscan -p {ssh.port} 127.0.0.1 >>" in caught.value.hint

    def test_a_key_that_others_may_read(self, ssh: SshServer, cache: Path, tmp_path: Path):
        key = tmp_path / "key"
        shutil.copy(ssh.key, key)
        key.chmod(0o644)
        known = GitCredentials(ssh_key=str(key), known_hosts=str(ssh.known_hosts))
        assert "because others may read its file" in refusal(ssh.url(), cache, known)

    def test_a_host_key_that_has_changed(self, ssh: SshServer, cache: Path, tmp_path: Path):
        other = (ssh.stranger.with_suffix(".pub")).read_text().split()[:2]
        known = tmp_path / "known_hosts"
        known.write_text(f"[127.0.0.1]:{ssh.port} {' '.join(other)}\n")
        credentials = GitCredentials(ssh_key=str(ssh.key), known_hosts=str(known))
        assert "is not the one that is known" in refusal(ssh.url(), cache, credentials)

    def test_a_key_that_is_refused(self, ssh: SshServer, cache: Path):
        stranger = GitCredentials(ssh_key=str(ssh.stranger), known_hosts=str(ssh.known_hosts))
        assert refusal(ssh.url(), cache, stranger).startswith("127.0.0.1 refused our SSH key")


class TestNetwork:
    @pytest.mark.parametrize("status", [500, 502, 503, 429])
    def test_a_server_in_trouble_is_asked_again(self, http: HttpServer, cache: Path, status: int):
        http.refuse = [status, status]
        fetch(http.url(), cache).release()

    def test_a_server_that_stays_in_trouble(self, http: HttpServer, cache: Path):
        http.refuse = [503] * 20
        assert "127.0.0.1 is too busy or broken" in refusal(http.url(), cache)
        assert len(http.requests) == 4

    @pytest.mark.parametrize(
        ("status", "words"),
        [(403, "denies access"), (404, "there is no Git repository"), (401, "credentials")],
    )
    def test_a_refusal_is_not_asked_again(
        self, http: HttpServer, cache: Path, status: int, words: str
    ):
        http.refuse = [status] * 20
        assert words in refusal(http.url(), cache, TOKEN)
        assert len(http.requests) <= 2

    def test_a_cut_in_the_middle_is_fetched_again(self, http: HttpServer, cache: Path):
        http.cut_after = 50_000
        checkout = fetch(http.url(), cache)
        assert (Path(checkout.folder) / "README").read_bytes() == b"one\n"
        assert list(Path(checkout.folder).rglob("tmp_*")) == []
        checkout.release()

    def test_nobody_listens(self, cache: Path):
        assert "the connection to 127.0.0.1 failed" in refusal(
            f"http://127.0.0.1:{free_port()}/x.git", cache
        )

    def test_a_host_that_does_not_exist(self, cache: Path):
        assert "the connection to nosuch.invalid failed" in refusal(
            "https://nosuch.invalid/x.git", cache
        )

    def test_what_ssh_says_is_told_and_not_what_git_adds(self, cache: Path):
        sentence = refusal("git@nosuch.invalid:x.git", cache)
        assert "Could not resolve hostname nosuch.invalid" in sentence
        assert "repository exists" not in sentence

    def test_a_certificate_that_nobody_vouches_for(
        self, repository: Repository, cache: Path, tmp_path: Path
    ):
        pem = tmp_path / "server.pem"
        subprocess.run(
            f"{program('openssl', 'openssl')} req -x509 -newkey rsa:2048 -nodes "
            "-subj /CN=127.0.0.1 "
            f"-addext subjectAltName=IP:127.0.0.1 -keyout {pem} -out {tmp_path}/crt".split(),
            check=True,
            capture_output=True,
        )
        pem.write_text(pem.read_text() + (tmp_path / "crt").read_text())
        with closing(HttpServer(repository.root, certificate=pem)) as server:
            assert "can't be trusted" in refusal(server.url(), cache)


class TestEnds:
    def test_cancel_kills_git(self, http: HttpServer, cache: Path):
        http.stall = threading.Event()
        cancel = threading.Event()

        def press() -> None:
            http.stalled.wait(30)
            cancel.set()

        threading.Thread(target=press).start()
        with pytest.raises(SourceError, match="was cancelled"):
            fetch(http.url(), cache, cancel=cancel)
        assert checkouts(cache) == []
        assert children() == set()

    def test_cancel_while_another_build_holds_the_repository(self, http: HttpServer, cache: Path):
        http.stall = threading.Event()
        first_cancel, second_cancel = threading.Event(), threading.Event()
        failures: list[str] = []

        def first() -> None:
            with pytest.raises(SourceError) as caught:
                fetch(http.url(), cache, cancel=first_cancel)
            failures.append(str(caught.value))

        holder = threading.Thread(target=first)
        holder.start()
        assert http.stalled.wait(30)

        def said(text: str, _: int | None) -> None:
            if "Waiting for another build" in text:
                second_cancel.set()

        with pytest.raises(SourceError, match="was cancelled"):
            fetch_git(
                GitRequest(url=http.url()),
                mirror=GitMirror(str(cache)),
                cancel=second_cancel,
                progress=said,
            )
        first_cancel.set()
        holder.join()
        assert len(failures) == 1

    def test_a_fetch_of_one_project_holds_up_none_of_another(self, http: HttpServer, cache: Path):
        """Issue: a submodule that trickled held up all builds of another project's repository."""
        stall = http.stall = threading.Event()
        cancel = threading.Event()

        def first() -> None:
            with pytest.raises(SourceError):
                fetch_git(
                    GitRequest(url=http.url()),
                    mirror=GitMirror(str(cache), project="evil"),
                    cancel=cancel,
                )

        holder = threading.Thread(target=first)
        holder.start()
        assert http.stalled.wait(30)
        http.stall = None
        fetch_git(
            GitRequest(url=http.url()),
            mirror=GitMirror(str(cache), project="good"),
            cancel=threading.Event(),
        ).release()
        assert holder.is_alive()
        cancel.set()
        stall.set()
        holder.join()

    def test_a_server_that_says_nothing_is_given_up(
        self, http: HttpServer, cache: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("buildrunner.sources.git.checkout._SILENT_S", 0.2)
        http.stall = threading.Event()
        assert "nothing came for 0.2 s" in refusal(http.url(), cache)
        assert children() == set()

    def test_a_full_disk(self, repository: Repository, small_disk: Path):
        cache = small_disk / "cache"
        repository_with_noise = f"file://{repository.path}"
        assert "no space left on the disk" in refusal(repository_with_noise, cache)

    def test_no_git(self, repository: Repository, cache: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PATH", "/nonexistent")
        assert refusal(str(repository.path), cache) == "git is not installed"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 128 KiB of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def children() -> set[str]:
    """Programs that this process has started and that still run."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, tail = path.read_text().rpartition(")")
            state, parent = tail.split()[:2]
            if int(parent) == os.getpid() and state != "Z" and "(git" in head:
                found.add(head)
    return found


def test_a_place_that_is_no_git_host(cache: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n<html>hello</html>")

        threading.Thread(target=answer, daemon=True).start()
        text = refusal(f"http://127.0.0.1:{port}/x", cache)
        assert "has no default branch" in text


def test_a_head_that_names_no_branch(cache: Path, tmp_path: Path):
    """A repository made by `git init --bare` of Debian, to which `main` was pushed."""
    pushed = Repository(tmp_path)
    pushed.commit({"a": b"a"})
    pushed.push("main")
    git(pushed.path, "symbolic-ref", "HEAD", "refs/heads/master")
    with pytest.raises(SourceError, match="its HEAD names one that does not exist") as caught:
        fetch(str(pushed.path), cache)
    assert caught.value.hint == "name a revision; there is main"


def test_nothing_of_the_repository_is_needed_to_remove_the_cache(
    repository: Repository, cache: Path
):
    checkout = fetch(str(repository.path), cache)
    checkout.release()
    checkout.release()
    shutil.rmtree(cache)
    fetch(str(repository.path), cache).release()


def test_the_folder_that_git_does_not_trust_is_named():
    words = (
        "fatal: detected dubious ownership in repository at '/srv/our git/app.git'\n"
        "To add an exception for this directory, call:\n"
    )
    error = explain(words, url="file:///srv/our git/app.git", host="")
    assert "safe.directory '/srv/our git/app.git'`" in error.hint


LFS_FAILURES = [
    ("expected OID eb37, got 4039 after 5000 bytes written", "network", "did not arrive as it was"),
    ("LFS: Repository or object not found: http://h/o/eb37", "lfs", "that h does not have"),
    ("LFS: Authorization error: http://h/o/eb37", "auth", "denies access to the Git LFS files"),
    ('cannot write data to temporary file "/t/x": LFS: unexpected EOF', "network", "unexpected"),
    ('batch response: Expected JSON type, got: "text/html"', "lfs", "h did not give out the Git"),
    ("batch response: Fatal error: Server error: http://h/batch", "network", "did not give out"),
    ("batch response: Fatal error: Server error &{%!!(string=)} from HTTP 503", "network", "503)"),
    ("batch response: LFS: Error", "network", "h did not give out the Git LFS files"),
    ('open "/t/x": no space left on device', "disk", "there is no space left on the disk"),
]


@pytest.mark.parametrize(("why", "kind", "sentence"), LFS_FAILURES)
def test_what_stopped_git_lfs_is_said(why: str, kind: str, sentence: str):
    oid = "eb37" * 16
    said = (
        "Downloading ok.bin (5.0 KB)\n"
        "Error downloading object: a b.bin (eb37): Smudge error: "
        f"Error downloading a b.bin ({oid}): {why}\nUse `git lfs logs last` to view the log.\n"
        "error: external filter 'git-lfs filter-process' failed\n"
        "fatal: a b.bin: smudge filter lfs failed\n"
    )
    failed = explain(said, url="http://h/x.git", host="h")
    assert failed.kind == kind
    assert sentence in str(failed)
    assert "(a b.bin: " in str(failed)
    assert "/t/x" not in str(failed) or kind == "disk"


def test_a_submodule_that_can_not_be_cloned_says_why_without_folders_of_ours():
    said = (
        "Cloning into '/tmp/checkout/libs/x'...\n"
        "fatal: unable to access 'http://h/x.git/': Failed to connect to h port 80\n"
        "fatal: clone of 'http://h/x.git' into submodule path '/tmp/checkout/libs/x' failed\n"
        "Failed to clone 'libs/x' a second time, aborting\n"
    )
    text = str(explain(said, url="http://top/top.git", host="top"))
    assert "connection to h failed while fetching http://h/x.git (unable to access" in text
    assert "/tmp" not in text


def test_a_commit_that_a_shallow_server_lacks_is_an_unknown_revision(
    repository: Repository, cache: Path, tmp_path: Path
):
    old = git(repository.path, "rev-parse", "main")
    git(repository.work, "commit", "-q", "--allow-empty", "-m", "newer")
    repository.push("main:refs/heads/newer")
    served = tmp_path / "shallow.git"
    url = f"file://{repository.path}"
    git(tmp_path, "clone", "-q", "--bare", "--depth=1", "--branch=newer", url, str(served))
    assert refusal(str(served), cache, revision=old) == f"{served} has no revision '{old}'"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "FATAL: R any shop ci DENIED by fallthru\n(or you mis-spelled the reponame)\n",
            "R any shop ci DENIED by fallthru",
        ),
        (
            "remote: \nremote: ====\nremote: \n"
            "remote: ERROR: The project you were looking for could not be found\n"
            "remote: \nremote: ====\nremote: \n",
            "The project you were looking for could not be found",
        ),
        ("Forge: Repository does not exist or you do not have access", "Forge: Repository does"),
    ],
)
def test_a_host_that_speaks_by_ssh_says_in_its_words_that_there_is_nothing(said, shown):
    trailer = (
        "fatal: Could not read from remote repository.\n\nPlease make sure you have the correct "
    )
    trailer += "access rights\nand the repository exists.\n"
    failed = explain(f"{said}\n{trailer}", url="ssh://git@h/shop", host="h")
    assert failed.kind == "missing"
    assert f"or we may not see it ({shown}" in str(failed)


def test_a_proxy_that_refuses_is_named():
    said = "fatal: unable to access 'https://h/x.git/': CONNECT tunnel failed, response 407\n"
    failed = explain(said, url="https://h/x.git", host="h")
    assert failed.kind == "refused"
    assert str(failed).startswith("the proxy does not let us through to h for https://h/x.git (")


def test_why_nothing_came_is_said_and_where_a_redirect_leads():
    slow = "curl 28 Operation too slow. Less than 1000 bytes/sec transferred the last 60 seconds"
    said = f"error: RPC failed; {slow}\nfatal: the remote end hung up unexpectedly\n"
    failed = explain(said, url="http://h/x.git", host="h")
    assert failed.kind == "network"
    assert f"(RPC failed; {slow})" in str(failed)
    said = (
        "fatal: unable to update url base from redirection:\n"
        "  asked for: http://h/x.git/info/refs?service=git-upload-pack\n   redirect: http://h/y\n"
    )
    failed = explain(said, url="http://h/x.git", host="h")
    assert failed.kind == "refused"
    assert str(failed).endswith(" redirect: http://h/y)")


def test_who_asks_for_credentials_is_named_where_git_was_sent_elsewhere():
    said = "fatal: could not read Username for 'http://mirror:8080': terminal prompts disabled\n"
    failed = explain(said, url="https://h/x.git", host="h")
    assert str(failed) == (
        "https://h/x.git asks for credentials, and there are none that it takes (mirror:8080 asks)"
    )
    assert "credential helper for mirror:8080" in failed.hint
    same = explain(said, url="http://mirror:8080/x.git", host="mirror")
    assert str(same).endswith("there are none that it takes")


def test_what_is_no_path_may_be_a_url_without_its_beginning(cache: Path):
    with pytest.raises(SourceError, match="there is no Git repository at") as caught:
        fetch("git.example.com/team/app", cache)
    assert caught.value.hint.endswith("a repository of another machine has a URL, https://...")
