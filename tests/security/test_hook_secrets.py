"""A hook whose secret does not come holds up nothing but itself."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from buildrunner.errors import SecretNotFound
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.events import hook_secrets
from buildrunner.server.events.hook_secrets import (
    FORGES,
    HookSecrets,
    SecretSlow,
    namesake,
    secret_name,
)
from tests.api_server import ApiServer, api_server
from tests.held_secrets import HeldSecrets

SECRET = "s3cret"
BODY = b'{"ref": "refs/heads/main"}'
WEBHOOK = "projects/p/secrets/slow/versions/latest"
LIMIT_S = 5.0


class HangingSecrets(HeldSecrets):
    """Names that begin with a given one hang until they are let go."""

    def __init__(self, **values: str) -> None:
        super().__init__(**values)
        self.let_go = threading.Event()
        self.both_hang = threading.Event()
        self.hang = ("hooks-gitlab", WEBHOOK)
        self.fetched: list[str] = []

    def value(self, asker: Asker, name: str) -> str:
        self.fetched.append(name)
        if {"hooks-gitlab", WEBHOOK} <= set(self.fetched):
            self.both_hang.set()
        if name.startswith(self.hang):
            self.let_go.wait(60)
        return super().value(asker, name)


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingSecrets]:
    monkeypatch.setattr(hook_secrets, "LIMIT_S", LIMIT_S)
    held = HangingSecrets(**{"hooks-github": SECRET, "hooks-gitlab": SECRET, WEBHOOK: SECRET})
    yield held
    held.let_go.set()


@pytest.fixture
def server(tmp_path: Path, secrets: HangingSecrets) -> Iterator[ApiServer]:
    with api_server(tmp_path, secrets=secrets) as running:
        yield running
        secrets.let_go.set()


def signed(server: ApiServer) -> int:
    signature = hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"}
    return server.http.post("/hooks/github", content=BODY, headers=headers).status_code


def hanging(
    server: ApiServer, secrets: HangingSecrets, pool: ThreadPoolExecutor, count: int
) -> list[Future[httpx.Response]]:
    """Deliveries of hooks whose secrets hang, under way."""
    trigger = {
        "name": "slow",
        "webhookConfig": {"secret": WEBHOOK},
        "build": {"steps": [{"name": "busybox"}]},
    }
    assert server.http.post("/v1/projects/p/triggers", json=trigger).status_code == 200
    headers = {"X-Gitlab-Token": SECRET, "X-Gitlab-Event": "Push Hook"}
    webhook = f"/v1/projects/p/triggers/slow:webhook?secret={SECRET}"
    requested = []
    for number in range(count):
        requested.append(
            pool.submit(server.http.post, "/hooks/gitlab", content=b"{}", headers=headers)
        )
        requested.append(pool.submit(server.http.post, webhook, json={"n": number}))
    assert secrets.both_hang.wait(30)
    return requested


def test_others_go_on_while_a_secret_hangs_however_many_ask_for_it(
    server: ApiServer, secrets: HangingSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_secrets, "LIMIT_S", 4 * LIMIT_S)  # more than all questions below take
    with ThreadPoolExecutor(120) as pool:
        requested = hanging(server, secrets, pool, 40)
        assert server.http.get("/healthz").status_code == 200
        assert signed(server) == 200
        assert server.http.get("/v1/projects/p/builds").status_code == 200
        assert not any(one.done() for one in requested)
        codes = {one.result().status_code for one in requested}
    assert codes == {503}
    assert secrets.fetched.count("hooks-gitlab") == 1
    assert secrets.fetched.count(WEBHOOK) == 1


def test_what_came_too_late_counts_for_the_next_delivery(
    server: ApiServer, secrets: HangingSecrets
) -> None:
    headers = {"X-Gitlab-Token": SECRET, "X-Gitlab-Event": "Push Hook"}
    answer = server.http.post("/hooks/gitlab", content=b"{}", headers=headers)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    (seen,) = server.http.get("/buildrunner/v1/deliveries").json()["deliveries"]
    assert "its secret can't be had now: the secret hooks-gitlab did not come" in seen["reason"]
    secrets.let_go.set()
    answer = server.http.post("/hooks/gitlab", content=b"{}", headers=headers)
    assert answer.status_code == 200


def test_a_store_that_breaks_is_503_and_a_wrong_signature_401(
    server: ApiServer, secrets: HangingSecrets
) -> None:
    secrets.broken = "the store is damaged"
    assert signed(server) == 503
    secrets.broken = ""
    assert signed(server) == 200
    bad = {"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=00"}
    assert server.http.post("/hooks/github", content=BODY, headers=bad).status_code == 401


@pytest.mark.parametrize("name", ["server", "server-acme"])
def test_no_hook_has_the_secret_of_a_hook_of_another_forge(
    server: ApiServer, secrets: HangingSecrets, name: str
) -> None:
    other = f"hooks-bitbucket-{name}"
    secrets[other] = SECRET
    signature = hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()
    headers = {"X-Event-Key": "repo:push", "X-Hub-Signature": f"sha256={signature}"}
    answer = server.http.post(f"/hooks/bitbucket/{name}", content=BODY, headers=headers)
    assert answer.status_code == 404
    assert "its secret would be bitbucket-server's" in answer.json()["error"]["message"]


def test_all_hooks_that_there_can_be_have_secrets_of_their_own() -> None:
    names = ["", "server", "server-x", "x", "x-server", "hub", "lab", "app"]
    hooks = [(forge, name) for forge in (*FORGES, "pubsub") for name in names]
    secrets = [
        secret_name(f"{forge}/{name}" if name else forge)
        for forge, name in hooks
        if not namesake(forge, name)
    ]
    assert len(secrets) == len(set(secrets))


class PricedSecrets(HeldSecrets):
    """Secrets that are elsewhere, where each look costs."""

    def __init__(self, **values: str) -> None:
        super().__init__(**values)
        self.looked_for: list[str] = []
        self.listed = 0

    def value(self, asker: Asker, name: str) -> str:
        self.looked_for.append(name)
        return super().value(asker, name)

    def own_names(self) -> Collection[str]:
        self.listed += 1
        return ()


def test_a_stranger_who_makes_up_hooks_has_no_secret_looked_for(tmp_path: Path) -> None:
    secrets = PricedSecrets(**{"hooks-github": SECRET})
    with api_server(tmp_path, secrets=secrets) as server:
        for number in range(20):
            answer = server.http.post(f"/hooks/github/made-up-{number}", content=BODY)
            assert answer.status_code == 401
        assert secrets.looked_for == []
        assert signed(server) == 401
        server.store.hooks.put("github", {"host": "https://github.com", "owners": ["acme"]})
        assert signed(server) == 200
        assert secrets.looked_for == ["hooks-github"]


def test_made_up_hooks_take_no_place_of_genuine_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue: a stranger who made up hooks had the secrets of others refused."""
    monkeypatch.setattr(hook_secrets, "_MOST_AT_ONCE", 2)
    held = PricedSecrets(**{"hooks-github": SECRET})
    threads = threading.active_count()

    async def deliveries() -> list[str | BaseException]:
        secrets = HookSecrets(held, lambda: ["github"])
        asker = Asker(use=Use.HOOK)
        made_up = [secrets.of(asker, f"hooks-github-made-up-{number}") for number in range(900)]
        asked = asyncio.gather(*made_up, secrets.of(asker, "hooks-github"), return_exceptions=True)
        await asyncio.sleep(0)
        assert threading.active_count() <= threads + 1
        return await asked

    *refused, found = asyncio.run(deliveries())
    assert found == SECRET
    assert {type(one) for one in refused} == {SecretNotFound}
    assert held.listed <= 2
    assert held.looked_for == ["hooks-github"]


def test_slow_secrets_of_a_project_take_no_place_of_others(
    secrets: HangingSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_secrets, "_MOST_AT_ONCE", 2)
    secrets.hang = (WEBHOOK,)
    secrets["quick"] = SECRET

    async def calls() -> str:
        kept = HookSecrets(secrets, tuple)
        greedy = Asker(use=Use.WEBHOOK, project="greedy")
        slow = [asyncio.ensure_future(kept.of(greedy, f"{WEBHOOK}{number}")) for number in range(3)]
        try:
            with pytest.raises(SecretSlow, match="too many"):
                await slow[-1]
            return await kept.of(Asker(use=Use.WEBHOOK, project="other"), "quick")
        finally:
            for one in slow:
                one.cancel()
            secrets.let_go.set()

    assert asyncio.run(calls()) == SECRET
