"""Who may do what, what is written down of it, and what strangers can't make the server do."""

import json
import logging
import socket
import threading

import pytest

from buildrunner.server.context import MIB
from buildrunner.server.http.listener import HEADER_S
from tests.api_server import api_server

STEPS = {"steps": [{"name": "busybox"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with api_server(tmp_path_factory.mktemp("server"), auth=True) as server:
        yield server


@pytest.fixture(scope="module")
def tokens(server):
    return {
        "reader": server.token("reader", "read"),
        "submitter": server.token("submitter", "submit"),
        "approver": server.token("approver", "approve"),
        "admin": server.token("admin", "admin"),
        "of_p": server.token("of_p", "read", "submit", projects=("p",)),
        "admin_of_p": server.token("admin_of_p", "admin", projects=("p",)),
    }


@pytest.fixture(scope="module")
def call(server, tokens):
    def call(who, method, path, **more):
        headers = {"Authorization": f"Bearer {tokens[who]}"} if who else {}
        return server.http.request(method, path, headers=headers, **more)

    return call


@pytest.fixture(scope="module")
def build(call):
    made = call("admin", "POST", "/v1/projects/p/builds", json=STEPS)
    return made.json()["metadata"]["build"]["id"]


TRIGGER = {"name": "t", "build": STEPS}
RULES = [
    ("GET", "/v1/projects/p/builds", "read"),
    ("GET", "/v1/projects/p/builds/{build}", "read"),
    ("GET", "/v1/projects/p/triggers", "read"),
    ("GET", "/v1/projects/p/locations/global/defaultServiceAccount", "read"),
    ("GET", "/buildrunner/v1/projects/p/builds/{build}/waiting", "read"),
    ("GET", "/buildrunner/v1/projects/p/builds/{build}/artifacts", "read"),
    ("GET", "/metrics", "read"),
    ("POST", "/v1/projects/p/builds", "submit"),
    ("POST", "/v1/projects/p/builds/{build}:retry", "submit"),
    ("POST", "/buildrunner/v1/projects/p/sources:missing", "submit"),
    ("POST", "/v1/projects/p/builds/{build}:approve", "approve"),
    ("POST", "/v1/projects/p/triggers", "admin"),
    ("PATCH", "/v1/projects/p/triggers/none", "admin"),
    ("DELETE", "/v1/projects/p/triggers/none", "admin"),
    ("GET", "/buildrunner/v1/tokens", "admin"),
    ("GET", "/buildrunner/v1/audit", "admin"),
]
HOLDERS = {"reader": "read", "submitter": "submit", "approver": "approve", "admin": "admin"}


@pytest.mark.parametrize(("method", "path", "scope"), RULES)
@pytest.mark.parametrize("who", HOLDERS)
def test_a_route_needs_its_scope(call, build, who, method, path, scope):
    body = None if method in ("GET", "DELETE") else STEPS
    answer = call(who, method, path.format(build=build), json=body)
    allowed = HOLDERS[who] in (scope, "admin")
    assert (answer.status_code != 403) is allowed, answer.text
    if not allowed:
        assert f"needs scope {scope}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path", "scope"), RULES)
def test_without_a_token_nothing_is_told(call, build, method, path, scope):
    answer = call(None, method, path.format(build=build))
    assert answer.status_code == 403
    assert "needs a token" in answer.json()["error"]["message"]


def test_health_needs_no_token(call):
    assert call(None, "GET", "/healthz").json() == {"status": "ok"}
    assert call(None, "GET", "/readyz").status_code == 200


def test_a_bad_token_is_unauthenticated(server):
    for value in ("Bearer nonsense", "Bearer brt_x", "Basic YTpi", "Bearer \xe9"):
        headers = {"Authorization": value.encode("latin-1")}
        answer = server.http.get("/v1/projects/p/builds", headers=headers)
        assert answer.status_code == 401, value
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_token_of_one_project_is_good_there_only(call, build):
    assert call("of_p", "GET", "/v1/projects/p/builds").status_code == 200
    assert call("of_p", "GET", "/v1/projects/q/builds").status_code == 403
    assert call("of_p", "POST", "/v1/projects/q/builds", json=STEPS).status_code == 403
    made = call("admin", "POST", "/v1/projects/q/builds", json=STEPS).json()
    assert call("of_p", "GET", f"/v1/{made['name']}").status_code == 404
    assert call("of_p", "POST", f"/v1/{made['name']}:cancel").status_code == 404
    other = made["metadata"]["build"]["id"]
    assert call("of_p", "GET", f"/v1/projects/p/builds/{other}").status_code == 404


def test_tokens_and_audit_are_not_for_admins_of_one_project(call):
    for path in ("tokens", "audit"):
        assert call("admin_of_p", "GET", f"/buildrunner/v1/{path}").status_code == 403
    assert call("admin_of_p", "POST", "/v1/projects/p/triggers", json=TRIGGER).status_code == 200


def test_tokens_are_made_listed_without_their_text_and_revoked(call, server):
    body = {"name": "new", "scopes": ["read"], "projects": ["p"]}
    made = call("admin", "POST", "/buildrunner/v1/tokens", json=body).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    me = server.http.get("/buildrunner/v1/whoami", headers=headers).json()
    assert (me["name"], me["scopes"], me["projects"]) == ("new", ["read"], ["p"])
    listed = call("admin", "GET", "/buildrunner/v1/tokens")
    assert made["token"] not in listed.text
    assert "new" in [token["name"] for token in listed.json()["tokens"]]
    again = call("admin", "POST", "/buildrunner/v1/tokens", json=body)
    assert again.json()["error"]["status"] == "ALREADY_EXISTS"
    assert call("admin", "DELETE", "/buildrunner/v1/tokens/new").status_code == 200
    assert server.http.get("/buildrunner/v1/whoami", headers=headers).status_code == 401
    assert call("admin", "DELETE", "/buildrunner/v1/tokens/none").status_code == 404


@pytest.mark.parametrize(
    "body", [{}, {"name": "x"}, {"name": "x", "scopes": "read"}, {"name": "x", "scopes": ["all"]}]
)
def test_a_token_that_can_not_be_is_refused(call, body):
    assert call("admin", "POST", "/buildrunner/v1/tokens", json=body).status_code == 400


def test_every_change_is_in_the_audit_log_also_what_a_known_caller_was_refused(call):
    made = call("submitter", "POST", "/v1/projects/p/builds", json=STEPS).json()
    build = made["metadata"]["build"]["id"]
    call("submitter", "POST", f"/v1/projects/p/builds/{build}:cancel")
    call("reader", "POST", f"/v1/projects/p/builds/{build}:cancel")
    call(None, "POST", "/v1/projects/p/builds", json=STEPS)
    entries = call("admin", "GET", "/buildrunner/v1/audit?limit=3").json()["entries"]
    assert [
        (entry["who"], entry["action"], entry["target"], entry["outcome"]) for entry in entries
    ] == [
        ("reader", "builds.cancel", "p", "403"),
        ("submitter", "builds.cancel", f"p/{build}", "200"),
        ("submitter", "builds.create", f"p/{build}", "200"),
    ]
    assert {entry["address"] for entry in entries} == {"127.0.0.1"}
    older = call("admin", "GET", f"/buildrunner/v1/audit?limit=1&before={entries[-1]['id']}")
    assert int(older.json()["entries"][0]["id"]) < int(entries[-1]["id"])


def test_secrets_of_webhooks_are_not_in_the_server_s_log(call, caplog):
    with caplog.at_level(logging.INFO, "buildrunner.requests"):
        call(None, "POST", "/v1/projects/p/triggers/t:webhook?secret=hush&key=k3y&trigger=t")
    requests = [each for each in caplog.records if each.name == "buildrunner.requests"]
    text = json.dumps([record.request for record in requests])
    assert "hush" not in text
    assert "k3y" not in text
    assert "secret=***&key=***&trigger=t" in text


def test_whoever_sends_too_much_reads_why(tmp_path):
    with api_server(tmp_path, max_body_bytes=1000) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sender:
                size = 8 << 20  # more than all buffers between the two
                head = "POST /v1/projects/p/builds HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                head += f"Content-Length: {size}\r\n\r\n"
                sender.sendall(head.encode() + b"x" * size)
                assert sender.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_is_too_large_is_not_read(tmp_path):
    with api_server(tmp_path, max_body_bytes=1000, max_webhook_bytes=100) as server:
        long = {"steps": [{"name": "x" * 1000}]}
        declared = server.http.post("/v1/projects/p/builds", json=long)
        assert declared.status_code == 413
        pieces = (b"x" * 500 for _ in range(1000))
        chunked = server.http.post("/v1/projects/p/builds", content=pieces)
        assert chunked.status_code == 413
        assert "larger than 1000 bytes" in chunked.json()["error"]["message"]


def test_strangers_are_refused_before_their_body_is_looked_at(server):
    answer = server.http.post("/v1/projects/p/builds", content=b"x" * (8 * MIB))
    assert answer.status_code == 403


def test_nobody_listens_for_ever_to_a_body_that_was_refused(server, monkeypatch):
    monkeypatch.setattr("buildrunner.server.http.listener.DISCARDED_BYTES", MIB)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /v1/projects/p/builds HTTP/1.1\r\nHost: localhost\r\n")
        client.sendall(b"Content-Length: 100000000\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 403 ")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            client.sendall(b"x" * 100_000_000)


def test_a_body_that_stops_coming_is_given_up(tmp_path):
    with (
        api_server(tmp_path, body_timeout_s=0.2) as server,
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        client.sendall(b"POST /v1/projects/p/builds HTTP/1.1\r\nHost: localhost\r\n")
        client.sendall(b"Content-Length: 100\r\n\r\n{")
        answer = client.makefile("rb").read()
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b"stopped coming" in answer


def test_a_client_that_says_nothing_is_hung_up_on(server, monkeypatch):
    monkeypatch.setattr("buildrunner.server.http.listener.HEADER_S", 0.2)
    assert HEADER_S > 1
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /healthz HT")
        assert client.recv(1000) == b""


def test_headers_have_an_end(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000)
        assert client.recv(1000).startswith(b"HTTP/1.1 400 ")


@pytest.fixture(scope="module")
def open_server(tmp_path_factory):
    """Whoever reaches it may use it: so web pages must not reach it."""
    with api_server(tmp_path_factory.mktemp("open")) as server:
        yield server


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example.com"},
        {"Host": "evil.example.com:8080"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_without_tokens_pages_of_others_are_refused(open_server, headers):
    answer = open_server.http.post("/v1/projects/p/builds", json=STEPS, headers=headers)
    assert answer.json()["error"]["status"] == "PERMISSION_DENIED"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "[::1]:80", "127.9.9.9"])
def test_without_tokens_this_machine_s_names_are_ours(open_server, host):
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    answer = open_server.http.post("/v1/projects/p/builds", json=STEPS, headers=headers)
    assert answer.status_code == 200


def test_many_callers_at_once_are_all_answered(server, call):
    codes = []
    threads = [
        threading.Thread(
            target=lambda: codes.append(call("admin", "GET", "/v1/projects/p/builds").status_code)
        )
        for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 40
