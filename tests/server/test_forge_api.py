"""Comments on pull requests: what the payload does not tell is asked of the forge."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from buildrunner.errors import SecretError, ServerError
from buildrunner.server.forge_api import ForgeApi
from buildrunner.sources.source_policy import SourcePolicy
from buildrunner.triggers.events import PullRequestEvent, Repository

COMMIT = "b" * 40


class Forge:
    """An API that answers what it is told to, and remembers who asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        forge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                forge.asked.append((self.path, self.headers.get("Authorization", "")))
                code, content = forge.answers.get(self.path, (404, b"{}"))
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/api/v1/repos/acme/app"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def say(self, path: str, answer: Any, code: int = 200) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.answers[f"/api/v1/repos/acme/app{path}"] = (code, content)


@pytest.fixture
def forge() -> Iterator[Forge]:
    running = Forge()
    yield running
    running.close()


def comment(forge: Forge, **fields: Any) -> PullRequestEvent:
    return PullRequestEvent(
        repository=Repository(full_name="acme/app", forge="gitea"),
        number=7,
        action="commented",
        base_branch="",
        head_branch="",
        comment="/gcbrun",
        commenter="eve",
        api_url=f"{forge.url}/pulls/7",
        **fields,
    )


PULL = {
    "number": 7,
    "base": {"ref": "main", "sha": "a" * 40, "repo": {"full_name": "acme/app"}},
    "head": {
        "ref": "feat",
        "sha": COMMIT,
        "repo": {"full_name": "eve/app", "clone_url": "https://git.example.com/eve/app.git"},
    },
}


def no_secret(name: str) -> str:
    raise SecretError(f"there is no {name}")


def api(secret: Any = no_secret) -> ForgeApi:
    return ForgeApi(secret, SourcePolicy(hosts=("127.0.0.1",)))


@pytest.mark.parametrize(("permission", "may"), [("write", True), ("read", False)])
def test_branches_commits_and_the_right_to_write_are_asked_for(
    forge: Forge, permission: str, may: bool
) -> None:
    forge.say("/pulls/7", PULL)
    forge.say("/collaborators/eve/permission", {"permission": permission})
    found = api().complete(comment(forge))
    assert (found.base_branch, found.head_branch, found.head_commit) == ("main", "feat", COMMIT)
    assert found.is_fork
    assert found.head_clone_url == "https://git.example.com/eve/app.git"
    assert found.commenter_may_write is may
    assert found.comment == "/gcbrun"


def test_what_the_payload_tells_is_not_asked_for(forge: Forge) -> None:
    forge.say("/pulls/7", PULL)
    assert api().complete(comment(forge, commenter_may_write=True)).commenter_may_write
    assert [path for path, _ in forge.asked] == ["/api/v1/repos/acme/app/pulls/7"]


def test_the_token_is_that_of_the_host(forge: Forge) -> None:
    forge.say("/pulls/7", PULL)
    names = []

    def secret(name: str) -> str:
        names.append(name)
        return "t0ken\n"

    api(secret).complete(comment(forge, commenter_may_write=True))
    assert names == [f"status-127-0-0-1-{forge.port}"]
    assert forge.asked[0][1] == "token t0ken"


@pytest.mark.parametrize(
    ("code", "content", "said"),
    [
        (404, b"{}", "answers 404"),
        (302, b"", "answers 302"),
        (200, b"<html>", "not answer with JSON"),
        (200, b"{}", "tells no pull request"),
        (200, b" " * (6 << 20), "more than"),
    ],
)
def test_an_api_that_does_not_answer_well_is_one_clear_error(
    forge: Forge, code: int, content: bytes, said: str
) -> None:
    forge.say("/pulls/7", content, code)
    with pytest.raises(ServerError, match=said):
        api().complete(comment(forge))


def test_a_host_that_the_policy_does_not_allow_is_not_asked(forge: Forge) -> None:
    with pytest.raises(ServerError, match="may not ask"):
        ForgeApi(no_secret, SourcePolicy()).complete(comment(forge))
    assert forge.asked == []
