"""Where a fetch may go once names are looked up, and that git goes there and nowhere else."""

import hashlib
import json
import os
import ssl
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from buildrunner.addresses import in_turns
from buildrunner.deadline import Deadline
from buildrunner.engine.image_pulls import PublicImages
from buildrunner.errors import ImagePullError, SourceError
from buildrunner.sources.git import lfs as lfs_module
from buildrunner.sources.git.checkout import GitOptions, check_lfs_hosts
from buildrunner.sources.git.command import GitCommand
from buildrunner.sources.git.credentials import GitCredentials
from buildrunner.sources.git.errors import GitFailed
from buildrunner.sources.git.lfs import LfsTransfers, _GitTransport
from buildrunner.sources.git.source import GitRequest, fetch_git, git_for_request
from buildrunner.sources.git.url import parse_git_url
from buildrunner.sources.policy import SourceGate, SourcePolicy, registry_refusal
from tests.fixtures_git import DaemonServer, HttpServer, Repository, SshServer, closing

PUBLIC = "93.184.216.34"
NAME = "git.rebinding.test"


class Names:
    """A resolver whose answers change, as those of an attacker's would."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requested = []

    def __call__(self, host):
        self.requested.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize(
    ("addresses", "allowed"),
    [
        ([PUBLIC], True),
        ([PUBLIC, "2606:2800:220:1::1"], True),
        (["10.0.0.1"], False),
        ([PUBLIC, "127.0.0.1"], False),
        (["169.254.169.254"], False),
        (["::1"], False),
        (["::ffff:127.0.0.1"], False),
    ],
)
def test_a_name_is_judged_by_all_its_addresses(addresses, allowed):
    gate = SourceGate(SourcePolicy(), Names(addresses))
    assert gate.allows("git.example.com") is allowed


def test_a_name_is_looked_up_once_and_git_is_told_what_was_found():
    names = Names([PUBLIC], ["127.0.0.1"])
    gate = SourceGate(SourcePolicy(), names)
    assert gate.allows("git.example.com")
    assert gate.allows("git.example.com")
    assert names.requested == ["git.example.com"]
    resolve = "http.curloptResolve"
    assert gate.pin("https://git.example.com/x.git") == (resolve, f"git.example.com:443:{PUBLIC}")
    assert gate.pin("http://git.example.com:8080/x") == (resolve, f"git.example.com:8080:{PUBLIC}")
    address = ("BUILDRUNNER_SSH_ADDRESSES", f"git.example.com={PUBLIC}")
    assert gate.pin("ssh://git@git.example.com:2222/x") == address
    assert gate.pin("git@git.example.com:x") == address
    with pytest.raises(SourceError, match=r"other\.example\.com has no address"):
        gate.pin("https://other.example.com/x")


def test_what_is_allowed_by_name_needs_no_look_up():
    names = Names(["10.0.0.1"])
    for policy in (SourcePolicy(hosts=("git.inner.test",)), SourcePolicy(private=True)):
        assert SourceGate(policy, names).allows("git.inner.test")
    assert names.requested == []
    assert not SourceGate(SourcePolicy(), names).allows("127.0.0.1")
    assert not SourceGate(SourcePolicy(), names).allows("localhost")
    assert not SourceGate(SourcePolicy(), names).allows("")
    assert SourceGate(SourcePolicy(files=True), names).allows("")


def test_a_name_that_nobody_knows_is_one_sentence():
    def unknown(_host):
        raise OSError(-2, "Name or service not known")

    with pytest.raises(GitFailed, match=r"host git.example.com can't be found") as caught:
        SourceGate(SourcePolicy(), unknown).allows("git.example.com")
    assert caught.value.kind == "network"


def git_for(policy, tmp_path, url="https://git.example.com/x"):
    """The door to Git within a policy, when every name is at `PUBLIC`."""
    gate = SourceGate(policy, Names([PUBLIC]))
    place = {"allow_host": gate.allows, "pin": gate.pin}
    return git_for_request(GitRequest(url=url), threading.Event(), None, **place)


@pytest.mark.parametrize(
    "url",
    ["https://{}./x", "http://{}.:80/x", "ssh://git@{}./x", "git@{}.:x", "git://{}./x"],
)
def test_no_dot_behind_a_name_has_git_look_it_up_again(tmp_path, url):
    """Git and ssh know the judged address under the name without it."""
    git = git_for(SourcePolicy(), tmp_path)
    with pytest.raises(SourceError, match="is not the host of a Git repository"):
        git.check_host(url.format(NAME))
    with pytest.raises(SourceError, match="is not the host of a Git repository"):
        git_for(SourcePolicy(), tmp_path, url.format(NAME))


def test_the_host_of_a_submodule_is_pinned_as_it_is_written(tmp_path):
    git = git_for(SourcePolicy(), tmp_path)
    git.check_host(f"git://me@{NAME.upper()}/x.git")
    requested = f"git://me@{NAME.upper()}/x.git"
    assert git.run("ls-remote", "--get-url", requested).strip() == f"git://{PUBLIC}:9418/x.git"


@pytest.fixture
def ssh_calls(tmp_path, monkeypatch):
    """An ssh that notes its arguments; it places ``alias.test`` at ``real.test``."""
    calls = tmp_path / "calls"
    calls.touch()
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -G ]; then\n'
        '  host=${2##*@}; [ "$host" != alias.test ] || host=real.test; echo "hostname $host"\n'
        f'else echo "$@" >>{calls}; exit 255; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return lambda: calls.read_text()


@pytest.mark.parametrize("url", ["ssh://git@other.test/x", "git@other.test:x"])
def test_ssh_reaches_no_host_that_was_not_judged(tmp_path, ssh_calls, url):
    for policy in (SourcePolicy(), SourcePolicy(hosts=("git.test",))):
        git = git_for(policy, tmp_path, "ssh://git@git.test/x")
        with pytest.raises(GitFailed):
            git.run("ls-remote", url)
        assert ssh_calls() == ""


def test_ssh_reaches_a_host_that_is_allowed_wherever_it_is(tmp_path, ssh_calls):
    git = git_for(SourcePolicy(hosts=("git.test",)), tmp_path, "ssh://git@git.test/x")
    door = git.with_settings([], {})
    door.check_host("git@judged.test:x")  # as for a submodule: all copies of the door know it
    for url in ("ssh://git@git.test/x", "git@judged.test:x"):
        with pytest.raises(GitFailed):
            git.run("ls-remote", url)
    first, second = ssh_calls().splitlines()
    assert "HostName" not in first
    assert f"HostName={PUBLIC}" in second


def test_a_host_that_the_user_s_ssh_configuration_places_elsewhere_is_reached_there(
    tmp_path, ssh_calls
):
    git = git_for(SourcePolicy(), tmp_path, "ssh://git@alias.test/x")
    with pytest.raises(GitFailed):
        git.run("ls-remote", "ssh://git@alias.test/x")
    assert "HostName" not in ssh_calls()
    assert "git@alias.test" in ssh_calls()


@pytest.mark.parametrize("serve", [HttpServer, DaemonServer])
def test_git_connects_to_the_address_that_was_judged(tmp_path, serve):
    repository = Repository(tmp_path / "served")
    commit = repository.commit({"README": b"one\n"})
    repository.push("main")
    with closing(serve(repository.root)) as server:
        # The name exists nowhere: only the pinned address can lead to the server.
        url = server.url().replace("127.0.0.1", "git.rebinding.test")
        gate = SourceGate(SourcePolicy(), Names(["127.0.0.1"]))
        gate.allows("git.rebinding.test")
        checkout = fetch_git(
            GitRequest(url=url.replace("team/shop", repository.name.removesuffix(".git"))),
            mirror=None,
            cancel=threading.Event(),
            allow_host=lambda _host: True,
            pin=gate.pin,
            temporary=str(tmp_path),
        )
        assert checkout.resolved.commit_sha == commit
        checkout.release()
        with pytest.raises(SourceError, match="are not allowed here"):
            fetch_git(
                GitRequest(url=url),
                mirror=None,
                cancel=threading.Event(),
                allow_host=gate.allows,
                pin=gate.pin,
            )


CONTENT = b"large " * 1000


def fetch_lfs(tmp_path, lfs, lfs_base, monkeypatch, objects=None):
    """Fetch a commit with a file of LFS, whose server is known by a judged name only."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "nobody.test")  # alone, it is no proxy
    server, oid, name = lfs
    server.lfs_objects = objects or {oid: CONTENT}
    server.lfs_base = lfs_base
    gate = SourceGate(SourcePolicy(), Names(["127.0.0.1"]))
    gate.allows(NAME)
    url = server.url(name).replace("127.0.0.1", NAME)
    return fetch_git(
        GitRequest(url=url, options=GitOptions(lfs=True)),
        mirror=None,
        cancel=threading.Event(),
        allow_host=lambda host: host == NAME,
        pin=gate.pin,
        temporary=str(tmp_path),
    )


@pytest.fixture
def lfs(tmp_path):
    """A server of a repository with a file of LFS, and the id of the file."""
    repository = Repository(tmp_path / "served")
    oid = hashlib.sha256(CONTENT).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\n"
    repository.commit(
        {
            ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
            "big.bin": f"{pointer}size {len(CONTENT)}\n".encode(),
        }
    )
    repository.push("main")
    with closing(HttpServer(repository.root)) as server:
        yield server, oid, repository.name


def test_git_lfs_connects_to_the_address_that_was_judged(tmp_path, lfs, monkeypatch):
    server = lfs[0]
    checkout = fetch_lfs(tmp_path, lfs, f"http://{NAME}:{server.port}", monkeypatch)
    assert (Path(checkout.folder) / "big.bin").read_bytes() == CONTENT
    checkout.release()


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "other.rebinding.test"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_lfs_server_leads_to_a_host_that_is_not_allowed(
    tmp_path, lfs, monkeypatch, host, scheme
):
    requested = []
    judge = GitCommand.addresses_of

    def addresses_of(git, url):
        requested.append(url)
        return judge(git, url)

    monkeypatch.setattr(GitCommand, "addresses_of", addresses_of)
    with pytest.raises(SourceError):
        fetch_lfs(tmp_path, lfs, f"{scheme}://{host}", monkeypatch)
    assert any("/lfs/objects/batch" in request for request in lfs[0].requests)
    assert any(url.startswith(f"{scheme}://{host}") for url in requested)


class Victim(ThreadingHTTPServer):
    """A service of the machine itself. It notes what is requested of it."""

    daemon_threads = True
    trickles = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Victim)
        self.requests = []
        self.headers = []


class _Victim(BaseHTTPRequestHandler):
    def _any(self):
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.headers.append(self.headers)
        self.send_response(200)
        while self.server.trickles:
            self.wfile.write(b"X-More: and more\r\n")
            time.sleep(0.05)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    do_GET = do_POST = _any  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def victim():
    made = Victim()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize(
    "base",
    [
        *("http://127.0.0.1", "http://localhost", "HTTP://LOCALHOST", "http://me@127.0.0.1"),
        *("http://127.1", "http://[::ffff:127.0.0.1]", "http://2130706433"),
    ],
)
def test_no_lfs_server_leads_to_a_service_of_the_machine(tmp_path, lfs, victim, monkeypatch, base):
    """git-lfs connects to loopback addresses around any proxy."""
    with pytest.raises(SourceError):
        fetch_lfs(tmp_path, lfs, f"{base}:{victim.server_port}", monkeypatch)
    assert victim.requests == []
    assert any("/lfs/objects/batch" in request for request in lfs[0].requests)


@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("what", ["batch", "objects/"])
def test_no_redirect_of_an_lfs_server_leads_to_a_service_of_the_machine(
    tmp_path, lfs, victim, monkeypatch, status, what
):
    server = lfs[0]
    server.lfs_redirect = (what, status, f"http://127.0.0.1:{victim.server_port}")
    with pytest.raises(SourceError):
        fetch_lfs(tmp_path, lfs, f"http://{NAME}:{server.port}", monkeypatch)
    assert victim.requests == []
    assert any(what in request for request in server.requests)


def test_no_more_of_a_file_is_read_than_its_pointer_says(tmp_path, lfs, monkeypatch):
    server, oid, _ = lfs
    with pytest.raises(SourceError, match="is larger than 6,000 bytes"):
        fetch_lfs(tmp_path, lfs, f"http://{NAME}:{server.port}", monkeypatch, {oid: CONTENT + b"?"})


def test_a_server_says_by_ssh_where_files_of_lfs_are_and_with_which_login(
    tmp_path, lfs, monkeypatch
):
    server, oid, name = lfs
    server.lfs_objects = {oid: CONTENT}
    server.users = {"me": "pw"}
    href = f"{server.url(name)}/info/lfs"
    said = {"href": href, "header": {"Authorization": "Basic bWU6cHc="}}
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$1" != -G ] || {{ echo hostname git.test; exit; }}\n'
        f"echo \"$@\" >>{tmp_path}/calls\necho '{json.dumps(said)}'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    policy = SourcePolicy(hosts=("git.test", "127.0.0.1"))
    git = git_for(policy, tmp_path, "ssh://git@git.test:2222/team/shop")
    folder = str(tmp_path / "work")
    git.run("init", "--quiet", folder)
    git.run("remote", "add", "origin", git.url.text, folder=folder)
    with LfsTransfers(git) as transfers:
        for _ in range(2):
            path = transfers.download(folder, oid, len(CONTENT))
            assert Path(path).read_bytes() == CONTENT
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.endswith("-p 2222 -- git@git.test git-lfs-authenticate /team/shop download")


def test_no_program_of_ssh_is_asked_for_files_on_a_host_that_was_not_judged(tmp_path, ssh_calls):
    git = git_for(SourcePolicy(hosts=("git.test",)), tmp_path, "ssh://git@git.test/x")
    folder = str(tmp_path / "work")
    git.run("init", "--quiet", folder)
    git.run("remote", "add", "origin", "ssh://git@other.test/x", folder=folder)
    with LfsTransfers(git) as transfers, pytest.raises(GitFailed):
        transfers.download(folder, "0" * 64, 1)
    assert ssh_calls() == ""


@pytest.mark.parametrize("url", ["ssh://-oProxyCommand=touch%20x@git.test/x", "ssh://-Fx/x"])
def test_no_lfs_server_is_an_option_of_ssh(tmp_path, ssh_calls, url):
    """Issue: old versions of ssh ran the command, as the user of the server."""
    git = git_for(SourcePolicy(hosts=("git.test",)), tmp_path, "ssh://git@git.test/x")
    folder = str(tmp_path / "work")
    git.run("init", "--quiet", folder)
    git.run("remote", "add", "origin", "ssh://git@git.test/x", folder=folder)
    Path(folder, ".lfsconfig").write_text(f"[lfs]\n\turl = {url}\n")
    with LfsTransfers(git) as transfers, pytest.raises(SourceError):
        transfers.download(folder, "0" * 64, 1)
    assert ssh_calls() == ""


def test_a_setting_of_lfs_has_one_line(tmp_path):
    """Issue: git-lfs takes the second line for a setting of its own."""
    repository = Repository(tmp_path / "served")
    value = '"x\\nlfs.url=ssh://-oProxyCommand=x@git.test/x"'
    commit = repository.commit({".lfsconfig": f"[lfs]\n\tfetchinclude = {value}\n".encode()})
    git = git_for(SourcePolicy(hosts=("git.test",)), tmp_path, "ssh://git@git.test/x")
    with pytest.raises(SourceError, match="has a line end"):
        check_lfs_hosts(git, str(repository.work), commit)


@pytest.fixture
def transport(tmp_path, monkeypatch):
    """Return the headers and TLS settings for LFS servers, by the Git settings of a file."""

    def made(settings):
        (tmp_path / "gitconfig").write_text(settings)
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
        git = git_for(SourcePolicy(hosts=("127.0.0.1",)), tmp_path, "http://127.0.0.1/x")
        found = _GitTransport(git, threading.Lock(), {}, stack.enter_context(Deadline(60)))
        stack.callback(found.close)
        return found

    with ExitStack() as stack:
        yield made


def test_lfs_uses_the_tls_settings_of_each_host(transport):
    """Issue: a host that an LFS server named was not verified either."""
    used = transport('[http "https://lfs.test"]\n\tsslVerify = false\n')
    assert used.tls(httpx.URL("https://lfs.test/x")).verify_mode == ssl.CERT_NONE
    assert used.tls(httpx.URL("https://objects.test/x")).verify_mode == ssl.CERT_REQUIRED


def test_lfs_shows_the_client_certificate_of_a_host_to_that_host(tmp_path, transport):
    missing = tmp_path / "missing.pem"
    used = transport(f'[http "https://lfs.test"]\n\tsslCert = {missing}\n')
    with pytest.raises(SourceError, match=r"missing\.pem: .*No such file"):
        used.tls(httpx.URL("https://lfs.test/x"))
    used.tls(httpx.URL("https://objects.test/x"))


def test_extra_headers_go_to_the_host_that_git_s_settings_name(tmp_path, transport, victim):
    here = f"http://127.0.0.1:{victim.server_port}"
    used = transport(
        f'[http "{here}/team"]\n\textraHeader = X-Token: of the team\n'
        "[http]\n\textraHeader = X-Token: of another host\n"
    )
    with httpx.Client(transport=used) as client:
        client.get(f"{here}/team/x", headers={"X-Other": "kept"})
        client.get(f"{here}/elsewhere")
    seen = [headers.get("X-Token") for headers in victim.headers]
    assert seen == ["of the team", None]
    assert victim.headers[0]["X-Other"] == "kept"


def test_an_extra_header_without_a_url_goes_to_the_host_of_the_repository(transport):
    used = transport("[http]\n\textraHeader = X-Token: t\n")
    assert used._extra_headers("http://127.0.0.1/x/info/lfs") == [("X-Token", "t")]
    assert used._extra_headers("http://127.0.0.1:81/x/info/lfs") == []
    assert used._extra_headers("https://objects.test/x") == []


def test_an_lfs_server_that_trickles_is_left(tmp_path, lfs, monkeypatch):
    monkeypatch.setattr(lfs_module, "_ANSWERS_S", 1.0)
    monkeypatch.setattr(lfs_module, "_SLOWEST_BYTES_PER_S", 1 << 30)
    monkeypatch.setattr(Victim, "trickles", True)
    made = Victim()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(SourceError, match="takes longer than 1 s"):
            fetch_lfs(tmp_path, lfs, f"http://{NAME}:{made.server_port}", monkeypatch)
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("trust", ["file", "fingerprint"])
def test_ssh_connects_to_the_address_that_was_judged(tmp_path, trust):
    repository = Repository(tmp_path / "served")
    commit = repository.commit({"README": b"one\n"})
    repository.push("main")
    with closing(SshServer(repository.root, tmp_path / "ssh")) as server:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(f"[git.rebinding.test]:{server.port} {server.host_key}\n")
        trusted = {"known_hosts": str(known_hosts)}
        if trust == "fingerprint":
            trusted = {"host_fingerprints": (server.fingerprint,)}
        # The name exists nowhere: only the judged address can lead to the server.
        url = server.url(repository.name).replace("127.0.0.1", "Git.rebinding.test")
        # Nothing listens at the first address, as where a host has IPv6 and this machine has none.
        gate = SourceGate(SourcePolicy(), Names(["127.0.0.2", "127.0.0.1"]))
        gate.allows("git.rebinding.test")
        credentials = GitCredentials(ssh_key=str(server.key), **trusted)
        checkout = fetch_git(
            GitRequest(url=url, credentials=credentials),
            mirror=None,
            cancel=threading.Event(),
            allow_host=lambda _host: True,
            pin=gate.pin,
            temporary=str(tmp_path),
        )
        assert checkout.resolved.commit_sha == commit
        checkout.release()


@pytest.mark.parametrize(
    ("addresses", "turns"),
    [
        (["1.1.1.1"], ["1.1.1.1"]),
        (["1::", "2::", "1.1.1.1"], ["1::", "1.1.1.1", "2::"]),
        (["1.1.1.1", "2.2.2.2", "1::", "2::", "3::"], ["1.1.1.1", "1::", "2.2.2.2", "2::", "3::"]),
    ],
)
def test_the_families_of_addresses_take_turns(addresses, turns):
    assert list(in_turns(addresses)) == turns


@pytest.mark.parametrize(
    ("policy", "registry", "refused"),
    [
        (None, "127.0.0.1:5000", False),
        (SourcePolicy(), "127.0.0.1:5000", True),
        (SourcePolicy(), "localhost:5000", True),
        (SourcePolicy(), "10.1.2.3", True),
        (SourcePolicy(), "[::1]:5000", True),
        (SourcePolicy(), "metadata.google.internal", True),
        (SourcePolicy(), "8.8.8.8", False),
        (SourcePolicy(), "168.63.129.16", True),
        (SourcePolicy(), "no-such-name.example.invalid", True),
        (
            SourcePolicy(hosts=("no-such-name.example.invalid",)),
            "no-such-name.example.invalid",
            False,
        ),
        (SourcePolicy(hosts=("127.0.0.1",)), "127.0.0.1:5000", False),
        (SourcePolicy(private=True), "10.1.2.3", False),
    ],
)
def test_strangers_images_come_from_no_private_registry(policy, registry, refused):
    assert bool(registry_refusal(policy, registry)) == refused


def test_a_refused_registry_names_what_allows_it_and_that_does():
    images = PublicImages((), lambda registry: registry_refusal(SourcePolicy(), registry))
    name = "no-such-name.example.invalid:5000/team/app:1"
    with pytest.raises(ImagePullError, match="this machine can't look up") as caught:
        images.check(name)
    assert "serve --allow-source-host no-such-name.example.invalid" in caught.value.hint
    assert 'untrusted = ["no-such-name.example.invalid:5000/team/app"]' in caught.value.hint
    policy = SourcePolicy(hosts=("no-such-name.example.invalid",))
    PublicImages((), lambda registry: registry_refusal(policy, registry)).check(name)
    assert PublicImages(("no-such-name.example.invalid:5000/team/app",), str).allows(name)


def test_a_host_whose_name_is_this_machine_s_is_refused_with_what_allows_it(tmp_path):
    """Debian gives a machine's own name the address 127.0.1.1."""
    gate = SourceGate(SourcePolicy(), Names(["127.0.1.1"]))
    git = GitCommand(parse_git_url("https://git.corp.example/x"), allow_host=gate.allows)
    with pytest.raises(SourceError, match="not allowed here") as caught:
        git.check_host("https://git.corp.example/x")
    assert caught.value.hint.endswith("serve --allow-source-host git.corp.example")
    allowed = SourceGate(SourcePolicy(hosts=("git.corp.example",)), Names(["127.0.1.1"]))
    GitCommand(git.url, allow_host=allowed.allows, pin=allowed.pin).check_host(git.url.text)
