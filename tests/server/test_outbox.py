"""The outbox against a real HTTP server, by a clock that the test moves."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from buildrunner.server.context import ServerSettings
from buildrunner.server.http.pinned import Gates, NotDelivered, TargetGate, gates
from buildrunner.server.outbox.http import (
    DELIVERY,
    HTTP,
    SIGNATURE,
    HttpMessage,
    HttpSender,
    signature,
)
from buildrunner.server.outbox.sender import (
    Delivery,
    OutboxSender,
    ReceiverBackoff,
    ReceiverBackoffs,
    pause_before,
)
from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import NewBuild, StoredBuild
from buildrunner.store.model.outbox import BuildChange, Message, NewMessage
from buildrunner.store.sql.store import ServerStore
from tests.conftest import wait_until
from tests.fixtures_google import write_certificate
from tests.held_secrets import HeldSecrets, token_name
from tests.http_receivers import Answer, Receiver, receiver
from tests.server_databases import new_store

START = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
SHA = "0123456789abcdef0123456789abcdef01234567"
MIDDLE = 0.5  # the random number that changes nothing


def a_message(call: HttpMessage) -> Message:
    return Message(
        id=1,
        key="key",
        lane="n",
        kind=HTTP,
        project_id="p",
        build_id="",
        target="",
        message=msgspec.to_builtins(call),
        created_at=START,
        next_try=START,
    )


class Place:
    """A store, a sender, somebody who listens."""

    def __init__(self, folder: str, listener: Receiver) -> None:
        self.folder = folder
        self.now = START
        self.listener = listener
        self.secrets = HeldSecrets()
        self.lane = "n"
        self.policy = SourcePolicy(hosts=("127.0.0.1",))
        self.store = new_store(folder)
        self.call = HttpMessage(url=f"{listener.url}/hook", body='{"a": 1}')
        self.sender = self.another()

    def another(self) -> OutboxSender:
        """A sender, as another process has it."""
        settings = ServerSettings(notify=self.policy, sources=self.policy)
        delivery = Delivery(self.secrets, gates(settings), lambda: self.now)
        reporters = [
            StatusReporter(self.secrets, dict, self.store.outbox.changed_build),
            self.report,
        ]
        return OutboxSender(
            self.store, delivery, reporters, now=lambda: self.now, random=lambda: MIDDLE
        )

    def report(self, change: BuildChange) -> list[NewMessage]:
        """What is told of builds of project ``told``."""
        if change.project_id != "told":
            return []
        message = NewMessage(
            key=f"n/{change.id}",
            lane=self.lane,
            kind=HTTP,
            project_id="told",
            build_id=change.build_id,
            target="hook",
            message=msgspec.to_builtins(self.call),
        )
        return [message]

    def build(self, project: str = "told", **more: Any) -> str:
        number = len(self.store.builds.page(project).builds)
        document = {
            "id": f"{project}-{number}",
            "projectId": project,
            "status": "QUEUED",
            "createTime": encode_instant(self.now + timedelta(seconds=number)),
            "logUrl": "https://ci.example.com/log",
        }
        request = more.pop("request", {})
        new = NewBuild(document=document, request=request, expires_at=self.now, **more)
        return self.store.builds.create(new).id

    def turn(self, **later: float) -> None:
        self.now += timedelta(**later)
        self.sender.announce()
        self.sender.begin_sending()
        assert self.sender.wait_until_idle(30)

    def waiting(self) -> list[Message]:
        return self.store.outbox.page(state="waiting")

    def close(self) -> None:
        self.sender.stop()
        self.store.close()


@pytest.fixture
def place(tmp_path: Any) -> Iterator[Place]:
    with receiver() as listener:
        made = Place(str(tmp_path), listener)
        yield made
        made.close()


def run(store: ServerStore, status: str, now: datetime) -> None:
    """Let the only build in the queue begin and end."""
    claimed = store.queue.claim("w", now=now - timedelta(days=1), lease_s=9, limit=9)
    assert claimed is not None
    stored, lease = claimed
    working = {**stored.document, "status": "WORKING"}
    store.queue.record(lease, working)
    store.queue.record(lease, {**working, "status": status, "finishTime": encode_instant(now)})


class TestSending:
    def test_what_arrived_is_over(self, place: Place) -> None:
        place.build()
        place.turn()
        (came,) = place.listener.received
        assert (came.method, came.path, came.body) == ("POST", "/hook", b'{"a": 1}')
        assert came.headers["content-type"] == "application/json"
        assert came.headers[DELIVERY.lower()] == came.headers["idempotency-key"] == "n/1"
        assert place.waiting() == []
        place.turn(hours=1)
        assert len(place.listener.received) == 1

    def test_a_body_is_signed_and_a_token_sent_and_neither_is_kept(self, place: Place) -> None:
        place.secrets.hold(key="k3y\n", token="t0ken\n")
        place.call = HttpMessage(
            url=f"{place.listener.url}/hook", body="{}", sign_secret="key", token_secret="token"
        )
        place.build()
        place.sender.announce()
        kept = str(place.store.outbox.page())
        assert "k3y" not in kept
        assert "t0ken" not in kept
        place.turn()
        headers = place.listener.received[0].headers
        assert headers[SIGNATURE.lower()] == signature("k3y", b"{}")
        assert headers[SIGNATURE.lower()].startswith("sha256=")
        assert headers["authorization"] == "Bearer t0ken"

    @pytest.mark.parametrize(
        ("tail", "page"),
        [
            ("/hook/s3cretpath", "No route /hook/s%33cretpath"),
            ("/hook/s3cretpath", "cannot POST &#47;hook&#x2f;S&#51;CRETPATH"),
            ("/hook?key=s3cretvalue", "bad key: s3cretvalue"),
            ("/hook", "not t0ken-12"),
            ("", "not t0ken-12"),
        ],
    )
    def test_a_page_that_repeats_the_address_or_the_token_is_not_kept(
        self, place: Place, tail: str, page: str
    ) -> None:
        place.secrets.hold(url=f"{place.listener.url}{tail}", token="t0ken-12")
        place.call = HttpMessage(url_secret="url", body="{}", token_secret="token")
        place.listener.answer = Answer(404, body=page.encode())
        place.build()
        place.turn()
        (gone,) = place.store.outbox.page(state="given_up")
        assert gone.last_error.startswith("HTTP 404: (its text is not kept")

    def test_what_did_not_arrive_comes_again_in_its_order_once(self, place: Place) -> None:
        place.listener.answer = Answer(503, body=b"down\nfor now")
        place.build()
        place.turn()
        place.build()
        place.turn(seconds=9)
        assert len(place.listener.received) == 1
        (second, first) = place.waiting()
        assert (first.attempts, first.last_error) == (1, "HTTP 503: down for now")
        assert first.next_try == START + timedelta(seconds=10)
        place.turn(seconds=1)
        assert len(place.listener.received) == 2
        place.listener.answer = Answer()
        place.turn(seconds=20)
        place.turn()
        came = [one.headers["idempotency-key"] for one in place.listener.received]
        assert came == ["n/1", "n/1", "n/1", second.key]
        assert place.waiting() == []

    def test_nobody_there_is_a_reason_to_wait(self, place: Place) -> None:
        place.call = HttpMessage(url="http://127.0.0.1:1/hook")
        place.build()
        place.turn()
        (waiting,) = place.waiting()
        assert waiting.state == "waiting"
        assert "refused" in waiting.last_error

    def test_a_receiver_that_does_not_answer_is_left_alone_for_a_moment(self, place: Place) -> None:
        place.call = HttpMessage(url="http://127.0.0.1:1/hook")
        place.build()
        place.turn()
        place.call = HttpMessage(url=f"{place.listener.url}/hook")
        place.lane = "others"
        place.build()
        place.sender.announce()
        place.call = HttpMessage(url="http://127.0.0.1:1/hook")
        place.lane = "the same receiver"
        place.build()
        place.turn(seconds=1)
        assert len(place.listener.received) == 1
        (late, first) = place.waiting()
        assert (first.attempts, late.attempts) == (1, 0)
        assert late.last_error == first.last_error
        assert late.next_try == START + timedelta(seconds=5)
        place.turn(seconds=4)
        assert [one.attempts for one in place.waiting()] == [1, 1]

    @pytest.mark.parametrize("text", ["600", "Fri, 01 May 2026 12:10:00 GMT"])
    def test_a_receiver_gets_the_time_it_asks_for(self, place: Place, text: str) -> None:
        place.listener.answer = Answer(429, {"Retry-After": text})
        place.build()
        place.turn()
        (waiting,) = place.waiting()
        assert waiting.next_try == START + timedelta(minutes=10)

    def test_what_makes_no_sense_of_it_is_ignored(self, place: Place) -> None:
        place.listener.answer = Answer(429, {"Retry-After": "soon"})
        place.build()
        place.turn()
        assert place.waiting()[0].next_try == START + timedelta(seconds=10)

    def test_a_refusal_for_good_is_given_up_at_once(self, place: Place) -> None:
        place.listener.answer = Answer(422, body=b"no such commit")
        place.build()
        place.turn()
        (gone,) = place.store.outbox.page(state="given_up")
        assert gone.last_error == "HTTP 422: no such commit"
        place.listener.answer = Answer()
        place.store.outbox.retry(gone.id, now=place.now)
        place.turn()
        assert place.waiting() == []

    def test_after_three_days_it_is_given_up(self, place: Place) -> None:
        place.listener.answer = Answer(500)
        place.build()
        place.turn()
        while place.store.outbox.page(state="waiting"):
            place.turn(minutes=61)
        (gone,) = place.store.outbox.page(state="given_up")
        assert gone.state == "given_up"
        assert place.now - START < timedelta(days=3, hours=2)
        assert 70 < gone.attempts < 90

    def test_a_certificate_is_checked_by_its_name(
        self, place: Place, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        certificate = tmp_path / "receiver.pem"
        write_certificate(certificate)  # for 127.0.0.1
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        place.policy = SourcePolicy(hosts=("127.0.0.1", "localhost"))
        with receiver(tls) as listener:
            place.call = HttpMessage(url=f"{listener.url}/hook")
            place.build()
            place.sender.stop()
            place.sender = place.another()
            place.turn()
            assert "certificate verify failed" in place.waiting()[0].last_error
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            place.sender.stop()
            place.sender = place.another()
            place.turn(minutes=1)
            assert len(listener.received) == 1
            # The address is the right one, and pinned; it is the name that nobody vouches for.
            place.call = HttpMessage(url=f"https://localhost:{listener.port}/hook")
            place.build()
            place.turn()
            assert "localhost" in place.waiting()[0].last_error
            assert len(listener.received) == 1

    def test_the_next_address_of_a_host_is_called_where_one_does_not_answer(
        self, place: Place
    ) -> None:
        call = HttpMessage(url=f"http://hook.example:{place.listener.port}/hook", body="{}")

        def send(*addresses: str) -> None:
            gate = TargetGate(SourcePolicy(hosts=("hook.example",)), lambda _: addresses)
            sender = HttpSender(place.secrets, Gates(gate, gate), lambda: place.now)
            try:
                sender.send(a_message(call))
            finally:
                sender.close()

        send("127.0.0.2", "127.0.0.1")
        (received,) = place.listener.received
        assert received.headers["host"] == f"hook.example:{place.listener.port}"
        with pytest.raises(NotDelivered, match="does not answer: Connection refused"):
            send("127.0.0.2", "127.0.0.3")

    def test_a_receiver_that_never_ends_its_answer_is_left(self, place: Place) -> None:
        place.listener.answer = Answer(200, body=b"x" * (1 << 20))
        place.build()
        place.turn()
        assert place.waiting() == []

    def test_redirects_are_not_followed(self, place: Place) -> None:
        with receiver() as inside:
            place.listener.answer = Answer(307, {"Location": f"{inside.url}/private"})
            place.build()
            place.turn()
            assert inside.received == []
        (waiting,) = place.waiting()
        assert "redirects, which is not followed" in waiting.last_error

    def test_an_address_that_is_a_secret_is_in_no_error(self, place: Place) -> None:
        place.secrets.hold(url="http://127.0.0.1:1/s3cret")
        place.call = HttpMessage(url_secret="url", body="{}")
        place.build()
        place.turn()
        place.secrets.hold(url="htp:/s3cret")
        place.turn(minutes=1)
        (waiting,) = place.waiting()
        assert waiting.attempts == 2
        assert "s3cret" not in waiting.last_error

    def test_a_token_that_no_header_can_hold_is_named(self, place: Place) -> None:
        place.secrets.hold(token="t0ken\nX-Evil: 1")
        place.call = HttpMessage(url=f"{place.listener.url}/", token_secret="token")
        place.build()
        place.turn()
        (waiting,) = place.waiting()
        assert waiting.last_error == "the secret token holds what no header can"
        assert place.listener.received == []

    def test_a_login_goes_as_such(self, place: Place) -> None:
        place.secrets.hold(token="me:p4ss\n")
        place.call = HttpMessage(url=f"{place.listener.url}/", token_secret="token")
        place.build()
        place.turn()
        assert place.listener.received[0].headers["authorization"] == "Basic bWU6cDRzcw=="

    def test_a_secret_that_is_missing_is_waited_for(self, place: Place) -> None:
        place.call = HttpMessage(url=place.listener.url, sign_secret="later")
        place.build()
        place.turn()
        assert place.waiting()[0].last_error == "there is no secret later"
        place.secrets.hold(later="x")
        place.turn(minutes=1)
        assert len(place.listener.received) == 1

    def test_a_sender_that_was_killed_leaves_its_messages_to_the_next(self, place: Place) -> None:
        place.build()
        place.sender.announce()
        place.store.outbox.claim(now=place.now, lease_s=180, limit=9)  # and dies
        next_one = place.another()
        place.now += timedelta(seconds=179)
        next_one.begin_sending()
        assert next_one.wait_until_idle(30)
        assert place.listener.received == []
        place.now += timedelta(seconds=1)
        next_one.begin_sending()
        assert next_one.wait_until_idle(30)
        next_one.stop()
        assert len(place.listener.received) == 1

    def test_a_reporter_that_fails_is_in_nobody_s_way(self, place: Place) -> None:
        def broken(_: BuildChange, __: StoredBuild | None) -> list[NewMessage]:
            raise ZeroDivisionError

        place.sender._reporters = [broken, *place.sender._reporters]
        place.build()
        place.turn()
        assert len(place.listener.received) == 1

    def test_a_message_that_the_database_refuses_takes_no_other_with_it(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Issue: all messages of that change were given up."""

        def two(change: BuildChange) -> list[NewMessage]:
            (message,) = place.report(change)
            refused = replace(message, key="\0")
            return [refused, replace(message, key=f"second/{change.id}", lane="another")]

        place.sender._reporters = [two, place.report]
        place.build()
        place.turn()
        assert len(place.listener.received) == 2
        assert caplog.text.count("a message is not sent for build told-0") == 1
        assert place.waiting() == place.store.outbox.changes(limit=9) == []

    def test_the_loop_sends_by_itself(self, place: Place) -> None:
        place.build()
        place.sender.start()
        wait_until(lambda: bool(place.listener.received))
        assert len(place.listener.received) == 1


@pytest.mark.parametrize(
    ("attempts", "random", "seconds"),
    [
        (0, 0.5, 10),
        (1, 0.5, 20),
        (5, 0.5, 320),
        (9, 0.5, 3600),
        (9999, 0.5, 3600),
        (0, 0.0, 8),
        (0, 1.0, 12),
    ],
)
def test_pauses_grow_up_to_an_hour(attempts: int, random: float, seconds: float) -> None:
    assert pause_before(attempts, random).total_seconds() == pytest.approx(seconds)


LABELS = {
    "forge": "gitea",
    "repository": "acme/app",
    "commit": SHA,
    "trigger_name": "on-push",
}


class TestStatuses:
    def built(self, place: Place, **labels: str) -> None:
        place.secrets.hold(**{token_name(place.listener.url): "t0ken"})
        source = {"gitSource": {"url": f"{place.listener.url}/acme/app.git"}}
        request = {"source": source, "substitutions": {"TRIGGER_NAME": "on-push"}}
        here = {"forge_url": place.listener.url}  # a forge of one's own is known by its address
        place.build("p", labels={**LABELS, **here, **labels}, request=request)

    def test_a_commit_shows_what_becomes_of_its_build(self, place: Place) -> None:
        self.built(place)
        place.turn()
        run_to = place.store.queue.claim("w", now=START - timedelta(days=1), lease_s=9, limit=9)
        assert run_to is not None
        stored, lease = run_to
        for status in ("WORKING", "FAILURE"):
            place.store.queue.record(lease, {**stored.document, "status": status})
            place.turn()
        came = place.listener.received
        assert {one.path for one in came} == {f"/api/v1/repos/acme/app/statuses/{SHA}"}
        assert [one.json()["state"] for one in came] == ["pending", "pending", "failure"]
        assert {one.json()["context"] for one in came} == {"buildrunner/p/on-push"}
        assert came[0].json()["target_url"] == "https://ci.example.com/log"
        assert came[0].headers["authorization"] == "token t0ken"

    def test_a_forge_that_was_down_for_an_hour_hears_the_outcome_once(self, place: Place) -> None:
        self.built(place)
        place.listener.answer = Answer(502)
        place.turn()
        run(place.store, "SUCCESS", place.now)
        for _ in range(12):
            place.turn(minutes=5)
        place.listener.answer = Answer(201)
        place.listener.received.clear()
        place.turn(minutes=60)
        place.turn(minutes=60)
        (came,) = place.listener.received
        assert came.json()["state"] == "success"
        assert place.waiting() == []

    def test_without_a_token_for_that_host_nothing_is_sent(self, place: Place) -> None:
        self.built(place)
        place.secrets.hold(**{"forge-github_com": "another"})
        place.turn()
        assert place.waiting() == []
        assert place.listener.received == []

    @pytest.mark.parametrize("missing", ["forge", "repository", "commit"])
    def test_a_build_of_no_commit_of_a_forge_is_told_to_nobody(
        self, place: Place, missing: str
    ) -> None:
        self.built(place, **{missing: ""})
        place.turn()
        assert place.listener.received == []

    def test_gitlab_may_know_already(self, place: Place) -> None:
        self.built(place, forge="gitlab")
        said = b'{"message":{"state":["Cannot transition status via :enqueue from :pending"]}}'
        place.listener.answer = Answer(400, body=said)
        place.turn()
        assert len(place.listener.received) == 1
        assert place.waiting() == []


def test_rests_grow_to_a_minute_and_end_with_the_first_answer() -> None:
    rests, now, lengths = ReceiverBackoffs(), START, []
    for _ in range(6):
        rests.begin("r", now, "why")
        rests.begin("r", now, "at the same time")
        rest = rests.of("r", now)
        assert rest is not None
        assert rest.why == "why"
        lengths.append((rest.until - now).total_seconds())
        now = rest.until
        assert rests.of("r", now) is None
    assert lengths == [5, 10, 20, 40, 60, 60]
    rests.end("r")
    rests.begin("r", now, "again")
    assert rests.of("r", now) == ReceiverBackoff(now + timedelta(seconds=5), 1, "again")
    assert rests.of("another", now) is None
