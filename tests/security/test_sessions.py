"""What a browser holds is worth little when it is stolen, and other sites can't use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from buildrunner.server.http.access import IDLE, LONGEST
from buildrunner.server.http.tokens import hash_of
from buildrunner.store.sql.backup import backup, restore
from tests.api_server import ApiServer, api_server, now

COOKIE = "buildrunner_session"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=True) as running:
        yield running


@contextmanager
def browser(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def sign_in(client: httpx.Client, token: str, **headers: str) -> httpx.Response:
    return client.post("/login", data={"token": token, "next": "/builds"}, headers=headers)


def queued_build(server: ApiServer) -> str:
    owner = {"Authorization": f"Bearer {server.token('owner', 'submit')}"}
    body = {"steps": [{"name": "busybox"}]}
    answer = server.http.post("/v1/projects/p/builds", json=body, headers=owner)
    return str(answer.json()["metadata"]["build"]["id"])


def csrf_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
    assert found, page.text
    return found[1]


def is_signed_in(client: httpx.Client, session: str = "") -> bool:
    """Whether a browser sees pages, and its scripts the API; with a session of its own if given."""
    headers = {"Cookie": f"{COOKIE}={session}"} if session else {}
    page = client.get("/builds", headers=headers).status_code
    api = client.get("/v1/projects/p/builds", headers=headers).status_code
    assert (page, api) in ((200, 200), (303, 403))
    return page == 200


def test_the_cookie_is_neither_the_token_nor_in_the_database(server: ApiServer) -> None:
    token = server.token("t", "read")
    with browser(server.url) as client:
        sign_in(client, token)
        session = client.cookies[COOKIE]
    assert session != token
    assert len(session) >= 43  # 256 bits
    file = Path(server.context.data_folder)
    stored = b"".join(path.read_bytes() for path in file.glob("server.db*"))
    assert hash_of(session).encode() in stored
    assert session.encode() not in stored
    headers = {"Authorization": f"Bearer {session}"}
    assert server.http.get("/v1/projects/p/builds", headers=headers).status_code == 401


def test_each_sign_in_has_a_session_of_its_own_and_ends_the_one_before(server: ApiServer) -> None:
    token = server.token("t", "read")
    with browser(server.url) as client:
        planted = {"Cookie": f"{COOKIE}=planted-by-an-attacker"}
        sign_in(client, token, **planted)
        first = client.cookies[COOKIE]
        assert first != "planted-by-an-attacker"
        sign_in(client, token)
        assert client.cookies[COOKIE] != first
        assert is_signed_in(client)
    with browser(server.url) as thief:
        assert not is_signed_in(thief, first)


def test_a_stolen_cookie_is_worth_nothing_after_its_owner_signed_out(server: ApiServer) -> None:
    with browser(server.url) as client, browser(server.url) as thief:
        sign_in(client, server.token("t", "read"))
        session = client.cookies[COOKIE]
        assert is_signed_in(thief, session)
        client.post("/logout", data={"csrf": csrf_of(client.get("/builds"))})
        assert COOKIE not in client.cookies
        assert not is_signed_in(thief, session)


def test_a_session_ends_when_its_token_is_revoked(server: ApiServer) -> None:
    admin = {"Authorization": f"Bearer {server.token('boss', 'admin')}"}
    with browser(server.url) as client:
        sign_in(client, server.token("t", "read"))
        assert is_signed_in(client)
        server.http.delete("/buildrunner/v1/tokens/t", headers=admin)
        assert not is_signed_in(client)


def test_an_open_stream_ends_with_its_session(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.api.logs.CHECKED_EVERY_S", 0.0)
    build = queued_build(server)
    with browser(server.url) as client, browser(server.url) as thief:
        sign_in(client, server.token("t", "read"))
        thief.cookies.update(client.cookies)
        path = f"/buildrunner/v1/projects/p/builds/{build}/log/stream"
        with thief.stream("GET", path) as answer:
            messages = answer.iter_lines()
            assert any("QUEUED" in line for line in messages)
            page = client.get("/builds")
            client.post("/logout", data={"csrf": csrf_of(page)})
            assert not is_signed_in(client)
            server.run(build, None)  # the next message would say that it works
            assert not any("WORKING" in line for line in messages)


def test_a_session_expires_without_use_and_in_the_end_also_with_it(tmp_path: Path) -> None:
    moment = now()
    with (
        api_server(tmp_path, auth=True, clock=lambda: moment) as server,
        browser(server.url) as client,
    ):
        sign_in(client, server.token("t", "read"))
        begun = moment
        while moment < begun + LONGEST - IDLE:
            moment += IDLE - timedelta(seconds=1)
            assert is_signed_in(client)
        moment = begun + LONGEST - timedelta(seconds=1)
        assert is_signed_in(client)
        moment = begun + LONGEST
        assert not is_signed_in(client)
        sign_in(client, server.token("u", "read"))
        moment += IDLE
        assert not is_signed_in(client)


def test_with_https_the_cookie_is_sent_by_https_to_this_host_only(tmp_path: Path) -> None:
    """Also where a proxy speaks https, and the server itself does not."""
    with api_server(tmp_path, auth=True, public_url="https://builds.example.com") as server:
        with browser(server.url) as client:
            answer = sign_in(client, server.token("t", "read"))
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-buildrunner_session=")
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"secure", "httponly", "samesite=lax", "path=/"} <= attributes
        assert not any(each.startswith("domain") for each in attributes)
        assert "max-age=31536000" in answer.headers["strict-transport-security"]


def test_forms_hold_after_a_restart_and_on_another_server_of_the_database(
    server: ApiServer,
) -> None:
    build = queued_build(server)
    with (
        browser(server.url) as client,
        api_server(server.context.data_folder, auth=True) as other,
    ):
        sign_in(client, server.token("t", "admin"))
        csrf = csrf_of(client.get(f"/builds/p/{build}"))
        answer = client.post(f"{other.url}/builds/p/{build}/cancel", data={"csrf": csrf})
        assert answer.headers["location"] == f"/builds/p/{build}"
    assert server.store.builds.find(build).status == "CANCELLED"


def test_a_form_of_another_session_does_nothing(server: ApiServer) -> None:
    build = queued_build(server)
    with browser(server.url) as client, browser(server.url) as attacker:
        sign_in(client, server.token("t", "admin"))
        sign_in(attacker, server.token("eve", "admin"))
        for csrf in (csrf_of(attacker.get(f"/builds/p/{build}")), "", "é"):
            answer = client.post(f"/builds/p/{build}/cancel", data={"csrf": csrf})
            assert answer.status_code == 403
    assert server.store.builds.find(build).status == "QUEUED"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
    ],
)
def test_another_site_can_not_sign_a_browser_in(server: ApiServer, headers: dict[str, str]) -> None:
    with browser(server.url) as client:
        answer = sign_in(client, server.token("eve", "admin"), **headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


def test_sessions_do_not_come_back_with_a_backup(tmp_path: Path) -> None:
    with api_server(tmp_path, auth=True) as server, browser(server.url) as client:
        sign_in(client, server.token("t", "read"))
        session = client.cookies[COOKIE]
        address = f"sqlite:///{tmp_path}/server.db"
        backup(address, str(tmp_path / "backup.db"))
    restore(str(tmp_path / "backup.db"), address, replace=True)
    with api_server(tmp_path, auth=True) as server, browser(server.url) as client:
        assert [token.name for token in server.store.tokens.all()] == ["t"]
        assert not is_signed_in(client, session)


def test_signing_in_and_out_is_in_the_audit_log(server: ApiServer) -> None:
    with browser(server.url) as client:
        sign_in(client, server.token("t", "read"))
        client.post("/logout", data={"csrf": csrf_of(client.get("/builds"))})
    found = [(entry.who, entry.action) for entry in server.store.audit.page(limit=2)]
    assert found == [("t", "logout"), ("t", "login")]
