"""A forge's token goes to that forge only: encrypted, and to an address that was judged."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildrunner import wiring
from buildrunner.errors import SecretNotFound, ServerError
from buildrunner.secrets.secret_name import SecretName, forge_token_name
from buildrunner.secrets.secret_scope import Asker, Scope, Use
from buildrunner.server.context import ServerSettings
from buildrunner.server.events.facts import ForgeApi
from buildrunner.server.http.pinned import Gates, NotDelivered, TargetGate, gates
from buildrunner.server.outbox.http import HTTP, HttpMessage
from buildrunner.server.outbox.sender import Delivery, OutboxSender
from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.store.model.outbox import Message
from buildrunner.triggers.events import Repository
from buildrunner.triggers.forge_host import named_forge
from tests.api_server import ApiServer, api_server, now
from tests.fixtures_google import write_certificate
from tests.held_secrets import HeldSecrets, token_name
from tests.http_receivers import Receiver, receiver

SHA = "a" * 40


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return Settings()


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    certificate = tmp_path / "forge.pem"
    write_certificate(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def at(kind: str, url: str) -> Repository:
    return Repository(full_name="acme/app", forge=kind, host=named_forge(kind, url))


def status_call(url: str) -> Message:
    call = HttpMessage(url=f"{url}/api/v1/x", body="{}", token_scheme="token", to_forge=True)
    return Message(
        id=1,
        key="k",
        lane="l",
        kind=HTTP,
        project_id="p",
        build_id="",
        target="",
        message=msgspec.to_builtins(call),
        created_at=now(),
        next_try=now(),
    )


def delivered(secrets: Any, gate: TargetGate, url: str) -> None:
    delivery = Delivery(secrets, Gates(gate, gate), now)
    try:
        delivery.deliver(status_call(url))
    finally:
        delivery.close()


OPEN = TargetGate(SourcePolicy(private=True))


# The names of earlier versions were one and the same for all of these.
ALIKE = ["git.example.com", "git-example.com", "git.example-com", "git-example-com"]


@pytest.mark.parametrize("host", ALIKE)
def test_a_host_whose_name_looks_alike_gets_no_token(settings: Settings, host: str) -> None:
    store = wiring.secret_store(settings)
    for other in ALIKE:
        if other != host:
            store.put(SecretName(forge_token_name(other)), "t0ken", Scope(forge=other))
    store.put(SecretName("status-git-example-com"), "t0ken")
    secrets = wiring.ServerSecrets(settings)
    with pytest.raises(SecretNotFound):
        secrets.value(Asker(use=Use.FORGE, forge=host), forge_token_name(host))
    assert forge_token_name(host) not in secrets.own_names()


def test_a_port_is_part_of_a_host(settings: Settings) -> None:
    store = wiring.secret_store(settings)
    name = forge_token_name("git.example.com:8443")
    store.put(SecretName(name), "t0ken", Scope(forge="git.example.com:8443"))
    secrets = wiring.ServerSecrets(settings)
    for host in ("git.example.com", "git.example.com:8444", "git.example.com-8443"):
        with pytest.raises(SecretNotFound):
            secrets.value(Asker(use=Use.FORGE, forge=host), forge_token_name(host))


def test_the_host_beside_the_token_is_compared_too(settings: Settings) -> None:
    name = forge_token_name("git.example.com")
    wiring.secret_store(settings).put(SecretName(name), "t0ken", Scope(forge="evil.example.com"))
    with pytest.raises(SecretNotFound, match=r"is not the token of git\.example\.com"):
        wiring.ServerSecrets(settings).value(Asker(use=Use.FORGE, forge="git.example.com"), name)


def test_api_in_front_of_a_host_is_another_host() -> None:
    """Only of the public forges it is known to be the same."""
    secrets = HeldSecrets(**{"forge-example_com": "t0ken"})
    with receiver() as elsewhere:
        gate = TargetGate(SourcePolicy(private=True), lambda _: ["127.0.0.1"])
        with pytest.raises(NotDelivered):
            delivered(secrets, gate, f"https://api.example.com:{elsewhere.port}")
        assert elsewhere.received == []


def test_a_token_goes_to_its_host_encrypted(tls: ssl.SSLContext) -> None:
    with receiver(tls) as forge:
        secrets = HeldSecrets(**{token_name(forge.url): "t0ken"})
        delivered(secrets, OPEN, forge.url)
        assert forge.received[0].headers["authorization"] == "token t0ken"


def test_no_token_leaves_this_machine_unencrypted() -> None:
    with receiver() as forge:
        url = f"http://git.example.com:{forge.port}"
        secrets = HeldSecrets(**{token_name(url): "t0ken"})
        gate = TargetGate(SourcePolicy(hosts=("git.example.com",)), lambda _: ["127.0.0.1"])
        with pytest.raises(NotDelivered, match=r"no token is sent to git\.example\.com") as refused:
            delivered(secrets, gate, url)
        assert refused.value.is_final
        assert forge.received == []
        ForgeApi(secrets, gate).may_write(at("gitlab", url), "7", "eve")  # asked without it
        assert "authorization" not in forge.received[0].headers


def test_a_proxy_gets_no_token_of_a_forge_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as forge:
        monkeypatch.setenv("http_proxy", proxy.url)
        secrets = HeldSecrets(**{token_name(forge.url): "t0ken"})
        delivered(secrets, OPEN, forge.url)
        assert proxy.received == []
        assert len(forge.received) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"])
def test_a_forge_at_a_private_address_must_be_allowed(address: str) -> None:
    gate = TargetGate(SourcePolicy(), lambda _: [address])
    secrets = HeldSecrets(**{"forge-git_example_com": "t0ken"})
    with pytest.raises(NotDelivered, match="a private address"):
        delivered(secrets, gate, "https://git.example.com")
    with pytest.raises(ServerError, match="may not ask"):
        ForgeApi(secrets, gate).may_write(at("gitea", "https://git.example.com"), "7", "eve")


def test_the_gate_of_forges_is_that_of_sources_and_says_how_to_open_it() -> None:
    settings = ServerSettings(sources=SourcePolicy(hosts=("a",)), notify=SourcePolicy(hosts=("b",)))
    gates(settings).forges.check_name("a")
    with pytest.raises(NotDelivered, match=r"serve --allow-source-host 10\.0\.0\.1"):
        gates(settings).forges.check_name("10.0.0.1")


class Rebinding:
    """A name that is at a public address when it is judged, and here ever after."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.requested = 0

    def __call__(self, _: str) -> list[str]:
        self.requested += 1
        return [self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]]


def test_what_was_judged_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def no_second_look(host: Any, *_: Any, **__: Any) -> Any:
        connected.append(host)
        raise OSError("the test connects to nothing")

    connected: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", no_second_look)
    secrets = HeldSecrets(**{"forge-git_example_com": "t0ken"})
    for call in (
        lambda gate: delivered(secrets, gate, "https://git.example.com"),
        lambda gate: ForgeApi(secrets, gate).may_write(
            at("gitea", "https://git.example.com"), "7", "eve"
        ),
    ):
        name = Rebinding("93.184.216.34", "127.0.0.1")
        connected.clear()
        with pytest.raises((NotDelivered, ServerError)):
            call(TargetGate(SourcePolicy(), name))
        assert name.requested == 1
        assert connected == ["93.184.216.34"]


# -- statuses that wait for their token ------------------------------------------------------------


class Place:
    """A server, and a forge at 127.0.0.1."""

    def __init__(self, server: ApiServer, forge: Receiver) -> None:
        self.server, self.forge = server, forge
        delivery = Delivery(server.secrets, gates(server.context.settings), now)
        reporter = StatusReporter(server.secrets, dict, server.store.outbox.changed_build)
        self.sender = OutboxSender(server.store, delivery, [reporter], now=now, random=lambda: 0.5)

    def waiting(self) -> list[Message]:
        return list(self.server.store.outbox.page(state="waiting"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    sources = SourcePolicy(hosts=("127.0.0.1",))
    with api_server(tmp_path, sources=sources) as server, receiver() as forge:
        made = Place(server, forge)
        yield made
        made.sender.stop()


def reported(place: Place) -> None:
    reporter = StatusReporter(place.server.secrets, dict, lambda _: None)
    labels = {"forge": "gitea", "repository": "acme/app", "commit": SHA}
    labels["forge_url"] = place.forge.url
    message = reporter.waiting(labels, "p", "t", url="https://ci/", key="status-1")
    if message is not None:
        place.server.store.outbox.put(message, now=now())


def test_a_status_waits_while_nobody_can_tell_whether_there_is_a_token(place: Place) -> None:
    place.server.secrets[token_name(place.forge.url)] = "t0ken"
    place.server.secrets.broken = "Secret Manager does not answer"
    reported(place)
    place.sender.begin_sending()
    assert place.sender.wait_until_idle(30)
    (waiting,) = place.waiting()
    assert waiting.last_error == "Secret Manager does not answer"
    assert place.forge.received == []
    place.server.secrets.broken = ""
    delivery = Delivery(place.server.secrets, gates(place.server.context.settings), now)
    delivery.deliver(place.server.store.outbox.get(waiting.id))
    delivery.close()
    assert place.forge.received[0].headers["authorization"] == "token t0ken"


def test_without_a_token_there_is_no_status(place: Place) -> None:
    reported(place)
    assert place.waiting() == []


def test_whether_there_is_a_token_is_asked_without_fetching_it(place: Place) -> None:
    class Slow(HeldSecrets):
        def value(self, asker: Asker, name: str) -> str:
            raise AssertionError("fetched")

    slow = Slow(**{token_name(place.forge.url): "t0ken"})
    labels = {"forge": "gitea", "repository": "acme/app", "commit": SHA}
    labels["forge_url"] = place.forge.url
    message = StatusReporter(slow, dict, lambda _: None).waiting(labels, "p", "t", url="", key="k")
    assert message is not None


def test_a_forge_in_clear_is_no_silent_loss_of_statuses(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    url = "http://git.example.com"
    reporter = StatusReporter(HeldSecrets(**{token_name(url): "t0ken"}), dict, lambda _: None)
    labels = {"forge": "gitea", "repository": "acme/app", "commit": SHA, "forge_url": url}
    with caplog.at_level("INFO", "buildrunner.server"):
        assert reporter.waiting(labels, "p", "t", url="", key="k") is None
    assert "no statuses are sent to http://git.example.com: a token is never sent unencrypted" in (
        caplog.text
    )
