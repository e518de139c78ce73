"""The loop of the outbox: makes messages from changes of builds, and delivers them.

An undelivered message is retried after 10 seconds, 20, 40, ... at most an hour, each with
jitter, so that retries don't coincide. After three days it is given up, and stays visible.
A receiver can request a longer wait (``Retry-After``).

Projects alternate, and no project gets more than a share of the threads: slow receivers of one
project delay no other project.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

import msgspec

from buildrunner.errors import NotFound, SecretError, StoreError
from buildrunner.retry import backoff
from buildrunner.server.bounded import Busy
from buildrunner.server.context import ServerSecrets
from buildrunner.server.http.pinned import Gates, NotDelivered
from buildrunner.server.loop import Loop
from buildrunner.server.outbox.http import HTTP, ForgeInClear, HttpSender, origin_of
from buildrunner.server.outbox.mail import MAIL, MailSender
from buildrunner.store.model.outbox import BuildChange, Message, NewMessage
from buildrunner.store.sql.store import ServerStore

Reporter = Callable[[BuildChange], Sequence[NewMessage]]


FIRST_PAUSE: Final = timedelta(seconds=10)
LONGEST_PAUSE: Final = timedelta(hours=1)
GIVE_UP_AFTER: Final = timedelta(days=3)
LEASE_S: Final = 180.0

_POLL_S = 1.0  # separate processes change builds, and don't wake this loop
_AT_ONCE = 16
_OF_ONE_PROJECT = 4
_LAST_S = 5.0
_CHANGES_AT_ONCE = 100
_BUSY_PAUSE = timedelta(seconds=2)

_log = logging.getLogger("buildrunner.server")


class OutboxSender:
    """The loop's thread, and the sending threads. Call `start` and `stop` once.

    Args:
        store: changes and messages.
        delivery: delivers a message; closed at the end.
        prepared: see `NotifierEvaluation.prepared`; by default every message is ready.
        reporters: return the messages about a change.
        now: returns the time.
        random: returns a number from 0 to 1.
    """

    def __init__(
        self,
        store: ServerStore,
        delivery: Delivery,
        reporters: Sequence[Reporter],
        *,
        prepared: Callable[[Message], Message | None] = lambda message: message,
        now: Callable[[], datetime],
        random: Callable[[], float],
    ) -> None:
        self._store = store
        self._delivery = delivery
        self._prepared = prepared
        self._reporters = reporters
        self._now = now
        self._random = random
        self._backoffs = ReceiverBackoffs()
        self._under_way: Counter[str] = Counter()  # by project
        self._changed = threading.Condition()
        self._loop = Loop("outbox", self._turn, _POLL_S)

    def start(self) -> None:
        """Start the loop."""
        self._loop.start()

    def wake(self) -> None:
        """Check for changes at once. Cheap."""
        self._loop.wake()

    def stop(self) -> None:
        """Stop the loop.

        Messages in transit get a moment to arrive; otherwise the next server resends them.
        """
        self._loop.stop()
        self.wait_until_idle(_LAST_S)
        self._delivery.close()

    def _turn(self) -> None:
        try:
            self.announce()
        finally:
            self.begin_sending()

    def announce(self) -> None:
        """Make messages from pending changes, in order.

        Raises:
            StoreError: the database does not answer; nothing is lost by it.
        """
        changes = self._store.outbox.changes(limit=_CHANGES_AT_ONCE)
        if not changes:
            return
        made = [(change, self._messages(change)) for change in changes]
        messages = [(change.id, message) for change, found in made for message in found]
        self._store.outbox.announce(changes, messages, now=self._now(), on_refusal=_note_refusal)
        if len(changes) == _CHANGES_AT_ONCE:
            self._loop.wake()  # for the others, after messages have been sent

    def _messages(self, change: BuildChange) -> list[NewMessage]:
        found: list[NewMessage] = []
        for reporter in self._reporters:
            try:
                found += reporter(change)
            except Exception as error:
                if isinstance(error, StoreError) and not error.is_refusal:
                    raise
                _log.exception("outbox: no messages are sent for build %s", change.build_id)
        return found

    def begin_sending(self) -> None:
        """Pass due messages to threads.

        Raises:
            StoreError: the database does not answer; nothing is lost by it.
        """
        with self._changed:
            in_hand = dict(self._under_way)
        free = _AT_ONCE - sum(in_hand.values())
        if free <= 0:
            return
        claimed = self._store.outbox.claim(
            now=self._now(), lease_s=LEASE_S, limit=free, share=_OF_ONE_PROJECT, in_hand=in_hand
        )
        for message in claimed:
            with self._changed:
                self._under_way[message.project_id] += 1
            sender = threading.Thread(
                target=self._send, args=(message,), name=f"outbox-{message.id}", daemon=True
            )
            sender.start()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until no message is being sent. Returns whether that happened in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way.total(), timeout_s)

    def _send(self, message: Message) -> None:
        try:
            self.send(message)
        except StoreError as error:
            # It may have arrived. It is sent again when the claim expires, under the same key.
            _log.warning("outbox: %s", error)
        finally:
            with self._changed:
                self._under_way -= Counter([message.project_id])  # drop zeros
                self._changed.notify_all()
            self._loop.wake()

    def send(self, message: Message) -> None:
        """Deliver a claimed message, or record the failure.

        Raises:
            StoreError: the result could not be stored.
        """
        receiver = receiver_of(message)
        pause = self._backoffs.of(receiver, self._now())
        if pause is not None:
            self._store.outbox.put_off(message, next_try=pause.until, error=pause.why, tried=False)
            return
        try:
            ready = self._prepared(message)
            if ready is None:
                with suppress(NotFound):
                    self._store.outbox.drop(message.id)
                return
            self._delivery.deliver(ready)
        except NotDelivered as error:
            if error.no_answer:
                self._backoffs.begin(receiver, self._now(), str(error))
            self._not_delivered(message, error)
        except StoreError:
            raise
        except Busy as error:  # mostly, only the message's own project is busy
            until = self._now() + _BUSY_PAUSE
            self._store.outbox.put_off(message, next_try=until, error=str(error), tried=False)
        except Exception as error:  # noqa: BLE001  (a sender's thread must not die of one message)
            _log.exception("outbox: message %s", message.id)
            self._not_delivered(message, NotDelivered(f"internal error: {type(error).__name__}"))
        else:
            self._backoffs.end(receiver)
            self._store.outbox.delivered(message, now=self._now())

    def _not_delivered(self, message: Message, error: NotDelivered) -> None:
        now = self._now()
        pause = max(pause_before(message.attempts, self._random()), error.wait or timedelta())
        if error.is_final or now + pause > message.created_at + GIVE_UP_AFTER:
            _log.warning("outbox: gave up telling %s: %s", message.target, error)
            self._store.outbox.give_up(message, error=str(error), now=now)
            return
        _log.info("outbox: %s: %s; again in %s", message.target, error, pause)
        self._store.outbox.put_off(message, next_try=now + pause, error=str(error))


def _note_refusal(message: NewMessage, error: StoreError) -> None:
    _log.error("outbox: a message is not sent for build %s: %s", message.build_id, error)


def pause_before(attempts: int, random: float) -> timedelta:
    """Return the time to wait before the next attempt.

    Args:
        attempts: number of tries before the failed one.
        random: from 0 to 1, for a jitter of a fifth either way.
    """
    pause = backoff(attempts + 1, FIRST_PAUSE, LONGEST_PAUSE)
    return pause * (0.8 + 0.4 * random)


class Delivery:
    """Delivers messages. Thread-safe; `close` it.

    Args:
        secrets: the secrets of the server and its projects.
        gates: decide where messages may go.
        now: returns the time.
    """

    def __init__(self, secrets: ServerSecrets, gates: Gates, now: Callable[[], datetime]) -> None:
        self._http = HttpSender(secrets, gates, now)
        mail = MailSender(secrets, gates.notifiers)
        self._senders = {HTTP: self._http.send, MAIL: mail.send}

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._http.close()

    def deliver(self, message: Message) -> None:
        """Deliver a message.

        Raises:
            NotDelivered: the message did not arrive.
        """
        send = self._senders.get(message.kind)
        if send is None:
            raise NotDelivered(f"nobody sends messages of kind {message.kind}", is_final=True)
        try:
            send(message)
        except ForgeInClear as error:
            raise NotDelivered(str(error), is_final=True) from error
        except SecretError as error:
            raise NotDelivered(str(error)) from error
        except msgspec.ValidationError as error:
            text = f"the message is of another version: {error}"
            raise NotDelivered(text, is_final=True) from error


FIRST_BACKOFF: Final = timedelta(seconds=5)
LONGEST_BACKOFF: Final = timedelta(minutes=1)


class ReceiverBackoff(msgspec.Struct, frozen=True):
    """The pause of an unresponsive receiver: its end, the failures in a row, the reason."""

    until: datetime
    failures: int
    why: str


class ReceiverBackoffs:
    """The pauses of all receivers. Thread-safe; each process has its own.

    A pause that ended more than `LONGEST_BACKOFF` ago is deleted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backoffs: dict[str, ReceiverBackoff] = {}

    def of(self, receiver: str, now: datetime) -> ReceiverBackoff | None:
        """Return the current pause of a receiver; None for none."""
        pause = self._backoffs.get(receiver)
        return pause if pause is not None and pause.until > now else None

    def begin(self, receiver: str, now: datetime, why: str) -> None:
        """Record that a receiver does not answer. Concurrent calls count as one failure."""
        with self._lock:
            before = self._backoffs.get(receiver)
            if before is not None and before.until > now:
                return
            failures = before.failures + 1 if before is not None else 1
            length = backoff(failures, FIRST_BACKOFF, LONGEST_BACKOFF)
            self._backoffs = {
                name: pause
                for name, pause in self._backoffs.items()
                if pause.until + LONGEST_BACKOFF > now
            }
            self._backoffs[receiver] = ReceiverBackoff(now + length, failures, why)

    def end(self, receiver: str) -> None:
        """Record that a receiver answers."""
        with self._lock:
            self._backoffs.pop(receiver, None)


def receiver_of(message: Message) -> str:
    """Return the receiver: a project's address, or the secret of the project that has the address.

    The result names the project: a project can make an address fail, which must not delay others.
    """
    call = message.message
    if receiver := call.get("receiver", ""):
        return f"{message.project_id} {receiver}"
    origin = origin_of(str(call.get("url", "")))
    if secret := call.get("url_secret", ""):
        where = f"secret {secret}"
    elif origin:
        where = origin
    else:
        where = f"mail {call.get('server', '')}:{call.get('port', '')}"
    return f"{message.project_id} {where}"
