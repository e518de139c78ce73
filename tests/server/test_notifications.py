"""Notifiers against real receivers: HTTP and SMTP servers, the store, the API, the commands."""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from buildrunner.cli.main import main
from buildrunner.server.context import ServerSettings
from buildrunner.server.http.pinned import gates
from buildrunner.server.notifications.dispatch import NotificationService, NotifierEvaluation
from buildrunner.server.outbox.http import SIGNATURE, signature
from buildrunner.server.outbox.sender import Delivery, OutboxSender
from buildrunner.sources.policy import SourcePolicy
from tests.api_server import ApiServer, api_server, now
from tests.fixtures_google import write_certificate
from tests.http_receivers import Answer, Receiver, receiver
from tests.mail_receivers import MailServer, mail_server

Run = Callable[..., tuple[int, str, str]]
STEPS = [{"name": "busybox"}]


class Notified:
    """A server, its sender, somebody who listens."""

    def __init__(self, server: ApiServer, listener: Receiver) -> None:
        self.server = server
        self.listener = listener
        self.later = timedelta()
        self.policy = SourcePolicy(hosts=("127.0.0.1",))
        self.sender = self.another()

    def another(self) -> OutboxSender:
        """A sender, as another process has it."""
        settings = ServerSettings(notify=self.policy)
        delivery = Delivery(self.server.secrets, gates(settings), self.now)
        service = NotificationService(self.server.context)
        return OutboxSender(
            self.server.store,
            delivery,
            [service],
            prepared=NotifierEvaluation(self.server.context.calls, service.argument_of).prepared,
            now=self.now,
            random=lambda: 0.5,
        )

    def now(self) -> Any:
        return now() + self.later

    def notifier(self, name: str = "hook", kind: str = "HTTPNotifier", **fields: Any) -> None:
        fields.setdefault("delivery", {"url": f"{self.listener.url}/hook"})
        secrets = fields.pop("secrets", [])
        document = {
            "apiVersion": "buildrunner/v1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": {"notification": fields, "secrets": secrets},
        }
        path = f"/buildrunner/v1/projects/p/notifiers/{name}"
        answer = self.server.http.put(path, json=document)
        assert answer.status_code == 200, answer.text

    def trigger(self, name: str = "ci") -> None:
        source = {"uri": "https://git.example.com/r", "ref": "refs/heads/main"}
        trigger = {"name": name, "build": {"steps": STEPS}, "sourceToBuild": source}
        answer = self.server.http.post("/v1/projects/p/triggers", json=trigger)
        assert answer.status_code == 200, answer.text

    def build(self, status: str | None = None, trigger: str = "ci", branch: str = "main") -> str:
        """A build of a trigger, in that status."""
        return self.run({"branchName": branch}, status, trigger)

    def run(self, source: dict[str, Any], status: str | None, trigger: str = "ci") -> str:
        """A build of a trigger on a source, in that status."""
        body = {"source": source}
        path = f"/v1/projects/p/locations/global/triggers/{trigger}:run"
        answer = self.server.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        build_id = str(answer.json()["metadata"]["build"]["id"])
        if status:
            self.server.run(build_id, status)
        return build_id

    def turn(self, **later: float) -> None:
        self.later += timedelta(**later)
        self.sender.announce()
        while True:
            before = [(one.id, one.state, one.attempts) for one in self.messages()]
            self.sender.begin_sending()
            assert self.sender.wait_until_idle(30)
            if [(one.id, one.state, one.attempts) for one in self.messages()] == before:
                return

    def messages(self, state: str = "") -> list[Any]:
        return self.server.store.outbox.page(state=state)

    def said(self) -> list[Any]:
        return [one.json() for one in self.listener.received]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Notified]:
    with api_server(tmp_path) as server, receiver() as listener:
        made = Notified(server, listener)
        made.trigger()
        yield made
        made.sender.stop()


class TestEvents:
    def test_each_status_is_told_in_its_order(self, place: Notified) -> None:
        place.notifier()
        build = place.build("SUCCESS")
        place.turn()
        assert [one["status"] for one in place.said()] == ["QUEUED", "WORKING", "SUCCESS"]
        assert {one["id"] for one in place.said()} == {build}
        assert {one["logUrl"] for one in place.said()} == {f"{place.server.url}/builds/p/{build}"}

    def test_nobody_else_s_builds_are_told(self, place: Notified) -> None:
        place.notifier()
        place.server.create("another")
        place.turn()
        assert place.listener.received == []

    def test_bodies_are_signed(self, place: Notified) -> None:
        place.server.secrets["hook-key"] = "k3y\n"
        place.notifier(
            delivery={"url": f"{place.listener.url}/", "signature": {"secretRef": "key"}},
            secrets=[{"name": "key", "value": "hook-key"}],
            filter="build.status == Build.Status.SUCCESS",
        )
        place.build("SUCCESS")
        place.turn()
        (came,) = place.listener.received
        assert came.headers[SIGNATURE.lower()] == signature("k3y", came.body)

    def test_a_receiver_that_is_down_for_an_hour_hears_all_of_it(self, place: Notified) -> None:
        place.notifier()
        place.listener.answer = Answer(503)
        place.build("FAILURE")
        for _ in range(12):
            place.turn(minutes=5)
        place.listener.answer = Answer()
        place.listener.received.clear()
        for _ in range(3):
            place.turn(minutes=60)
        assert [one["status"] for one in place.said()] == ["QUEUED", "WORKING", "FAILURE"]
        assert len(place.messages("delivered")) == 3

    def test_what_was_not_sent_when_the_server_died_is_sent_by_the_next(
        self, place: Notified
    ) -> None:
        place.notifier(filter="build.status == Build.Status.SUCCESS")
        place.build("SUCCESS")
        place.sender.announce()  # and dies
        place.sender = place.another()
        place.turn()
        assert [one["status"] for one in place.said()] == ["SUCCESS"]

    def test_pubsub_messages_are_pushed(self, place: Notified) -> None:
        place.notifier("topic", "PubSubNotifier", filter="build.status == Build.Status.SUCCESS")
        build = place.build("SUCCESS")
        place.turn()
        (came,) = place.said()
        assert came["message"]["attributes"] == {"buildId": build, "status": "SUCCESS"}
        assert json.loads(base64.b64decode(came["message"]["data"]))["id"] == build

    def test_a_template_that_fails_is_seen_with_its_line(self, place: Notified) -> None:
        place.notifier(
            filter="build.status == Build.Status.SUCCESS",
            template={"content": "a\n{{ build.steps[7].name }}"},
        )
        place.build("SUCCESS")
        place.turn()
        (gone,) = place.messages()
        assert gone.state == "given_up"
        assert gone.last_error.startswith("template: line 2: ")
        assert place.listener.received == []

    def test_a_notifier_of_another_version_is_in_nobody_s_way(self, place: Notified) -> None:
        place.server.store.notifiers.put("p", "a", {"apiVersion": "buildrunner/v9"})
        place.notifier(filter="build.status == Build.Status.SUCCESS")
        place.build("SUCCESS")
        place.turn()
        assert len(place.listener.received) == 1

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("http://127.0.0.1:{port}/x", "127.0.0.1 is inside the server's network"),
            ("http://localhost:{port}/x", "localhost is inside the server's network"),
            ("http://[::1]:{port}/x", "::1 is inside the server's network"),
            ("http://169.254.169.254/x", "169.254.169.254 is inside the server's network"),
            ("http://2130706433:{port}/x", "2130706433 is inside the server's network"),
        ],
    )
    def test_private_addresses_need_the_administrator(
        self, place: Notified, url: str, why: str
    ) -> None:
        place.policy = SourcePolicy()
        place.sender.stop()
        place.sender = place.another()
        place.notifier(
            delivery={"url": url.format(port=place.listener.port)},
            filter="build.status == Build.Status.QUEUED",
        )
        place.build()
        place.turn()
        (waiting,) = place.messages("waiting")
        assert waiting.last_error.startswith(why)
        assert "serve --allow-notify-host" in waiting.last_error
        assert place.listener.received == []


class TestChanges:
    def test_only_on_change(self, place: Notified) -> None:
        place.notifier(on="change", template={"content": "{{ build.status }} {{ change }}"})
        for status in ("SUCCESS", "SUCCESS", "FAILURE", "TIMEOUT", "CANCELLED", "SUCCESS"):
            place.build(status)
        place.turn()
        said = [one.body.decode() for one in place.listener.received]
        assert sorted(said) == ["FAILURE broken", "SUCCESS fixed"]

    def test_only_on_recovery(self, place: Notified) -> None:
        place.notifier(on="recovery", template={"content": "{{ build.id }} {{ previous.status }}"})
        for status in ("SUCCESS", "FAILURE"):
            place.build(status)
        fixed = place.build("SUCCESS")
        place.turn()
        assert [one.body.decode() for one in place.listener.received] == [f"{fixed} FAILURE"]

    def test_branches_and_triggers_are_kept_apart(self, place: Notified) -> None:
        place.trigger("nightly")
        place.notifier(on="change", template={"content": "{{ trigger }} {{ ref }}"})
        place.build("FAILURE", branch='fix/"odd"-name')
        place.build("SUCCESS")
        place.build("SUCCESS", trigger="nightly")
        place.turn()
        assert [one.body.decode() for one in place.listener.received] == ['ci fix/"odd"-name']

    def test_whoever_runs_a_trigger_does_not_choose_whose_build_it_is(
        self, place: Notified
    ) -> None:
        """Attack: a run of a fork's commit was told and compared as a build of main."""
        text = "{{ title }} | {{ trigger }} | {{ ref }} | {{ commit }}"
        place.notifier(on="change", template={"content": text})
        genuine = place.build("SUCCESS")
        values = {"BRANCH_NAME": "main", "COMMIT_SHA": "a" * 40, "TRIGGER_NAME": "release"}
        forged = {"substitutions": {**values, "TAG_NAME": "v1", "_PR_NUMBER": "7"}}
        evil = "e" * 40
        place.run({"commitSha": evil, **forged}, "FAILURE")
        place.run({"branchName": "dev", **forged}, "FAILURE")
        last = place.build("SUCCESS")
        place.turn()
        assert sorted(one.body.decode() for one in place.listener.received) == [
            "FAILURE: ci, dev (broken) | ci | dev |",
            f"FAILURE: ci, eeeeeeee (broken) | ci |  | {evil}",
        ]
        http = place.server.http
        for page in ("/builds", "/trends"):
            shown = http.get(page, params={"project": "p", "branch": "main"}).text
            found = set(re.findall(r"/builds/p/([0-9a-f-]{36})", shown))
            assert found == {genuine, last}, page
        of_dev = http.get("/builds", params={"project": "p", "branch": "dev"}).text
        assert len(set(re.findall(r"/builds/p/([0-9a-f-]{36})", of_dev))) == 1
        assert "a" * 40 not in of_dev

    def test_a_build_that_ends_after_a_newer_one_is_passed_over(self, place: Notified) -> None:
        place.notifier(on="change")
        place.build("SUCCESS")
        slow = place.build()
        claimed = place.server.store.queue.claim("slow", now=now(), lease_s=600, limit=1)
        assert claimed is not None
        place.build("SUCCESS")
        stored, lease = claimed
        assert stored.id == slow
        place.server.store.queue.record(
            lease,
            {**stored.document, "status": "FAILURE", "finishTime": now().isoformat()},
        )
        place.turn()
        assert place.listener.received == []


class TestMail:
    def sent(self, place: Notified, mail: MailServer, **more: Any) -> None:
        password = more.pop("password", "")
        delivery = {
            "server": "127.0.0.1",
            "port": mail.port,
            "sender": "ci@example.com",
            "recipients": ["a@example.com", "b@example.com"],
            **more,
        }
        secrets = []
        if password:
            place.server.secrets["smtp"] = f"{password}\n"
            delivery["password"] = {"secretRef": "password"}
            secrets = [{"name": "password", "value": "smtp"}]
        place.notifier(
            "mail",
            "SMTPNotifier",
            filter="build.status == Build.Status.FAILURE",
            delivery=delivery,
            secrets=secrets,
        )
        place.build("FAILURE")
        place.turn()

    def test_a_mail_arrives(self, place: Notified) -> None:
        with mail_server() as mail:
            self.sent(place, mail, **{"from": "Bauläufer <ci@example.com>"})
        (came,) = mail.received
        assert (came.sender, came.recipients) == (
            "ci@example.com",
            ["a@example.com", "b@example.com"],
        )
        message = came.message()
        assert message["Subject"] == "[buildrunner] FAILURE: ci, main (broken)"
        assert message["From"] == "Bauläufer <ci@example.com>"
        assert message["Auto-Submitted"] == "auto-generated"
        assert re.fullmatch(r"<notify\.\d+\.mail@example\.com>", message["Message-ID"])
        assert f"Log: {place.server.url}/builds/p/" in message.get_content()
        assert len(place.messages("delivered")) == 1

    def test_a_password_is_used(self, place: Notified) -> None:
        with mail_server() as mail:
            mail.password = "s3cret"
            self.sent(place, mail, password="s3cret", username="robot")
        assert [one.login for one in mail.received] == ["robot"]

    def test_a_wrong_password_is_tried_again_and_is_in_no_message(self, place: Notified) -> None:
        with mail_server() as mail:
            mail.password = "another"
            self.sent(place, mail, password="s3cret")
            (waiting,) = place.messages("waiting")
            assert waiting.last_error.startswith("the mail server does not take the password: 535")
            assert "s3cret" not in str(waiting)
            mail.password = "s3cret"
            place.turn(minutes=1)
        assert len(mail.received) == 1

    def test_what_needs_tls_is_not_sent_without(self, place: Notified) -> None:
        with mail_server() as mail:
            self.sent(place, mail, tls="starttls")
        (waiting,) = place.messages("waiting")
        assert "offers no STARTTLS" in waiting.last_error
        assert mail.received == []

    @pytest.mark.parametrize("from_start", [False, True], ids=["starttls", "tls"])
    def test_a_password_travels_encrypted_to_a_server_that_somebody_vouches_for(
        self,
        place: Notified,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        from_start: bool,
    ) -> None:
        certificate = tmp_path / "mail.pem"
        write_certificate(certificate)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        with mail_server(tls, from_start=from_start) as mail:
            mail.password = "s3cret"
            self.sent(place, mail, password="s3cret", tls="tls" if from_start else "starttls")
            (waiting,) = place.messages("waiting")
            assert "certificate verify failed" in waiting.last_error
            assert mail.received == []
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            place.turn(minutes=1)
        assert [(one.login, one.encrypted) for one in mail.received] == [("ci@example.com", True)]

    @pytest.mark.parametrize(
        ("answer", "state"), [("451 later", "waiting"), ("554 spam", "given_up")]
    )
    def test_the_server_s_answer_decides(self, place: Notified, answer: str, state: str) -> None:
        with mail_server() as mail:
            mail.answer = answer
            self.sent(place, mail)
        (message,) = place.messages()
        assert (message.state, message.last_error) == (state, answer)

    def test_refused_recipients_are_named(self, place: Notified) -> None:
        with mail_server() as mail:
            mail.refused = {"b@example.com": "550 unknown"}
            self.sent(place, mail)
        assert [one.recipients for one in mail.received] == [["a@example.com"]]
        (message,) = place.messages()
        assert message.state == "given_up"
        assert message.last_error == "it arrived, but not at b@example.com: 550 unknown"

    def test_nobody_is_left(self, place: Notified) -> None:
        with mail_server() as mail:
            mail.refused = dict.fromkeys(("a@example.com", "b@example.com"), "450 busy")
            self.sent(place, mail)
            (message,) = place.messages("waiting")
            assert "a@example.com: 450 busy" in message.last_error

    def test_nobody_answers(self, place: Notified) -> None:
        with mail_server() as mail:
            pass
        self.sent(place, mail)
        (message,) = place.messages("waiting")
        assert message.last_error.startswith(f"the mail server 127.0.0.1:{mail.port} does not")


class TestApi:
    path = "/buildrunner/v1/projects/p/notifiers"

    def test_would_this_notify(self, place: Notified) -> None:
        place.notifier(
            filter="build.status == Build.Status.FAILURE", template={"content": "{{ title }}"}
        )
        build = place.build("SUCCESS")
        http = place.server.http
        found = http.post(f"{self.path}/hook:test", json={}).json()
        assert (found["notifies"], found["status"], found["buildId"]) == (False, "SUCCESS", build)
        assert found["rules"][-1]["text"].startswith("the filter is false")
        requested = {"buildId": build, "status": "FAILURE"}
        found = http.post(f"{self.path}/hook:test", json=requested).json()
        assert found["notifies"] is True
        assert found["message"]["body"] == "FAILURE: ci, main (broken)"
        place.turn()
        assert place.listener.received == []

    def test_a_filter_knows_the_branch_that_the_server_knows(self, place: Notified) -> None:
        place.notifier(filter='ref == "main" && commit == ""')
        forged = {"substitutions": {"BRANCH_NAME": "main"}}
        runs = ({"branchName": "main"}, {"branchName": "dev", **forged}, {"commitSha": "e" * 40})
        for source, expected in zip(runs, (True, False, False), strict=True):
            requested = {"buildId": place.run(source, None)}
            found = place.server.http.post(f"{self.path}/hook:test", json=requested).json()
            assert found["notifies"] is expected, found

    def test_a_notifier_can_be_tried_before_it_is_kept(self, place: Notified) -> None:
        place.build("SUCCESS")
        notifier = {
            "apiVersion": "buildrunner/v1",
            "kind": "SlackNotifier",
            "metadata": {"name": "x"},
            "spec": {
                "notification": {
                    "delivery": {"webhookUrl": "https://example.com"},
                    "template": {"content": "{{ build.substitutions._NONE }}"},
                }
            },
        }
        requested = {"notifier": notifier}
        found = place.server.http.post(f"{self.path}:test", json=requested).json()
        assert found["notifies"] is False
        assert found["problem"] == "template: line 1: there is no field '_NONE'"
        assert place.server.store.notifiers.of_project("p") == {}

    def test_a_bug_that_one_notifier_meets_leaves_the_others_speaking(
        self, place: Notified
    ) -> None:
        place.notifier(name="bad")
        place.notifier(name="good")
        place.build("SUCCESS")
        place.sender.announce()
        place.server.store.notifiers.put("p", "bad", {"spec": "of another version"})
        place.turn()
        assert {one["status"] for one in place.said()} == {"QUEUED", "WORKING", "SUCCESS"}
        problems = {one.last_error for one in place.messages("given_up")}
        assert problems == {"internal error, see the server's log: ValidationError"}

    def test_a_trial_is_sent_whatever_the_rules_say(self, place: Notified) -> None:
        place.notifier(filter="false")
        place.build("SUCCESS")
        answer = place.server.http.post(f"{self.path}/hook:send", json={})
        assert answer.json()["state"] == "waiting"
        place.turn()
        assert [one["status"] for one in place.said()] == ["SUCCESS"]

    @pytest.mark.parametrize(
        ("method", "path", "body", "code", "said"),
        [
            ("GET", "/none", None, 404, "there is no notifier none in project p"),
            ("DELETE", "/none", None, 404, "there is no notifier none in project p"),
            ("POST", "/none:test", {}, 404, "there is no notifier none in project p"),
            ("POST", "/hook:test", {"buildId": "x"}, 404, "there is no build of that id here"),
            ("POST", "/hook:test", {}, 400, "project p has no build to try it on"),
            ("POST", "/hook:test", {"status": "BAD"}, 400, "there is no status BAD; there are"),
            ("PUT", "/hook", {"kind": 1}, 400, "text is wanted here, not a number"),
            ("PUT", "/hook", [], 400, ""),
        ],
    )
    def test_what_can_not_be(
        self, place: Notified, method: str, path: str, body: Any, code: int, said: str
    ) -> None:
        place.notifier()
        answer = place.server.http.request(method, f"{self.path}{path}", json=body)
        assert answer.status_code == code, answer.text
        assert said in answer.json()["error"]["message"]

    def test_the_path_and_the_notifier_agree(self, place: Notified) -> None:
        place.notifier()
        document = place.server.http.get(f"{self.path}/hook").json()
        answer = place.server.http.put(f"{self.path}/other", json=document)
        assert answer.status_code == 400
        assert "the path names other, the notifier is called hook" in answer.text
        assert place.server.http.delete(f"{self.path}/hook").status_code == 200
        assert place.server.http.get(self.path).json() == {"notifiers": []}

    def test_the_outbox_is_its_project_s(self, place: Notified) -> None:
        place.notifier(filter="build.status == Build.Status.QUEUED")
        build = place.build()
        place.listener.answer = Answer(404, body=b"gone")
        place.turn()
        http, path = place.server.http, "/buildrunner/v1/projects/p/outbox"
        (found,) = http.get(path, params={"buildId": build, "state": "given_up"}).json()["messages"]
        assert "buildrunner_outbox_given_up 1.0" in http.get("/metrics").text
        assert found["reason"] == "HTTP 404: gone"
        assert found["target"] == "hook: HTTPNotifier to 127.0.0.1"
        assert http.get("/buildrunner/v1/projects/q/outbox").json() == {"messages": []}
        one = f"/buildrunner/v1/projects/q/outbox/{found['id']}"
        assert http.get(one).status_code == 404
        assert http.post(f"{one}:retry").status_code == 404
        assert http.delete(one).status_code == 404
        assert http.get(path, params={"state": "lost"}).status_code == 400
        assert http.get(f"{path}/{1 << 70}").status_code == 404
        shown = http.get(f"{path}/{found['id']}").json()
        assert shown["message"] == {"notifier": "hook", "receiver": place.listener.url}
        place.listener.answer = Answer()
        assert http.post(f"{path}/{found['id']}:retry").json()["state"] == "waiting"
        place.turn()
        assert http.get(f"{path}/{found['id']}").json()["state"] == "delivered"
        again = http.post(f"{path}/{found['id']}:retry")
        assert (again.status_code, "arrived already" in again.text) == (400, True)
        assert http.delete(f"{path}/{found['id']}").status_code == 200

    def test_who_may_what(self, tmp_path: Path) -> None:
        with api_server(tmp_path, auth=True) as server:
            reader = {"Authorization": f"Bearer {server.token('r', 'read')}"}
            get = [self.path, "/buildrunner/v1/projects/p/outbox"]
            codes = [server.http.get(path, headers=reader).status_code for path in get]
            assert codes == [200, 200]
            acts = [
                ("PUT", f"{self.path}/hook"),
                ("DELETE", f"{self.path}/hook"),
                ("POST", f"{self.path}/hook:send"),
                ("POST", f"{self.path}:test"),
                ("POST", "/buildrunner/v1/projects/p/outbox/1:retry"),
                ("DELETE", "/buildrunner/v1/projects/p/outbox/1"),
            ]
            for method, path in acts:
                answer = server.http.request(method, path, headers=reader, json={})
                assert answer.status_code == 403, path

    def test_addresses_of_receivers_are_shown_to_admins_only(self, tmp_path: Path) -> None:
        """Attack: a holder of `read` takes the address of a webhook, which is a secret itself."""
        url = "https://alice:hunter2@hooks.example.com:8443/services/T0/B0/s3cret?key=k3y"
        with api_server(tmp_path, auth=True) as server:
            may = {
                scope: {"Authorization": f"Bearer {server.token(scope, scope)}"}
                for scope in ("read", "submit", "admin")
            }
            path = "/buildrunner/v1/projects/p/notifiers/hook"
            document = {
                "apiVersion": "buildrunner/v1",
                "kind": "HTTPNotifier",
                "metadata": {"name": "hook"},
                "spec": {"notification": {"delivery": {"url": url}}, "secrets": []},
            }
            made = server.http.put(path, json=document, headers=may["admin"])
            assert made.status_code == 200, made.text
            builds, body = "/v1/projects/p/builds", {"steps": STEPS}
            assert server.http.post(builds, json=body, headers=may["submit"]).status_code == 200
            sent = server.http.post(f"{path}:send", json={}, headers=may["admin"]).json()
            asked = [
                ("GET", self.path),
                ("GET", path),
                ("POST", f"{path}:test"),
                ("GET", f"/buildrunner/v1/projects/p/outbox/{sent['id']}"),
                ("GET", "/buildrunner/v1/projects/p/outbox"),
            ]
            shown = {}
            for scope in ("read", "admin"):
                shown[scope] = [
                    server.http.request(
                        method, one, headers=may[scope], json={} if method == "POST" else None
                    ).text
                    for method, one in asked
                ]
            page = server.http.get("/outbox", params={"project": "p"}, headers=may["read"]).text
            for text in (*shown["read"], page):
                for secret in ("alice", "hunter2", "s3cret", "k3y"):
                    assert secret not in text
            assert ["https://hooks.example.com:8443/***" in one for one in shown["read"]] == [
                True,
                True,
                True,
                True,
                False,
            ]
            assert [url in one for one in shown["admin"]] == [True, True, True, True, False]
            masked = json.loads(shown["read"][1])
            refused = server.http.put(path, json=masked, headers=may["admin"])
            assert refused.status_code == 400
            assert "this is a masked address" in refused.text

    def test_no_login_of_an_address_is_the_receiver_of_a_message(self, place: Notified) -> None:
        host = place.listener.url.removeprefix("http://")
        place.notifier(delivery={"url": f"http://alice:hunter2@{host}/hook"})
        place.build()
        place.sender.announce()
        (message,) = place.messages()
        stored = place.server.store.outbox.get(message.id)
        assert stored.message["receiver"] == place.listener.url
        place.turn()
        assert len(place.listener.received) == 1


@pytest.fixture
def run(
    place: Notified,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        server = ("--server", place.server.url, "--project", "p")
        code = main(["notifications", *arguments, *server])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


CONFIG = """\
apiVersion: cloud-build-notifiers/v1
kind: SlackNotifier
metadata:
  name: slack
spec:
  notification:
    filter: build.status == Build.Status.FAILURE
    params:
      buildStatus: $(build.status)
    delivery:
      webhookUrl:
        secretRef: webhook-url
    template:
      type: golang
      uri: TEMPLATE
  secrets:
  - name: webhook-url
    value: projects/p/secrets/slack/versions/latest
---
apiVersion: cloud-build-notifiers/v1
kind: SMTPNotifier
metadata: {name: mail}
spec:
  notification:
    filter: build.status == Build.Status.FAILURE
    delivery: {server: smtp.example.com, port: 587, sender: a@b, recipients: [c@d]}
"""
BLOCKS = '[{"type": "section", "text": {"type": "mrkdwn", "text": "{{.Params.buildStatus}}"}}]'


class TestCommands:
    def test_configs_of_the_hosted_service_are_imported_with_their_templates(
        self, place: Notified, run: Run, tmp_path: Path
    ) -> None:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf/slack.json").write_text(BLOCKS)
        (tmp_path / "conf/n.yaml").write_text(CONFIG.replace("TEMPLATE", "slack.json"))
        secret = "projects/p/secrets/slack/versions/latest"
        place.server.secrets[secret] = f"{place.listener.url}/services/T0\n"
        assert run("import", "conf/n.yaml") == (
            0,
            "Imported notifier slack.\nImported notifier mail.\n",
            "",
        )
        code, out, _ = run("list")
        assert code == 0
        assert re.search(r"slack +SlackNotifier +status +build.status == ", out)
        build = place.build("FAILURE")
        code, out, _ = run("test", "slack", "--build", build)
        assert f"would get a message about build {build}: FAILURE (broken)\n" in out
        assert "yes filter" in out
        assert '"blocks":[{"type":"section"' in out
        code, out, _ = run("test", "slack", "--status", "SUCCESS")
        assert "would get no message" in out
        place.server.store.notifiers.delete("p", "mail")
        place.turn()
        (came,) = place.listener.received
        assert came.path == "/services/T0"
        text = came.json()["attachments"][0]["blocks"][0]["text"]["text"]
        assert text == "FAILURE"
        code, out, _ = run("describe", "slack")
        assert "secretRef: webhook-url" in out
        assert run("delete", "slack") == (0, "", "Deleted notifier slack.\n")
        assert run("list") == (0, "", "Listed 0 notifiers.\n")

    def test_a_template_in_a_bucket_is_read(
        self, place: Notified, run: Run, tmp_path: Path
    ) -> None:
        bucket = tmp_path / "bucket"
        bucket.mkdir()
        (bucket / "slack.json").write_text(BLOCKS)
        settings = tmp_path / "xdg/buildrunner"
        settings.mkdir(parents=True)
        folders = f'[storage.folders]\n"gs://words" = "file://{bucket}"\n'
        (settings / "config.toml").write_text(folders)
        (tmp_path / "n.yaml").write_text(CONFIG.replace("TEMPLATE", "gs://words/slack.json"))
        code, _, err = run("import", "n.yaml", "--bucket-template", "gs://words/slack.json")
        assert (code, err) == (0, "")
        kept = place.server.store.notifiers.get("p", "slack")
        assert kept["spec"]["notification"]["template"] == {"type": "golang", "content": BLOCKS}

    def test_what_the_server_refuses_is_said(self, run: Run, tmp_path: Path) -> None:
        text = CONFIG.replace("uri: TEMPLATE", "content: x").replace("build.status", "build.stat")
        (tmp_path / "n.yaml").write_text(text)
        code, _, err = run("import", "n.yaml")
        assert code == 2
        assert "spec.notification.filter: Build has no field stat" in err

    def test_what_was_given_up_is_listed_and_sent_again(self, place: Notified, run: Run) -> None:
        place.notifier(filter="build.status == Build.Status.QUEUED")
        place.listener.answer = Answer(410, body=b"moved away")
        build = place.build()
        place.turn()
        code, out, _ = run("outbox", "--state", "given_up", "--build", build)
        assert code == 0
        assert re.search(r"given_up +1 +[0-9a-f]{8} +hook: HTTPNotifier to .* HTTP 410: moved", out)
        number = out.splitlines()[1].split()[0]
        code, out, _ = run("show", number)
        assert "reason: 'HTTP 410: moved away'" in out
        place.listener.answer = Answer()
        assert run("retry", "--all") == (0, "", "1 message is sent again.\n")
        place.turn()
        assert place.messages()[0].state == "delivered"
        code, _, err = run("retry", number)
        assert (code, "arrived already" in err) == (2, True)
        assert run("drop", number)[0] == 0
        assert run("outbox") == (0, "", "Listed 0 messages.\n")

    def test_a_trial_says_where_to_look(self, place: Notified, run: Run) -> None:
        place.notifier()
        place.build()
        code, _, err = run("send", "hook")
        assert code == 0
        assert re.search(r"Queued message \d+; `buildrunner notifications show \d+`", err)


@pytest.fixture
def run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs what ends before a server is asked."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["notifications", *arguments, "--server", "http://127.0.0.1:1"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("SMTPNotifier", "Mailer", "n.yaml:21:7: kind: there is no Mailer here"),
        (
            "    filter: build",
            "    filtr: build",
            "n.yaml:7:5: spec.notification: object contains unknown field",
        ),
        ("uri: TEMPLATE", "content: '{{foo}}'", "n.yaml:15:16: spec.notification.template."),
        ("uri: TEMPLATE", "uri: none.json", "the template none.json can't be read: No such"),
        ("metadata: {name: mail}", "kind: x", "n.yaml:22:1: kind is there twice"),
        ("[c@d]", "c@d", "recipients: a list is wanted here, not text"),
        ("uri: TEMPLATE", "uri: [", "n.yaml:"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(
    run_alone: Run, tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = CONFIG.replace(old, new, 1).replace("uri: TEMPLATE", "content: x")
    (tmp_path / "n.yaml").write_text(text)
    code, out, err = run_alone("import", "n.yaml")
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("arguments", [("test",), ("test", "a", "-f", "b"), ("retry",)])
def test_flags_that_do_not_go_together(run_alone: Run, arguments: tuple[str, ...]) -> None:
    code, _, err = run_alone(*arguments)
    assert code == 2
    assert "must say which" in err


class TestPage:
    def test_notifiers_and_messages_are_seen_with_their_reasons(self, place: Notified) -> None:
        place.notifier(on="recovery", name="quiet", filter='"<b>" in build.tags')
        place.notifier(filter="build.status == Build.Status.QUEUED")
        place.listener.answer = Answer(404, body=b"<script>gone")
        build = place.build()
        place.turn()
        text = place.server.http.get("/outbox?project=p").text
        assert "quiet: HTTPNotifier to 127.0.0.1" in text
        assert "a recovery" in text
        assert "&#34;&lt;b&gt;&#34; in build.tags" in text
        assert "HTTP 404: &lt;script&gt;gone" in text
        assert f"/builds/p/{build}" in text
        page = place.server.http.get(f"/builds/p/{build}").text
        assert f'href="/outbox?project=p&amp;build={build}">1 message</a>' in page
        only = place.server.http.get(f"/outbox?project=p&state=delivered&build={build}").text
        assert "HTTP 404" not in only

    def test_what_was_given_up_is_sent_again_from_it(self, place: Notified) -> None:
        place.notifier(filter="build.status == Build.Status.QUEUED")
        place.listener.answer = Answer(404)
        place.build()
        place.turn()
        http = place.server.http
        (message,) = place.messages("given_up")
        csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', http.get("/outbox?project=p").text)
        assert csrf
        form = {"csrf": csrf[1]}
        path = f"/outbox/p/{message.id}"
        assert http.post(f"{path}/retry").status_code == 403
        assert http.post(f"{path}/burn", data=form).status_code == 404
        assert http.post(f"{path}/retry", data=form).status_code == 303
        assert len(place.messages("waiting")) == 1
        assert http.post(f"{path}/drop", data=form).status_code == 303
        assert place.messages() == []
        gone = http.post(f"{path}/drop", data=form, follow_redirects=True)
        assert "there is no message" in gone.text

    def test_readers_can_not_send(self, tmp_path: Path) -> None:
        with api_server(tmp_path, auth=True) as server:
            token = server.token("r", "read", projects=("p",))
            with httpx.Client(base_url=server.url, follow_redirects=True, timeout=30) as browser:
                browser.post("/login", data={"token": token, "next": "/outbox"})
                assert browser.get("/outbox?project=q").status_code == 403
                text = browser.get("/outbox").text
                assert "nobody yet" in text
                found = re.search(r'name="csrf" value="([0-9a-f]+)"', text)
                assert found
                form = {"csrf": found[1]}
                assert browser.post("/outbox/p/1/retry", data=form).status_code == 403

    def test_a_project_for_everyone_keeps_it_to_itself(self, tmp_path: Path) -> None:
        with api_server(tmp_path, auth=True, public_projects=("p",)) as server:
            for path in ("notifiers", "outbox"):
                answer = server.http.get(f"/buildrunner/v1/projects/p/{path}")
                assert answer.status_code == 403
            answer = server.http.get("/outbox?project=p")
            assert answer.headers["location"].startswith("/login?next=/outbox")


class TestBadges:
    def badge(self, place: Notified, path: str = "/badge/p/ci.svg", **more: Any) -> httpx.Response:
        return place.server.http.get(path, **more)

    def test_it_shows_how_the_last_build_ended(self, place: Notified) -> None:
        assert ">unknown<" in self.badge(place).text
        place.run({"branchName": "main"}, "SUCCESS")
        place.run({"branchName": "dev"}, "FAILURE")
        place.build()
        answer = self.badge(place)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/svg+xml"
        assert "no-cache" in answer.headers["cache-control"]
        assert 'aria-label="ci: failing"' in answer.text
        assert ">passing<" in self.badge(place, params={"branch": "main"}).text
        place.run({"branchName": "dev", "substitutions": {"BRANCH_NAME": "main"}}, "FAILURE")
        assert ">passing<" in self.badge(place, params={"branch": "main"}).text
        for _ in range(61):  # newer ones do not hide it either: three pages were looked at
            place.run({"branchName": "dev", "substitutions": {"BRANCH_NAME": "main"}}, "FAILURE")
        assert ">passing<" in self.badge(place, params={"branch": "main"}).text
        odd = self.badge(place, params={"branch": '<"&\\'})
        assert '>ci (&lt;"&amp;\\)<' in odd.text
        assert ">unknown<" in odd.text

    def test_the_trigger_s_page_shows_it_and_who_else_may(self, place: Notified) -> None:
        http, settings = place.server.http, "/buildrunner/v1/projects/p/triggers/ci/settings"
        http.put(settings, json={"publicBadge": True, "jitter": "5s"})
        trigger = place.server.store.triggers.get("p", "ci")["id"]
        text = http.get(f"/triggers/p/{trigger}").text
        assert f'<img src="/badge/p/{trigger}.svg"' in text
        assert 'name="publicBadge" value="true" checked' in text
        csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', text)
        assert csrf
        form = {"csrf": csrf[1], "publicBadge": "true", "jitter": "6s"}
        http.post(f"/triggers/p/{trigger}/settings", data=form)
        kept = place.server.store.triggers.settings("p", trigger)
        assert (kept["publicBadge"], kept["jitter"]) == (True, "6s")

    def test_what_one_may_not_see_looks_as_if_it_were_not_there(self, tmp_path: Path) -> None:
        with api_server(tmp_path, auth=True) as server, receiver() as listener:
            token = server.token("a", "admin", "read", "submit")
            server.http.headers["Authorization"] = f"Bearer {token}"
            place = Notified(server, listener)
            place.trigger()
            place.build("SUCCESS")
            reader = {"Authorization": f"Bearer {server.token('r', 'read', projects=('p',))}"}
            other = {"Authorization": f"Bearer {server.token('o', 'read', projects=('q',))}"}
            path = "/badge/p/ci.svg"
            with httpx.Client(base_url=server.url, timeout=30) as stranger:
                hidden = stranger.get(path)
                missing = stranger.get("/badge/p/none.svg")
                assert hidden.status_code == missing.status_code == 404
                assert hidden.content == missing.content
                assert stranger.get(path, headers=other).content == missing.content
                assert stranger.get("/badge/no%20project/x.svg").content == missing.content
                assert ">passing<" in stranger.get(path, headers=reader).text
                settings = "/buildrunner/v1/projects/p/triggers/ci/settings"
                server.http.put(settings, json={"publicBadge": True})
                assert ">passing<" in stranger.get(path).text
            place.sender.stop()
