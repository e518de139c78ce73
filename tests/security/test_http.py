"""What surrounds every answer: headers for browsers, true addresses, log lines nobody can forge."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.cli.serve.settings import trusted_networks
from buildrunner.errors import UsageError
from buildrunner.server.http.request_log import JsonFormatter, TextFormatter
from tests.api_server import ApiServer, api_server

FORGED = "2026-01-01T00:00:00Z GET /builds 200 3 ms admin 10.0.0.1"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=True) as running:
        yield running


PATHS = [
    "/",
    "/builds",
    "/login",
    "/docs",
    "/docs/assets/swagger-ui.css",
    "/openapi.json",
    "/healthz",
    "/metrics",
    "/v1/projects/p/builds",
    "/badge/p/t.svg",
    "/static/x/style.css",
    "/static/x/none.css",
    "/nothing/here",
]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_says_what_browsers_may_do_with_it(server: ApiServer, path: str) -> None:
    answer = server.http.get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "base-uri 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    shared = "cross-origin" if path.startswith("/badge/") else "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == shared
    kept = path.startswith(("/static/x/style", "/docs/assets"))
    assert ("public" if kept else "no-store") in answer.headers["cache-control"]
    assert "strict-transport-security" not in answer.headers


def test_what_answers_hold_is_not_executed_where_it_fails(tmp_path: Path) -> None:
    """An error of the server itself has the headers, too."""
    with api_server(tmp_path) as server:
        server.store.close()
        answer = server.http.get("/builds")
        assert answer.status_code >= 500
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def address_in_the_audit_log(server: ApiServer, forwarded: str) -> str:
    token = server.token(f"t{len(server.store.tokens.all())}", "submit")
    headers = {"Authorization": f"Bearer {token}"}
    if forwarded:
        headers["X-Forwarded-For"] = forwarded
    server.http.post("/v1/projects/p/builds", json={"steps": [{"name": "b"}]}, headers=headers)
    return server.store.audit.page(limit=1)[0].address


def test_a_client_can_not_choose_its_address(server: ApiServer) -> None:
    assert address_in_the_audit_log(server, "192.0.2.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        ("", "127.0.0.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("198.51.100.9, 192.0.2.1", "192.0.2.1"),  # the client sent the first one itself
        ("198.51.100.9, 192.0.2.1, 10.1.2.3", "192.0.2.1"),  # two proxies
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_behind_a_trusted_proxy_the_true_client_is_seen(
    tmp_path: Path, forwarded: str, seen: str
) -> None:
    trusted = (*trusted_networks("127.0.0.1"), *trusted_networks("10.0.0.0/8"))
    with api_server(tmp_path, auth=True, trusted_proxies=trusted) as server:
        assert address_in_the_audit_log(server, forwarded) == seen


def test_a_proxy_that_is_not_trusted_is_the_client(tmp_path: Path) -> None:
    with api_server(tmp_path, auth=True, trusted_proxies=trusted_networks("10.0.0.1")) as server:
        assert address_in_the_audit_log(server, "192.0.2.1") == "127.0.0.1"


def test_refused_deliveries_are_counted_by_the_true_client(tmp_path: Path) -> None:
    trusted = trusted_networks("127.0.0.1")
    with api_server(tmp_path, trusted_proxies=trusted) as server:
        for number in range(3):
            headers = {"X-Forwarded-For": f"192.0.2.{number}"}
            server.http.post("/hooks/github", content=b"{}", headers=headers)
        addresses = {one.address for one in server.store.deliveries.page()}
        assert addresses == {"192.0.2.0", "192.0.2.1", "192.0.2.2"}


@pytest.mark.parametrize("proxy", ["proxy.example.com", "10.0.0.0/33", "*", ""])
def test_a_trusted_proxy_is_an_address_or_a_network(proxy: str) -> None:
    with pytest.raises(UsageError, match="--trusted-proxy takes an IP address"):
        trusted_networks(proxy)


def lines_of(formatter: logging.Formatter, records: list[logging.LogRecord]) -> list[str]:
    return "\n".join(formatter.format(record) for record in records).split("\n")


@pytest.mark.parametrize(
    "path",
    [
        f"/x%0a{FORGED.replace(' ', '%20')}",
        "/x%20200%203%20ms%20admin%2010.0.0.1",
        "/x%1b%5b2J",
        "/x%e2%80%a8forged",
        "/x?a=%0d%0aforged",
        "/x?\xe9",
    ],
)
def test_a_path_can_not_forge_a_line_of_the_log(
    server: ApiServer, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    with caplog.at_level(logging.INFO, "buildrunner.requests"):
        server.http.get(path)
    (line,) = lines_of(TextFormatter(), caplog.records)
    assert line.isprintable()
    _time, method, shown, code, *_, caller, address = line.split(" ")
    assert (method, code, caller, address) == ("GET", "404", "nobody", "127.0.0.1")
    assert shown.startswith("/x")
    (entry,) = lines_of(JsonFormatter(), caplog.records)
    assert entry.isprintable()
    assert json.loads(entry)["request"]["path"] == shown


@pytest.mark.parametrize("text", [f"a\n{FORGED}", "a\r\x1b[2Jb", "a\u2028b", "a\u202eb", "a\x9bb"])
def test_names_and_errors_can_not_forge_a_line_of_the_log(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        error = sys.exc_info()
    record = logging.LogRecord("x", logging.WARNING, "", 0, "user %s pushed", (text,), error)
    first, *others = lines_of(TextFormatter(), [record])
    assert " warn user a" in first
    assert all(line.startswith("  ") for line in others)
    assert all(line.isprintable() for line in (first, *others))
    (entry,) = lines_of(JsonFormatter(), [record])
    assert entry.isprintable()
    assert json.loads(entry)["message"] == f"user {text} pushed"


def test_secrets_in_addresses_are_not_in_the_log_however_they_are_written(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for name in ("secret", "SECRET", "s%65cret", "key", "access_token"):
            server.http.post(f"/hooks/pubsub/topic?x=1&{name}=hu%73h&y=2")
    ours = [record for record in caplog.records if record.name.startswith("buildrunner")]
    text = "\n".join(lines_of(JsonFormatter(), ours))
    assert "hush" not in text
    assert "hu%73h" not in text
    assert "x=1&s%65cret=***&y=2" in text


def test_a_stream_ends_when_the_token_of_its_viewer_is_revoked(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.api.logs.CHECKED_EVERY_S", 0.0)
    headers = {"Authorization": f"Bearer {server.token('t', 'read', 'submit')}"}
    body = {"steps": [{"name": "busybox"}]}
    made = server.http.post("/v1/projects/p/builds", json=body, headers=headers).json()
    build = made["metadata"]["build"]["id"]
    path = f"/buildrunner/v1/projects/p/builds/{build}/log/stream"
    with server.http.stream("GET", path, headers=headers) as answer:
        messages = answer.iter_lines()
        assert any("QUEUED" in line for line in messages)
        server.store.tokens.revoke("t", now=server.context.clock())
        server.run(build, None)  # the next message would say that it works
        assert not any("WORKING" in line for line in messages)
