"""Receivers of messages that answer slowly, byte by byte, and what they hold up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from buildrunner.server.context import ServerSettings
from buildrunner.server.http import pinned
from buildrunner.server.http.pinned import NotDelivered, gates
from buildrunner.server.outbox import mail as mail_module
from buildrunner.server.outbox.http import HTTP, HttpMessage
from buildrunner.server.outbox.mail import MAIL, MailMessage
from buildrunner.server.outbox.sender import Delivery, OutboxSender
from buildrunner.sources.policy import SourcePolicy
from buildrunner.store.model.outbox import DELIVERED, Message, NewMessage
from buildrunner.store.sql.store import ServerStore, open_store
from tests.held_secrets import HeldSecrets
from tests.http_receivers import receiver

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
SHORT_S = 0.5
LONG_S = 20.0  # a call that ended before this did not wait for the receiver


class Dripping:
    """A server that never ends what it says: a line in a second, for ever.

    Args:
        line: it says, again and again.
    """

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._ended.is_set():
                connection = self._listener.accept()[0]
                self.connections += 1
                one = threading.Thread(target=self._drip, args=(connection,))
                self._threads.append(one)
                one.start()

    def _drip(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while True:
                connection.sendall(self._line)
                if self._ended.wait(0.1):
                    return

    def close(self) -> None:
        """End it."""
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def dripping(line: bytes) -> Iterator[Dripping]:
    """A running one."""
    running = Dripping(line)
    try:
        yield running
    finally:
        running.close()


def delivery() -> Delivery:
    policy = SourcePolicy(hosts=("127.0.0.1",))
    settings = ServerSettings(notify=policy, sources=policy)
    return Delivery(HeldSecrets(), gates(settings), lambda: NOW)


def a_message(kind: str, call: msgspec.Struct) -> Message:
    return Message(
        id=1,
        key="key",
        lane="n",
        kind=kind,
        project_id="p",
        build_id="",
        target="",
        message=msgspec.to_builtins(call),
        created_at=NOW,
        next_try=NOW,
    )


def mail_to(port: int) -> MailMessage:
    return MailMessage(
        server="127.0.0.1",
        port=port,
        sender="ci@example.com",
        recipients=("dev@example.com",),
        subject="s",
        body="b",
        date=NOW,
    )


@pytest.mark.parametrize("line", [b"X", b"HTTP/1.1 200 OK\r\nX", b"X: x\r\n"])
def test_a_receiver_that_drips_its_headers_is_left_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(pinned, "LONGEST_CALL_S", SHORT_S)
    with dripping(line) as server:
        call = HttpMessage(url=f"http://127.0.0.1:{server.port}/hook")
        begun = time.monotonic()
        with pytest.raises(NotDelivered) as refused:
            delivery().deliver(a_message(HTTP, call))
    assert time.monotonic() - begun < LONG_S
    assert refused.value.no_answer


def test_a_receiver_that_drips_its_body_is_left_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pinned, "LONGEST_CALL_S", SHORT_S)
    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n") as server:
        call = HttpMessage(url=f"http://127.0.0.1:{server.port}/hook")
        begun = time.monotonic()
        with pytest.raises(NotDelivered, match=r"it takes more than 0\.5 s"):
            delivery().deliver(a_message(HTTP, call))
    assert time.monotonic() - begun < LONG_S


def test_a_mail_server_that_never_ends_its_greeting_is_left_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mail_module, "_LONGEST_MAIL_S", SHORT_S)
    with dripping(b"220-welcome\r\n") as server:
        begun = time.monotonic()
        with pytest.raises(NotDelivered, match=r"takes more than 0\.5 s"):
            delivery().deliver(a_message(MAIL, mail_to(server.port)))
    assert time.monotonic() - begun < LONG_S


def test_an_answer_of_few_bytes_does_not_become_many() -> None:
    with receiver() as server:
        delivery().deliver(a_message(HTTP, HttpMessage(url=server.url)))
        assert server.received[0].headers["accept-encoding"] == "identity"


def test_slow_receivers_of_one_project_leave_threads_to_others(tmp_path: Path) -> None:
    with closing(open_store(f"sqlite:///{tmp_path}/server.db")) as store, receiver() as other:
        with dripping(b"X") as slow:
            for number in range(40):
                put(store, "hostile", f"http://127.0.0.1:{slow.port}/{number}")
            put(store, "other", other.url)
            sender = OutboxSender(store, delivery(), [], now=lambda: NOW, random=lambda: 0.5)
            sender.begin_sending()
            begun = time.monotonic()
            while not store.outbox.count(DELIVERED) and time.monotonic() - begun < LONG_S:
                threading.Event().wait(0.02)
            assert [one.path for one in other.received] == ["/"]
            assert slow.connections <= 4
        assert sender.wait_until_idle(LONG_S)


def put(store: ServerStore, project: str, url: str) -> None:
    call: dict[str, Any] = msgspec.to_builtins(HttpMessage(url=url))
    new = NewMessage(
        key=url,
        lane=url,
        kind=HTTP,
        project_id=project,
        build_id="",
        target="hook",
        message=call,
    )
    store.outbox.put(new, now=NOW)
