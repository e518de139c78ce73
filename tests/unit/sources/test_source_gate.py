"""Where a fetch may go once names are looked up, and that git goes there and nowhere else."""

import threading

import pytest

from buildrunner.errors import SourceError
from buildrunner.sources.git.errors import GitFailed
from buildrunner.sources.git.request import GitRequest
from buildrunner.sources.git.source import fetch_git
from buildrunner.sources.policy import SourceGate, SourcePolicy, registry_refusal
from tests.fixtures_git import DaemonServer, HttpServer, Repository, closing

PUBLIC = "93.184.216.34"


class Names:
    """A resolver whose answers change, as those of an attacker's would."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, host):
        self.asked.append(host)
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
    assert names.asked == ["git.example.com"]
    resolve = "http.curloptResolve"
    assert gate.pin("https://git.example.com/x.git") == (resolve, f"git.example.com:443:{PUBLIC}")
    assert gate.pin("http://git.example.com:8080/x") == (resolve, f"git.example.com:8080:{PUBLIC}")
    assert gate.pin("ssh://git.example.com/x") is None
    assert gate.pin("https://other.example.com/x") is None


def test_what_is_allowed_by_name_needs_no_look_up():
    names = Names(["10.0.0.1"])
    for policy in (SourcePolicy(hosts=("git.inner.test",)), SourcePolicy(private=True)):
        assert SourceGate(policy, names).allows("git.inner.test")
    assert names.asked == []
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
        (SourcePolicy(), "no-such-name.example.invalid", False),
        (SourcePolicy(hosts=("127.0.0.1",)), "127.0.0.1:5000", False),
        (SourcePolicy(private=True), "10.1.2.3", False),
    ],
)
def test_strangers_images_come_from_no_private_registry(policy, registry, refused):
    assert bool(registry_refusal(policy, registry)) == refused
