"""No request of a project's member, however it is made, keeps the server from answering others.

Times are processor times of the judged function itself: the load of the machine is not in them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.log_file import LogFileSink, log_folder
from buildrunner.server.api import logs as log_routes
from buildrunner.server.http import bodies
from buildrunner.server.http.bodies import (
    BUILDS_AT_ONCE,
    LARGE_AT_ONCE,
    LARGE_BYTES,
    MAX_VALUES,
    READ_SLOT,
    READS_AT_ONCE,
    SEARCHES_AT_ONCE,
    check_values,
)
from buildrunner.server.http.errors import ApiError
from buildrunner.server.services import queueing
from buildrunner.spec.model.git_address import has_password, without_password
from buildrunner.store.sql import builds as sql_lists
from buildrunner.store.sql.builds import SqlBuilds
from buildrunner.store.sql.triggers import SqlTriggers
from tests.api_server import ApiServer, api_server, now
from tests.conftest import DEADLINE_S
from tests.held_calls import HeldCalls

MANY = 1_200_000
SOURCES = "/buildrunner/v1/projects/p/sources/manifests"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        yield running


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Bodies that were parsed."""

    seen: list[bytes] = []
    real = bodies.parsed

    def noting(body: bytes) -> object:
        seen.append(body)
        return real(body)

    monkeypatch.setattr(bodies, "parsed", noting)
    return seen


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/p/builds",
        "/v1/projects/p/triggers",
        "/buildrunner/v1/projects/p/triggers/any:test",
    ],
)
@pytest.mark.parametrize("value", [b"[]", b"{}", b"0"])
def test_a_body_of_millions_of_values_is_not_even_parsed(
    server: ApiServer, parsed: list[bytes], path: str, value: bytes
) -> None:
    body = b'{"a":[' + (value + b",") * MANY + value + b"]}"
    answer = server.http.post(path, content=body)
    assert answer.status_code == 400, answer.text
    assert "holds more than" in answer.json()["error"]["message"]
    assert parsed == []


def test_a_string_without_an_end_is_read_once() -> None:
    """A search for the end of a string at each quotation mark in it would take hours."""
    begun = time.process_time()
    with contextlib.suppress(ApiError):
        check_values(b'"' + b'\\"' * 200_000 + b"," * (MAX_VALUES + 1), MAX_VALUES)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b'["a,b", "c\\",d", {}]', 4),
        (b'["a\\\\", ","]', 2),
        (b'[",', 1),
    ],
)
def test_no_text_counts_as_values(body: bytes, values: int) -> None:
    check_values(body, values)
    if values > 1:
        with pytest.raises(ApiError):
            check_values(body, values - 1)


@pytest.mark.parametrize("path", ["/v1/projects/p/builds", "/v1/projects/p/triggers"])
def test_a_build_or_trigger_may_hold_less_than_other_bodies(server: ApiServer, path: str) -> None:
    scripts = [{"name": "busybox", "script": "#" * 1_000_000}] * 5
    answer = server.http.post(path, json={"name": "t", "steps": scripts})
    assert answer.status_code == 413


def test_large_requests_of_one_caller_wait_and_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the server has threads, each of which never ends."""
    calls = HeldCalls()
    calls.hold(monkeypatch, queueing, "admit", lambda request, _: len(str(request)) > LARGE_BYTES)
    large = {"steps": [{"name": "busybox", "script": "#" * LARGE_BYTES}]}
    small = {"steps": [{"name": "busybox"}]}
    with api_server(tmp_path, auth=True) as server, ThreadPoolExecutor(50) as senders:
        tokens = [server.token(name, "submit", "read") for name in ("greedy", "modest")]

        def post(token: str, body: dict[str, Any]) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            url = f"{server.url}/v1/projects/p/builds"
            return httpx.post(url, json=body, headers=headers, timeout=60).status_code

        greedy = [senders.submit(post, tokens[0], large) for _ in range(50)]
        with calls:
            calls.until(LARGE_AT_ONCE)
            assert post(tokens[1], small) == 200
            assert post(tokens[0], small) == 200
            assert not calls.has_more()
        assert [one.result() for one in greedy] == [200] * 50


@pytest.mark.parametrize("way", ["create", "retry", "page", "run", "webhook"])
def test_checks_of_builds_of_one_caller_wait_and_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Small requests, each of which names a build whose check takes long."""
    calls = HeldCalls()
    slow = {"steps": [{"name": "busybox", "args": ["slow"]}]}
    with api_server(tmp_path, auth=True) as server, ThreadPoolExecutor(50) as senders:
        greedy, modest = (server.token(name, "submit", "read") for name in ("greedy", "modest"))
        boss = {"Authorization": f"Bearer {server.token('boss', 'admin', 'submit')}"}
        version = "projects/p/secrets/hook/versions/1"
        server.secrets[version] = "s3cret"
        builds, triggers = "/v1/projects/p/builds", "/v1/projects/p/triggers"
        for number in range(12):
            called = {"name": f"t{number}", "webhookConfig": {"secret": version}, "build": slow}
            made = server.http.post(triggers, json=called, headers=boss)
            assert made.status_code == 200, made.text
        old = server.http.post(builds, json=slow, headers=boss).json()["metadata"]["build"]["id"]
        server.run(old, "SUCCESS")
        calls.hold(monkeypatch, queueing, "admit", lambda request, _: "slow" in str(request))
        headers = {"Authorization": f"Bearer {greedy}"}
        form: dict[str, str] | None = None
        if way == "page":
            with httpx.Client(base_url=server.url) as client:
                client.post("/login", data={"token": greedy})
                page = client.get(f"/builds/p/{old}").text
                form = {"csrf": page.partition('name="csrf" value="')[2].partition('"')[0]}
                headers = {"Cookie": "; ".join(f"{n}={v}" for n, v in client.cookies.items())}
        path = {
            "create": builds,
            "retry": f"{builds}/{old}:retry",
            "page": f"/builds/p/{old}/retry",
            "run": f"{triggers}/t0:run",
            "webhook": f"{triggers}/tNUMBER:webhook?secret=s3cret",
        }[way]

        def send(number: int) -> int:
            body = {"create": slow, "webhook": {"number": number}}.get(way, {})
            given: dict[str, Any] = {"json": body} if form is None else {"data": form}
            url = f"{server.url}{path}".replace("NUMBER", str(number % 12))
            return httpx.post(url, headers=headers, timeout=60, **given).status_code

        sent = [senders.submit(send, number) for number in range(50)]
        with calls:
            calls.until(BUILDS_AT_ONCE)
            other = {"Authorization": f"Bearer {modest}"}
            quick = {"steps": [{"name": "busybox"}]}
            assert server.http.post(builds, json=quick, headers=other).status_code == 200
            assert not calls.has_more()
        assert {one.result() for one in sent} == ({303} if way == "page" else {200})


def test_requests_beyond_the_line_of_a_caller_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that waits takes a connection, so the line of strangers would take all of them."""
    monkeypatch.setattr(bodies, "MOST_IN_LINE", 2)
    calls = HeldCalls()
    calls.hold(monkeypatch, SqlBuilds, "get")
    with (
        api_server(tmp_path, auth=True, public_projects=("p",)) as server,
        ThreadPoolExecutor(20) as senders,
    ):
        url = f"{server.url}/v1/projects/p/builds/any"
        refused = threading.Semaphore(0)

        def read(_: int) -> int:
            answer = httpx.get(url, timeout=60)
            if answer.status_code == 429:
                assert answer.headers["Retry-After"] == "10"
                refused.release()
            return answer.status_code

        strangers = [senders.submit(read, number) for number in range(20)]
        with calls:
            for _ in range(20 - READS_AT_ONCE - 2):
                assert refused.acquire(timeout=15)
        codes = [one.result() for one in strangers]
        assert codes.count(404) == READS_AT_ONCE + 2


READS = (
    "/v1/projects/p/builds/BUILD",
    "/v1/OPERATION",
    "/buildrunner/v1/projects/p/builds/BUILD/approval",
    "/buildrunner/v1/projects/p/builds/BUILD/provenance",
    "/buildrunner-logs/log-BUILD.txt",
    "/builds/p/BUILD",
    "/builds/p/BUILD/log",
    "/builds/p/BUILD/artifacts/0",
)


@pytest.mark.parametrize("path", READS)
def test_reads_of_strangers_wait_and_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    calls = HeldCalls()
    with (
        api_server(tmp_path, auth=True, public_projects=("p",)) as server,
        ThreadPoolExecutor(50) as senders,
    ):
        headers = {"Authorization": f"Bearer {server.token('modest', 'submit', 'read')}"}
        builds, body = "/v1/projects/p/builds", {"steps": [{"name": "busybox"}]}
        made = [server.http.post(builds, json=body, headers=headers).json() for _ in range(2)]
        slow, quick = (one["metadata"]["build"]["id"] for one in made)
        operation = made[0]["name"]
        url = server.url + path.replace("BUILD", slow).replace("OPERATION", operation)
        for name in ("get", "find"):
            calls.hold(monkeypatch, SqlBuilds, name, lambda *given: given[-1] == slow)

        def read(_: int) -> int:
            return httpx.get(url, timeout=60).status_code

        strangers = [senders.submit(read, number) for number in range(50)]
        with calls:
            calls.until(READS_AT_ONCE)
            assert server.http.get(f"{builds}/{quick}", headers=headers).status_code == 200
            assert not calls.has_more()
        assert {one.result() for one in strangers} <= {200, 404}


def test_calls_of_webhook_triggers_without_the_secret_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = HeldCalls()
    calls.hold(monkeypatch, SqlTriggers, "get")
    with api_server(tmp_path, auth=True) as server, ThreadPoolExecutor(50) as senders:

        def call(number: int) -> int:
            url = f"{server.url}/v1/projects/p{number}/triggers/t:webhook?secret=wrong"
            return httpx.post(url, json={}, timeout=60).status_code

        strangers = [senders.submit(call, number) for number in range(50)]
        with calls:
            calls.until(READS_AT_ONCE)
            headers = {"Authorization": f"Bearer {server.token('modest', 'read')}"}
            assert server.http.get("/v1/projects/p/builds", headers=headers).status_code == 200
            assert not calls.has_more()
        assert {one.result() for one in strangers} == {403}


def test_each_route_that_reads_one_build_or_trigger_waits_for_a_slot(server: ApiServer) -> None:
    """A new route has to be among them, or to have limits of its own."""
    own_limits = (
        "/log/lines",
        "/log/steps",
        "/log/search",
        "/log/stream",
        "/log-{build}.txt",
        ".svg",
    )
    without = [
        route.path
        for router in server.app.state.routers
        for route in router.routes
        if "GET" in route.methods
        and any(part in route.path for part in ("{build}", "{operation", "{trigger}"))
        and not route.path.startswith("/worker/")
        and not route.path.endswith(own_limits)
        and READ_SLOT.dependency not in {one.call for one in route.dependant.dependencies}
    ]
    assert without == []


def test_searches_of_strangers_wait_and_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = HeldCalls()
    calls.hold(monkeypatch, log_routes, "search_log")
    with (
        api_server(tmp_path, auth=True, public_projects=("p",)) as server,
        ThreadPoolExecutor(50) as senders,
    ):
        member = {"Authorization": f"Bearer {server.token('member', 'read', 'submit')}"}
        steps = {"steps": [{"name": "busybox"}]}
        made = httpx.post(
            f"{server.url}/v1/projects/p/builds", json=steps, headers=member, timeout=DEADLINE_S
        )
        build = made.json()["metadata"]["build"]["id"]
        LogFileSink(log_folder(server.context.data_folder, build)).close()
        path = f"{server.url}/buildrunner/v1/projects/p/builds/{build}/log/search"
        requested = {"params": {"q": "x"}, "timeout": 60}
        forms = ("application/json", "application/x-ndjson")

        def search(number: int) -> int:
            return httpx.get(path, headers={"Accept": forms[number % 2]}, **requested).status_code

        strangers = [senders.submit(search, number) for number in range(50)]
        with calls:
            calls.until(SEARCHES_AT_ONCE)
            builds = httpx.get(f"{server.url}/v1/projects/p/builds", headers=member, timeout=60)
            assert builds.status_code == 200
            assert not calls.has_more()
        assert [one.result() for one in strangers] == [200] * 50


def test_slow_readers_of_a_search_hold_no_slot(tmp_path: Path) -> None:
    """Issue: four answers that were read slowly turned off the pages of a public project."""
    with api_server(tmp_path) as server, contextlib.ExitStack() as stack:
        build = f"/buildrunner/v1/projects/p/builds/{server.create()}/log"
        log = LogFileSink(log_folder(server.context.data_folder, build.split("/")[-2]))
        log.write(LogChunk(b"a\n" * 100_000, None, now()))
        log.close()
        asked = f"GET {build}/search?q=a&limit=1000 HTTP/1.1\r\nHost: localhost\r\n"
        for _ in range(SEARCHES_AT_ONCE):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.settimeout(DEADLINE_S)
            reader.connect(("127.0.0.1", server.port))
            reader.sendall(f"{asked}Accept: application/x-ndjson\r\n\r\n".encode())
            assert reader.recv(100).startswith(b"HTTP/1.1 200")
        answer = httpx.get(f"{server.url}{build}/lines?count=1", timeout=DEADLINE_S)
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/p/builds?filter=images%3Dx",
        "/builds?project=p&filter=images%3Dx",
        "/trends?project=p",
    ],
)
def test_filters_of_strangers_wait_and_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    calls = HeldCalls()
    with (
        api_server(tmp_path, auth=True, public_projects=("p",)) as server,
        ThreadPoolExecutor(20) as senders,
    ):
        member = {"Authorization": f"Bearer {server.token('member', 'read')}"}
        calls.hold(monkeypatch, SqlBuilds, "page")

        def ask(_: int) -> int:
            return httpx.get(f"{server.url}{path}", timeout=60).status_code

        strangers = [senders.submit(ask, number) for number in range(20)]
        with calls:
            calls.until(SEARCHES_AT_ONCE)
            listed = httpx.get(f"{server.url}/v1/projects/p/triggers", headers=member, timeout=60)
            assert listed.status_code == 200
            assert not calls.has_more()
        assert [one.result() for one in strangers] == [200] * 20


def test_a_text_full_of_commas_is_one_value(server: ApiServer) -> None:
    script = ",[{" * MAX_VALUES
    answer = server.http.post(
        "/v1/projects/p/builds", json={"steps": [{"name": "busybox", "script": script}]}
    )
    assert answer.status_code == 200, answer.text


def test_a_manifest_of_what_are_no_files_is_refused_at_the_first(server: ApiServer) -> None:
    body = b'{"files":[' + b"[]," * MANY + b"[]]}"
    answer = server.http.post(SOURCES, content=body)
    assert answer.status_code == 400, answer.text
    assert "files[0]" in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", ["$" * (MAX_VALUES + 1), "a" * 2_000_000])
def test_texts_that_take_long_to_check_are_refused(server: ApiServer, text: str) -> None:
    body = {"steps": [{"name": "busybox", "args": [text]}]}
    answer = server.http.post("/v1/projects/p/builds", json=body)
    assert answer.status_code == 400
    assert "in the body" in answer.text or "the body holds" in answer.text


@pytest.mark.parametrize("tail", ["token" * 200_000, "?x=&" + "token&" * 200_000])
def test_an_address_is_looked_through_for_passwords_in_one_go(tail: str) -> None:
    address = f"https://git.example.com/?x=1&{tail}"
    begun = time.process_time()
    assert not has_password(address)
    assert without_password(address) == address
    assert time.process_time() - begun < 5


def test_a_search_of_builds_stops_when_its_time_is_over_and_goes_on_with_the_next_page(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {server.create() for _ in range(4)}
    monkeypatch.setattr(sql_lists, "_LONGEST_S", 0.0)
    found, token, pages = set(), "", 0
    while pages == 0 or token:
        query = {"filter": '"busybox"', "pageToken": token}
        page = server.http.get("/v1/projects/p/builds", params=query).json()
        found |= {one["id"] for one in page.get("builds", ())}
        token, pages = page.get("nextPageToken", ""), pages + 1
    assert (found, pages) == (wanted, 4)


OF_ACME = {"owner": "acme", "name": "app"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"includedFiles": [f"**/{at}" for at in range(90_000)]}, "includedFiles"),
        ({"ignoredFiles": ["["] * 201}, "ignoredFiles"),
        ({"ignoredFiles": ["[" * 1_000_000]}, "ignoredFiles[0]"),
        ({"tags": ["a"] * 90_000}, "tags"),
        ({"substitutions": {f"_A{at}": "$_A1" for at in range(90_000)}}, "substitutions"),
        ({"substitutions": {"_A": "a" * 4001}}, "substitutions._A"),
        ({"github": {**OF_ACME, "push": {"branch": "(" * 1_000_000}}}, "github.push.branch"),
        ({"github": {**OF_ACME, "pullRequest": {"branch": "a" * 1001}}},
         "github.pullRequest.branch"),
    ],
)  # fmt: skip
def test_a_trigger_that_each_delivery_would_take_long_over_is_refused(
    server: ApiServer, fields: dict[str, object], path: str
) -> None:
    document = {"name": "t", "build": {"steps": [{"name": "busybox"}]}, **fields}
    answer = server.http.post("/v1/projects/p/triggers", json=document)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{path}: ")
    assert server.http.get("/v1/projects/p/triggers").json()["triggers"] == []
