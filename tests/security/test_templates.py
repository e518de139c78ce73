"""Templates and filters of notifiers: whatever is in one, it takes bounded time and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from buildrunner.server import bounded
from buildrunner.server.bounded import BoundedCalls, BoundedFilters, Bug, Busy, TooMuch
from buildrunner.server.http.errors import ApiError
from buildrunner.server.http.pinned import gates
from buildrunner.server.notifications.dispatch import NotificationService, NotifierEvaluation
from buildrunner.server.outbox.sender import Delivery, OutboxSender
from buildrunner.sources.policy import SourcePolicy
from tests.api_server import ApiServer, api_server, now
from tests.http_receivers import Receiver, receiver

# Long enough for a machine under load; without bounds they take hours, or all memory.
BOUND_S = 40.0
CPU_S = 0.4
# Of each module of messages at least one field.
BUILD_FIELDS: dict[str, Any] = {
    "results": {"images": [{"name": "a", "digest": "sha256:1"}]},
    "approval": {"state": "APPROVED", "result": {"approverAccount": "mona"}},
    "warnings": [{"text": "w", "priority": "WARNING"}],
    "failureInfo": {"type": "USER_BUILD_STEP", "detail": "d"},
    "source": {"gitSource": {"url": "https://example.com/a.git"}},
    "sourceProvenance": {"resolvedGitSource": {"url": "https://example.com/a.git"}},
    "artifacts": {"objects": {"location": "gs://b", "paths": ["x"]}},
    "timing": {"BUILD": {"startTime": "2026-01-01T00:00:00Z"}},
}
NOTIFIER = {
    "apiVersion": "buildrunner/v1",
    "kind": "HTTPNotifier",
    "metadata": {"name": "n"},
    "spec": {"notification": {"filter": "true", "delivery": {"url": "https://example.com/"}}},
}
NEVER_ENDS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
JINJA = {
    "a power": "{{ (7 ** 400000000) % 10 }}",
    "a power at the time of compiling": "{% if false %}{{ 7 ** 400000000 }}{% endif %}",
    "a repeated text": "{{ ('a' * 5000000000) | length }}",
    "a repeated list": "{{ ([1] * 999999999) | length }}",
    "empty loops": NEVER_ENDS,
    "a text of many pieces": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "a doubled text": "{% set a = 'x' * 9999 %}{% set b = a * 9999 %}{{ (b * 9999) | length }}",
    "center": "{{ 'a' | center(5000000000) }}",
    "indent": "{{ build.status | indent(5000000000) }}",
    "batch": "{{ 'x' | batch(9999999999, 'y') | list | length }}",
    "format": "{{ '%05000000000d' | format(1) }}",
    "ljust": "{{ build.status.ljust(5000000000) }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) | length }}",
    "join": "{{ (['a' * 9999] * 9999999) | join('b' * 999) | length }}",
    "a range": "{{ range(10 ** 9) | list | length }}",
    "sorted": "{{ (range(99999) | list * 9999) | sort | length }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "pprint": "{{ ([[[[1] * 999] * 999] * 999] * 999) | pprint | length }}",
    "tojson": "{{ ([[[['a'] * 999] * 999] * 999] * 999) | tojson | length }}",
    "urlize": "{{ ('a.com ' * 99999999) | urlize | length }}",
    "wordwrap": "{{ ('a' * 99999999) | wordwrap(1) | length }}",
    "a comparison": "{{ ([[[[1] * 999] * 999] * 999] * 9) == ([[[[1] * 999] * 999] * 999] * 9) }}",
    "upper": "{{ ('ß' * 999999999) | upper | length }}",
}
GO = {
    "a width": '{{ printf "%-300000000s" "x" }}',
    "a precision": '{{ printf "%.99999999f" 1.0 }}',
    "a length": '{{ len (printf "%99s%99s" "x" "y") }}' + '{{ printf "%-999999999s" "x" }}',
    "a replacement": '{{ $a := printf "%99999s" "x" }}{{ $b := replace $a " " $a }}'
    '{{ len (replace $b " " $b) }}',
}
CEL = {
    "a doubled text": '["aaaaaaaaaaaaaaaa"]' + ".map(x, x + x)" * 30 + ".size() > 0",
    "a doubled list": "[[1]]" + ".map(x, x + x)" * 30 + ".size() > 0",
    "a comparison": "[1]" + ".map(x, [x, x])" * 30 + " == [2]" + ".map(x, [x, x])" * 30,
    "loops": "[1,1,1,1,1,1,1,1,1,1].all(a, " * 12 + "true" + ")" * 12,
}


class Place:
    """A server with two projects, its sender, and a receiver."""

    def __init__(self, server: ApiServer, listener: Receiver) -> None:
        self.server, self.listener = server, listener
        settings = server.context.settings
        service = NotificationService(server.context)
        self.sender = OutboxSender(
            server.store,
            Delivery(server.secrets, gates(settings), now),
            [service],
            prepared=NotifierEvaluation(server.context.calls, service.argument_of).prepared,
            now=now,
            random=lambda: 0.5,
        )

    def put(self, project: str, name: str, **notification: Any) -> httpx.Response:
        notification.setdefault("delivery", {"url": f"{self.listener.url}/{project}/{name}"})
        document = {
            "apiVersion": "buildrunner/v1",
            "kind": "HTTPNotifier",
            "metadata": {"name": name},
            "spec": {"notification": notification},
        }
        path = f"/buildrunner/v1/projects/{project}/notifiers/{name}"
        return self.server.http.put(path, json=document, timeout=BOUND_S)

    def keep(self, project: str, name: str, **notification: Any) -> None:
        """Keep a notifier that no check has seen, as an earlier version may have done."""
        notification.setdefault("delivery", {"url": f"{self.listener.url}/{project}/{name}"})
        document = {
            "apiVersion": "buildrunner/v1",
            "kind": "HTTPNotifier",
            "metadata": {"name": name},
            "spec": {"notification": notification},
        }
        self.server.store.notifiers.put(project, name, document)

    def turn(self) -> None:
        self.sender.announce()
        self.sender.begin_sending()
        assert self.sender.wait_until_idle(BOUND_S)

    def given_up(self) -> list[str]:
        return [one.last_error for one in self.server.store.outbox.page(state="given_up")]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the attacks, all of which take as long as they may, take little."""
    monkeypatch.setattr("buildrunner.server.bounded.CPU_S", CPU_S)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server for the many attacks: none of them may do anything to it."""
    folder = tmp_path_factory.mktemp("server")
    here = SourcePolicy(hosts=("127.0.0.1",))
    with api_server(folder, notify=here) as server, receiver() as listener:
        made = Place(server, listener)
        server.create("warm-up")
        made.put("warm-up", "n")
        yield made
        made.sender.stop()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    here = SourcePolicy(hosts=("127.0.0.1",))
    with api_server(tmp_path, notify=here) as server, receiver() as listener:
        made = Place(server, listener)
        yield made
        made.sender.stop()


def peak_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


ATTACKS = [
    *(pytest.param({"template": {"type": "jinja2", "content": text}}, id=f"jinja2: {name}")
      for name, text in JINJA.items()),
    *(pytest.param({"template": {"type": "golang", "content": text}}, id=f"golang: {name}")
      for name, text in GO.items()),
    *(pytest.param({"filter": text}, id=f"filter: {name}") for name, text in CEL.items()),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_ends_within_its_bounds_when_a_notifier_is_made_or_tried(
    shared: Place, attack: dict[str, Any]
) -> None:
    before = peak_kib()
    begun = time.monotonic()
    kept = shared.put("evil", "n", **attack)
    assert kept.status_code in (200, 400), kept.text
    document = {
        "apiVersion": "buildrunner/v1",
        "kind": "HTTPNotifier",
        "metadata": {"name": "n"},
        "spec": {"notification": {**attack, "delivery": {"url": "https://example.com/"}}},
    }
    shared.server.create("evil")
    path = "/buildrunner/v1/projects/evil/notifiers:test"
    tried = shared.server.http.post(path, json={"notifier": document}, timeout=BOUND_S)
    assert tried.status_code in (200, 400), tried.text
    assert time.monotonic() - begun < BOUND_S
    assert peak_kib() - before < 100 << 10


@pytest.mark.parametrize("attack", ATTACKS[::4])
def test_each_attack_becomes_a_failed_delivery_and_nothing_worse(
    shared: Place, attack: dict[str, Any]
) -> None:
    shared.sender.announce()  # what other tests left
    for message in shared.server.store.outbox.page(limit=1000):
        shared.server.store.outbox.drop(message.id)
    shared.keep("evil2", "n", **attack)
    shared.server.create("evil2")
    before = peak_kib()
    begun = time.monotonic()
    shared.turn()
    assert time.monotonic() - begun < BOUND_S
    assert peak_kib() - before < 100 << 10
    (message,) = shared.server.store.outbox.page(project_id="evil2") or [None]
    if message is not None:  # else its filter said no in time
        assert message.state in ("given_up", "delivered")
        if message.state == "given_up":
            assert message.last_error
            assert message.message == {}


def test_the_reason_is_in_the_outbox(place: Place) -> None:
    for name, text in (
        ("time", NEVER_ENDS),
        ("memory", "{{ ('a' * 5000000000) | length }}"),
        ("output", "{{ 'a' * 9999999 }}"),
    ):
        place.keep("p", name, template={"type": "jinja2", "content": text})
    place.server.create("p")
    for _ in range(20):
        place.turn()
        if len(place.given_up()) == 3:
            break
        time.sleep(2.1)  # one project has two evaluations at once
    told = " | ".join(sorted(place.given_up()))
    assert "it takes longer than 0.4 s" in told
    assert "it needs more than 256 MiB of memory" in told
    assert "the template makes more than 262144 characters" in told


def test_other_projects_hear_of_their_builds_while_a_template_never_ends(place: Place) -> None:
    for number in range(20):
        place.keep("evil", f"n{number}", template={"content": f"{number}{NEVER_ENDS}"})
    place.put("good", "n", template={"content": "{{ build.status }}"})
    place.server.create("evil")
    place.sender.announce()
    place.sender.begin_sending()
    place.server.create("good")
    begun = time.monotonic()
    while not place.listener.received and time.monotonic() - begun < BOUND_S:
        place.sender.announce()
        place.sender.begin_sending()
        time.sleep(0.05)
    assert [one.body for one in place.listener.received] == [b"QUEUED"]
    assert time.monotonic() - begun < BOUND_S / 2


def test_the_event_loop_and_other_requests_go_on_while_notifiers_are_tried(place: Place) -> None:
    place.put("good", "n", template={"content": "{{ build.status }}"})
    place.server.create("good")
    with ThreadPoolExecutor(60) as pool:
        attacks = [
            pool.submit(place.put, "evil", f"n{number}", template={"content": NEVER_ENDS})
            for number in range(60)
        ]
        begun = time.monotonic()
        assert place.server.http.get("/healthz").status_code == 200
        assert time.monotonic() - begun < 10
        answer = place.put("good", "m", template={"content": "{{ build.id }}"})
        assert answer.status_code == 200
        assert time.monotonic() - begun < BOUND_S / 2
        codes = {one.result().status_code for one in attacks}
    assert codes <= {400, 429}


def test_a_page_that_lists_notifiers_evaluates_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.keep("p", "n", template={"content": NEVER_ENDS}, filter=CEL["a comparison"])
    place.server.create("p")

    def no_call(*_: Any, **__: Any) -> Any:
        raise AssertionError("evaluated")

    monkeypatch.setattr(BoundedCalls, "call", no_call)
    begun = time.monotonic()
    page = place.server.http.get("/outbox?project=p")
    assert page.status_code == 200
    assert "HTTPNotifier to 127.0.0.1" in page.text
    assert time.monotonic() - begun < BOUND_S / 2


def test_a_notifier_that_is_too_large_is_refused(place: Place) -> None:
    answer = place.put("p", "n", template={"content": "x" * (300 << 10)})
    assert answer.status_code == 400
    assert "larger than 256 KiB" in answer.json()["error"]["message"]


class TestTheProcess:
    @pytest.fixture
    def calls(self) -> Iterator[BoundedCalls]:
        made = BoundedCalls(lambda: self.time)
        self.time = 0.0
        yield made
        made.close()

    LOOP = "[1,1,1,1,1,1,1,1,1,1].all(a, " * 12 + "true" + ")" * 12

    def loop(self, calls: BoundedCalls, **more: Any) -> Any:
        argument = [self.LOOP, {}, ["body"], None, 1e9]
        return calls.call("trigger_filter", argument, owner="p", cpu_s=0.2, **more)

    def test_what_exceeds_its_limits_three_times_is_left_out_for_ten_minutes(
        self, calls: BoundedCalls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(3):
            with pytest.raises(TooMuch, match=r"^it takes longer than 0\.2 s$"):
                self.loop(calls, key="k")
        with monkeypatch.context() as patched:
            patched.setattr(BoundedCalls, "_answer", None)
            with pytest.raises(TooMuch, match="3 times: it is left out"):
                self.loop(calls, key="k")
        self.time = 601.0
        with pytest.raises(TooMuch, match=r"^it takes longer"):
            self.loop(calls, key="k")
        with pytest.raises(TooMuch, match=r"^it takes longer"):
            self.loop(calls, key="another")

    def test_wrong_texts_of_one_project_do_not_make_those_of_others_forgotten(
        self, calls: BoundedCalls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Issue: all projects shared one list of texts that exceeded their limits."""
        monkeypatch.setattr(bounded, "_MOST_KNOWN", 2)
        exceeds = {"exceeds": "it takes longer than 2 s"}
        monkeypatch.setattr(calls, "_answer", lambda *_: exceeds)

        def ask(owner: str, key: str) -> str:
            with pytest.raises(TooMuch) as caught:
                calls.call("notify", {}, owner=owner, key=key)
            return str(caught.value)

        for _ in range(3):
            ask("good", "k")
        for number in range(5):
            ask("evil", f"{number}")
        assert "left out" in ask("good", "k")
        assert [len(one) for one in calls._strikes.values()] == [1, 2]
        self.time = 601.0
        monkeypatch.setattr(calls, "_answer", lambda *_: {"value": 1})
        assert calls.call("notify", {}, owner="good", key="k") == 1
        assert list(calls._strikes) == ["evil"]

    def test_one_owner_has_two_at_once_and_others_do_not_wait_for_it(
        self, calls: BoundedCalls
    ) -> None:
        calls.call("check_trigger_filter", ["true", {}], owner="warm-up")
        with ThreadPoolExecutor(2) as pool:
            first = [pool.submit(self.loop, calls) for _ in range(2)]
            while calls._under_way < 2 and not all(one.done() for one in first):
                time.sleep(0.001)
            if not any(one.done() for one in first):
                with pytest.raises(Busy, match="project p has others under way"):
                    self.loop(calls)
            assert calls.call("check_trigger_filter", ["true", {}], owner="q") == ""
            assert all(isinstance(one.exception(), TooMuch) for one in first)

    def test_one_project_leaves_half_of_all_places_to_others(self, calls: BoundedCalls) -> None:
        """Issue: by events and requests together, one project took all places."""
        calls.call("check_trigger_filter", ["true", {}], owner="warm-up")
        kinds = (True, True, False, False)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(self.loop, calls, of_event=kind) for kind in kinds]
            errors = [one.exception() for one in asked]
        refused = [error for error in errors if isinstance(error, Busy)]
        assert [str(error) for error in refused] == [
            "project p has others under way: try again in a moment"
        ]
        assert sum(isinstance(error, TooMuch) for error in errors) == 3
        assert calls._owners["p"] == calls._kinds["p", True] == calls._kinds["p", False] == 0

    @pytest.mark.parametrize("operation", ["problem", "check"])
    def test_a_text_that_can_not_be_checked_is_left_out_too(
        self, calls: BoundedCalls, operation: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers: list[int] = []

        def answer(*_: object) -> dict[str, Any]:
            answers.append(1)
            return {"exceeds": "it takes longer than 2 s"}

        monkeypatch.setattr(calls, "_answer", answer)
        for _ in range(5):
            if operation == "problem":
                assert "can't be evaluated" in BoundedFilters(calls, "p").problem("x", {})
            else:
                with pytest.raises(ApiError, match="can't be checked"):
                    NotifierEvaluation(calls, lambda _: None).check("p", NOTIFIER)
        assert len(answers) == 3

    def test_it_holds_no_secret_of_the_server_and_no_right_to_open_files(
        self, calls: BoundedCalls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BUILDRUNNER_DATABASE", "postgresql://me:s3cret@host/db")
        calls.call("check_trigger_filter", ["true", {}], owner="p")
        assert calls._process is not None
        pid = calls._process._process.pid
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"s3cret" not in environ
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) <= 5

    @pytest.mark.parametrize("field", BUILD_FIELDS)
    def test_all_that_a_build_can_hold_is_known_before_files_are_closed(
        self, calls: BoundedCalls, field: str
    ) -> None:
        snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in field)
        notification = {
            "filter": f"has(build.{snake})",
            "delivery": {"url": "https://example.com/"},
        }
        notifier = {
            "apiVersion": "buildrunner/v1",
            "kind": "HTTPNotifier",
            "metadata": {"name": "n"},
            "spec": {"notification": notification},
        }
        facts = {"build": {"status": "SUCCESS", **BUILD_FIELDS}}
        argument = {"notifier": notifier, "facts": facts, "key": "k", "now": "2026-01-01T00:00:00Z"}
        assert calls.call("notify", argument, owner="p")["fires"]

    def test_a_process_that_died_is_replaced(self, calls: BoundedCalls) -> None:
        assert calls.call("check_trigger_filter", ["true", {}], owner="p") == ""
        assert calls._process is not None
        calls._process._process.kill()
        calls._process._process.wait()
        assert calls.call("check_trigger_filter", ["true", {}], owner="p") == ""

    def test_it_ends_with_the_server(self, calls: BoundedCalls) -> None:
        calls.call("check_trigger_filter", ["true", {}], owner="p")
        process = calls._process
        assert process is not None
        process._control.close()
        assert process._process.wait(30) == 0

    def test_a_bug_is_told_and_logged(
        self, calls: BoundedCalls, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(Bug, match="internal error, see the server's log: ValidationError"):
            calls.call("notify", {"notifier": {}}, owner="p")
        assert "Traceback" in caplog.text
