"""Comments on pull requests: what the payload does not tell is asked of the forge."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from buildrunner.errors import ServerError
from buildrunner.server.events.facts import ForgeApi, may_pass
from buildrunner.server.http.pinned import TargetGate
from buildrunner.sources.policy import SourcePolicy
from buildrunner.triggers.events import PullRequestEvent, Repository
from buildrunner.triggers.forge_host import named_forge
from buildrunner.triggers.hook_binding import on_host
from tests.held_secrets import HeldSecrets, token_name

COMMIT = "b" * 40


class Forge:
    """An API that answers what it is told to, and remembers who asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.requested: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        forge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                forge.requested.append((self.path, self.headers.get("Authorization", "")))
                code, content = forge.answers.get(self.path, (404, b"{}"))
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                for name, value in forge.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def repository(self, kind: str = "gitea") -> Repository:
        return on_host(Repository(full_name="acme/app"), named_forge(kind, self.url))

    def say(self, path: str, answer: Any, code: int = 200) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.answers[f"/api/v1/repos/acme/app{path}"] = (code, content)

    def say_rights(self, kind: str, answer: Any) -> None:
        """What it says of the person 7."""
        path = named_forge(kind, self.url).rights_api("acme/app", "7").removeprefix(self.url)
        self.answers[path] = (200, json.dumps(answer).encode())


@pytest.fixture
def forge() -> Iterator[Forge]:
    running = Forge()
    yield running
    running.close()


def comment(forge: Forge, **fields: Any) -> PullRequestEvent:
    return PullRequestEvent(
        repository=forge.repository(),
        number=7,
        action="commented",
        base_branch="",
        head_branch="",
        comment="/gcbrun",
        commenter="eve",
        **fields,
    )


PULL: dict[str, Any] = {
    "number": 7,
    "base": {"ref": "main", "sha": "a" * 40, "repo": {"full_name": "acme/app"}},
    "head": {
        "ref": "feat",
        "sha": COMMIT,
        "repo": {"full_name": "eve/app", "clone_url": "https://evil.example.com/eve/app.git"},
    },
}


def api(**secrets: str) -> ForgeApi:
    return ForgeApi(HeldSecrets(**secrets), TargetGate(SourcePolicy(hosts=("127.0.0.1",))))


def test_branches_and_commits_are_asked_for(forge: Forge) -> None:
    forge.say("/pulls/7", PULL)
    found = api().complete(comment(forge))
    assert (found.base_branch, found.head_branch, found.head_commit) == ("main", "feat", COMMIT)
    assert found.is_fork
    assert found.head_clone_url == f"{forge.url}/eve/app.git"  # whatever the API says
    assert found.comment == "/gcbrun"
    assert [path for path, _ in forge.requested] == ["/api/v1/repos/acme/app/pulls/7"]


@pytest.mark.parametrize(
    ("kind", "answer", "may"),
    [
        ("github", {"permission": "write"}, True),
        ("gitea", {"permission": "admin"}, True),
        ("gitea", {"permission": "read"}, False),
        ("gitlab", {"access_level": 30}, True),
        ("gitlab", {"access_level": 20}, False),
        ("bitbucket", {"values": [{"permission": "write"}]}, True),
        ("bitbucket", {"values": [{"permission": "read"}]}, False),
        ("bitbucket", {"values": []}, False),
        ("bitbucket-server", {"values": [{"name": "eve"}]}, True),
        ("bitbucket-server", {"values": [{"name": "evelyn"}]}, False),
    ],
)
def test_who_may_write_is_asked_for(forge: Forge, kind: str, answer: Any, may: bool) -> None:
    forge.say_rights(kind, answer)
    assert api().may_write(forge.repository(kind), "7", "eve") is may


def test_on_gitlab_whoever_is_no_member_may_not_write(forge: Forge) -> None:
    assert api().may_write(forge.repository("gitlab"), "7", "eve") is False
    with pytest.raises(ServerError, match="answers 404"):
        api().may_write(forge.repository("gitea"), "7", "eve")


@pytest.mark.parametrize(("kind", "scheme"), [("gitea", "token"), ("gitlab", "Bearer")])
def test_each_forge_gets_the_token_in_its_own_way(forge: Forge, kind: str, scheme: str) -> None:
    forge.say_rights(kind, {})
    api(**{token_name(forge.url): "t0ken\n"}).may_write(forge.repository(kind), "7", "eve")
    assert forge.requested[0][1] == f"{scheme} t0ken"


def test_a_pull_request_of_another_repository_completes_nothing(forge: Forge) -> None:
    other = {**PULL["base"], "repo": {"full_name": "eve/app"}}
    forge.say("/pulls/7", {**PULL, "base": other})
    with pytest.raises(ServerError, match="it is one of eve/app, not of acme/app"):
        api().complete(comment(forge))


def test_the_token_is_that_of_the_host(forge: Forge) -> None:
    forge.say("/pulls/7", PULL)
    tokens = {f"forge-127_0_0_1__3a{forge.port}": "t0ken", "forge-127_0_0_1": "another"}
    api(**tokens).complete(comment(forge, commenter_may_write=True))
    assert forge.requested[0][1] == "token t0ken"


@pytest.mark.parametrize(
    ("code", "content", "said"),
    [
        (404, b"{}", "answers 404"),
        (302, b"", "answers 302"),
        (200, b"<html>", "not answer with JSON"),
        (200, b"{}", "sent no pull request"),
        (200, b" " * (6 << 20), "more than"),
    ],
)
def test_an_api_that_does_not_answer_well_is_one_clear_error(
    forge: Forge, code: int, content: bytes, said: str
) -> None:
    forge.say("/pulls/7", content, code)
    with pytest.raises(ServerError, match=said):
        api().complete(comment(forge))


@pytest.mark.parametrize(
    ("code", "headers", "passes"),
    [
        (503, {}, True),
        (429, {}, True),
        (403, {"X-RateLimit-Remaining": "0"}, True),
        (403, {}, False),
        (401, {}, False),
    ],
)
def test_what_passes_is_told_from_a_refusal(
    forge: Forge, code: int, headers: dict[str, str], passes: bool
) -> None:
    forge.say("/pulls/7", {}, code)
    forge.headers = headers
    with pytest.raises(ServerError, match=f"answers {code}") as raised:
        api().complete(comment(forge))
    assert may_pass(raised.value) is passes


def test_a_forge_that_is_down_may_be_up_again(forge: Forge) -> None:
    event = comment(forge)
    forge.close()
    with pytest.raises(ServerError, match="does not answer: ConnectError") as raised:
        api().complete(event)
    assert may_pass(raised.value)


def test_a_host_that_the_policy_does_not_allow_is_not_asked(forge: Forge) -> None:
    with pytest.raises(ServerError, match="may not ask"):
        ForgeApi(HeldSecrets(), TargetGate(SourcePolicy())).complete(comment(forge))
    assert forge.requested == []
