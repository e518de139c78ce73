"""A token of a worker opens the builds that its workers hold, and nothing else."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from buildrunner import wiring
from buildrunner.logs.files.log_file import IndexRecord
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.secrets.secret_name import SecretName
from buildrunner.secrets.secret_scope import Asker, Scope
from buildrunner.settings import Settings
from buildrunner.store.model.builds import ClaimedBuild, Lease
from buildrunner.store.sql.triggers import SqlTriggers
from buildrunner.wiring.secrets import ServerSecrets
from buildrunner.workspace.carried import Packer
from buildrunner.workspace.kept import ARCHIVE
from tests.api_server import ApiServer, api_server
from tests.held_calls import HeldCalls
from tests.held_secrets import HeldSecrets
from tests.server.test_workers import bearer, begun, claim, claimed, create, user, worker


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=True) as found:
        yield found


def document(server: ApiServer, build_id: str) -> dict[str, Any]:
    return server.store.builds.find(build_id).document


def looks_before(
    server: ApiServer, then: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let something happen right after the server looked who holds a lease."""
    look = server.store.queue.holder

    def holder(lease: Lease) -> ClaimedBuild | None:
        found = look(lease)
        monkeypatch.setattr(server.store.queue, "holder", look)
        then()
        return found

    monkeypatch.setattr(server.store.queue, "holder", holder)


def test_a_document_for_the_next_lease_is_not_written_when_that_lease_is_taken_meanwhile(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = worker(server, projects=("a",))
    build = create(user(server), "a")
    path, lease = claimed(mine)
    next_lease = {"fence": lease["fence"] + 1}
    forged = {
        **document(server, build),
        "projectId": "b",
        "buildTriggerId": "t",
        "status": "WORKING",
    }

    def take_over() -> None:
        answer = mine.post(f"{path}:takeOver", params={**lease, "worker": "host/1"})
        assert answer.json()["fence"] == next_lease["fence"]

    looks_before(server, take_over, monkeypatch)
    refused = mine.put(f"{path}/document", params=next_lease, json=forged)
    assert refused.status_code == 409
    assert document(server, build)["projectId"] == "a"
    assert "buildTriggerId" not in document(server, build)


def test_a_worker_changes_neither_project_nor_trigger_nor_name_of_its_build(
    server: ApiServer,
) -> None:
    mine = worker(server)
    build = create(user(server), "a")
    path, lease = begun(mine)
    before = document(server, build)
    forged = {
        **before,
        "status": "WORKING",
        "projectId": "b",
        "buildTriggerId": "t",
        "name": "projects/b/locations/global/builds/x",
        "createTime": "2020-01-01T00:00:00Z",
        "approval": {"state": "APPROVED"},
    }
    assert mine.put(f"{path}/document", params=lease, json=forged).status_code == 204
    kept = ("projectId", "buildTriggerId", "name", "createTime", "approval")
    after = document(server, build)
    assert [after.get(name) for name in kept] == [before.get(name) for name in kept]


@pytest.mark.parametrize("token", [{"projects": ("b",)}, {"pool": "arm"}], ids=str)
def test_an_ended_build_of_another_scope_looks_like_one_that_does_not_exist(
    server: ApiServer, token: dict[str, Any]
) -> None:
    mine, other = worker(server), worker(server, "w2", **token)
    build = create(user(server), "a")
    path, lease = begun(mine)
    ended = {**document(server, build), "status": "SUCCESS"}
    assert mine.put(f"{path}/document", params=lease, json=ended).status_code == 204

    once_more = mine.put(f"{path}/document", params=lease, json=ended)
    assert "has ended already, with status SUCCESS" in once_more.json()["error"]["message"]
    nothing = f"/worker/v1/builds/{'0' * 8}-0000-0000-0000-{'0' * 12}/document"
    found, missing = (
        other.put(one, params=lease, json=ended).json()["error"]
        for one in (f"{path}/document", nothing)
    )
    assert found["message"].replace(build, "ID") == missing["message"].replace(nothing[18:54], "ID")
    assert claim(other).status_code == 204


_URL = "https://git.example.com/acme/app"


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ({"url": _URL, "revision": "a" * 40}, {"url": _URL, "revision": "a" * 40}),
        (
            {"url": "https://evil.example", "revision": "a" * 40},
            {"url": _URL, "revision": "a" * 40},
        ),
        ({"url": _URL, "dir": "x", "revision": "a" * 40}, {"url": _URL, "revision": "a" * 40}),
        ({"url": _URL, "revision": f"../../../victim/repo/statuses/{'a' * 40}"}, None),
        ({"url": _URL, "revision": "main"}, None),
    ],
)
def test_a_worker_decides_the_commit_of_its_source_and_not_its_repository(
    server: ApiServer, sent: dict[str, str], stored: dict[str, str] | None
) -> None:
    mine, client = worker(server), user(server)
    build = create(client, "a", source={"gitSource": {"url": _URL, "revision": "main"}})
    path, lease = begun(mine)
    ended = {
        **document(server, build),
        "status": "FAILURE",
        "sourceProvenance": {
            "resolvedGitSource": sent,
            "resolvedRepoSource": {"repoName": "evil", "commitSha": "b" * 40},
        },
    }
    assert mine.put(f"{path}/document", params=lease, json=ended).status_code == 204
    found = document(server, build).get("sourceProvenance", {})
    assert found == ({} if stored is None else {"resolvedGitSource": stored})


def test_the_commit_that_a_build_names_is_the_one_it_was_built_from(server: ApiServer) -> None:
    mine, client = worker(server), user(server)
    build = create(client, "a", source={"gitSource": {"url": _URL, "revision": "c" * 40}})
    path, lease = begun(mine)
    fetched = {"resolvedGitSource": {"url": _URL, "revision": "a" * 40}}
    sent = {**document(server, build), "status": "WORKING", "sourceProvenance": fetched}
    assert mine.put(f"{path}/document", params=lease, json=sent).status_code == 204
    provenance = document(server, build)["sourceProvenance"]
    assert provenance["resolvedGitSource"]["revision"] == "c" * 40


def test_the_status_of_a_build_goes_forward_only(server: ApiServer) -> None:
    mine = worker(server)
    build = create(user(server), "a")
    path, lease = begun(mine)
    sent = document(server, build)
    codes = [
        mine.put(f"{path}/document", params=lease, json={**sent, "status": status}).status_code
        for status in ("QUEUED", "WORKING", "QUEUED", "WORKING")
    ]
    assert codes == [204, 204, 400, 204]


def piece_of(text: bytes, *records: IndexRecord) -> bytes:
    return b"".join((len(records).to_bytes(4, "little"), *(one.packed() for one in records), text))


@pytest.mark.parametrize(
    "records",
    [
        [IndexRecord(1, 0, 1, 0), IndexRecord(1, 0, 1, 0)],
        [IndexRecord(1, 2, 1, 0)],
        [IndexRecord(1, 0, 1 << 62, 0)],
        [IndexRecord(1, 0, -(1 << 62), 0)],
        [IndexRecord(1, 0, 1, (1 << 31) - 1)],
        [IndexRecord(1, 0, 1, -2)],
        [IndexRecord(1, 0, 1, 0, 2)],
    ],
    ids=["no text", "lines", "time", "time before all", "many steps", "no step", "output"],
)
def test_a_piece_of_a_log_has_only_records_that_a_writer_makes(
    server: ApiServer, records: list[IndexRecord]
) -> None:
    mine = worker(server)
    create(user(server), "a")
    path, lease = begun(mine)
    put = {"url": f"{path}/log", "params": {**lease, "offset": 0}}
    assert mine.put(**put, content=piece_of(b"x", *records)).status_code == 400
    good = mine.put(**put, content=piece_of(b"x", IndexRecord(1, 0, 1, 0, 1)))
    assert good.json() == {"offset": 1}


@pytest.mark.parametrize(
    "line",
    [
        b'{"sequence":2,"event":"buildStarted","buildId":"b","steps":1,"at":"2026-01-01T00:00:00Z"}\n',
        b'{"sequence":0,"event":"buildStarted","buildId":"b","steps":1,"at":"2026-01-01T00:00:00Z"}\n',
        b'{"sequence":1,"event":"buildStarted",\r"buildId":"b","steps":1,"at":"2026-01-01T00:00:00Z"}\n',
    ],
)
def test_events_come_in_their_order_each_on_a_line(server: ApiServer, line: bytes) -> None:
    mine = worker(server)
    create(user(server), "a")
    path, lease = begun(mine)
    answer = mine.put(f"{path}/events", params={**lease, "offset": 0}, content=line)
    assert answer.status_code == 400
    assert "event 1" in answer.json()["error"]["message"]


@pytest.mark.parametrize("what", ["log", "events"])
def test_an_offset_before_the_beginning_is_refused(server: ApiServer, what: str) -> None:
    mine = worker(server)
    create(user(server), "a")
    path, lease = begun(mine)
    answer = mine.get(f"{path}/{what}", params={**lease, "offset": -1})
    assert answer.status_code == 400


def test_a_plan_or_document_of_very_many_values_is_refused_before_it_is_decoded(
    server: ApiServer,
) -> None:
    mine = worker(server)
    create(user(server), "a")
    path, lease = begun(mine)
    for what, count in (("plan", 1_000_001), ("document", 100_001), ("deployments", 100_001)):
        body = b'{"x":[' + b"1," * count + b"1]}"
        answer = mine.put(f"{path}/{what}", params=lease, content=body)
        assert answer.status_code == 400
        assert "values" in answer.json()["error"]["message"]
    assert mine.put(f"{path}/plan", params=lease, content=b" " * (17 << 20)).status_code == 413


@pytest.mark.parametrize("order", [("STOLEN", "API_KEY"), ("API_KEY", "STOLEN")])
def test_a_secret_of_an_image_goes_to_no_other_step_under_another_variable(
    order: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: of one secret under two variables, only the last one was judged, and both got it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    image = "registry.example/deploy@sha256:" + "a" * 64
    secret = "projects/shop/secrets/api-key"
    wiring.secret_store(Settings()).put(SecretName(secret), "TOP-SECRET", Scope(images=(image,)))
    steps = tuple(
        StepPlan(
            index=index,
            image="attacker/image" if variable == "STOLEN" else image,
            secrets=(SecretReference(variable, "secretManager", f"{secret}/versions/latest"),),
        )
        for index, variable in enumerate(order)
    )
    plan = BuildPlan(build_id="b", project_id="shop", steps=steps, docker_socket=False)
    with api_server(tmp_path, auth=True, secrets=ServerSecrets(Settings())) as server:
        create(user(server), "shop")
        mine = worker(server)
        path, lease = begun(mine)
        assert mine.put(f"{path}/plan", params=lease, content=plan.to_json()).status_code == 204
        got = mine.get(f"{path}/secrets", params=lease).json()["secrets"]
        values = {one["reference"]["env"]: one.get("value", "") for one in got}
        assert values == {"STOLEN": "", "API_KEY": "TOP-SECRET"}


class SlowSecrets(HeldSecrets):
    """A key service that does not answer until it is let go."""

    def __init__(self, **values: str) -> None:
        super().__init__(**values)
        self.let_go = threading.Event()
        self.requested = threading.Semaphore(0)

    def resolve(self, asker: Asker, reference: SecretReference, plan: BuildPlan) -> str:
        self.requested.release()
        assert self.let_go.wait(60)
        return super().resolve(asker, reference, plan)


def test_a_slow_key_service_takes_no_thread_from_other_requests(tmp_path: Path) -> None:
    """Issue: workers that waited for secrets took all threads of the server."""
    secrets = SlowSecrets(KEY="value")
    step = StepPlan(
        index=0, image="busybox", secrets=(SecretReference("KEY", "secretManager", "KEY"),)
    )
    plan = BuildPlan(build_id="b", project_id="p", steps=(step,)).to_json()
    with api_server(tmp_path, auth=True, secrets=secrets) as server:
        client = user(server)
        waiting = []
        with ThreadPoolExecutor(50) as pool:
            try:
                for number in range(25):
                    create(client)
                    mine = worker(server, f"w{number}")
                    path, lease = begun(mine)
                    assert mine.put(f"{path}/plan", params=lease, content=plan).status_code == 204
                    ask = partial(mine.get, f"{path}/secrets", params=lease)
                    waiting += [pool.submit(ask), pool.submit(ask)]
                for _ in range(8):
                    assert secrets.requested.acquire(timeout=60)
                assert client.get("/v1/projects/p/builds").status_code == 200
                assert not any(one.done() for one in waiting)
            finally:
                secrets.let_go.set()
        assert {one.result().status_code for one in waiting} == {200}


def test_leases_are_renewed_while_other_callers_have_all_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each caller has few threads, but ten callers had all of them, and leases ended."""
    calls = HeldCalls()
    with api_server(tmp_path, auth=True) as server, ThreadPoolExecutor(48) as pool:
        create(user(server))
        mine = worker(server)
        path, lease = begun(mine)
        others = [bearer(server, server.token(f"t{number}", "read")) for number in range(12)]
        calls.hold(monkeypatch, SqlTriggers, "get")
        waiting = [
            pool.submit(one.get, "/v1/projects/p/triggers/nope", timeout=60)
            for one in others
            for _ in range(4)
        ]
        with calls:
            calls.until(40)
            assert mine.post(f"{path}:renew", params=lease).status_code == 200
            assert claim(mine).status_code == 204
        assert {one.result().status_code for one in waiting} == {404}


def test_a_worker_gets_only_the_workspace_with_which_its_own_build_begins(
    server: ApiServer,
) -> None:
    client, mine = user(server), worker(server, "w1", projects=("p",))
    foreign = worker(server, "w2", projects=("q",))
    first = create(client)
    path, lease = claimed(mine)
    content = b"".join(workspace_of(b"an archive"))
    keep = partial(mine.put, f"{path}/workspace", content=content)
    early = keep(params={**lease, "offset": 0, "last": True})
    assert early.status_code == 400
    assert "is not begun yet" in early.text
    assert not server.keeping.has(first)
    assert mine.post(f"{path}:begin", params={**lease, "incarnation": "1:1"}).status_code == 200
    assert mine.get(f"{path}/workspace", params=lease).status_code == 404
    not_its = foreign.put(f"{path}/workspace", params={**lease, "offset": 0}, content=content)
    assert not_its.status_code in (404, 409)
    kept = keep(params={**lease, "offset": 0, "last": True})
    assert kept.json() == {"offset": len(content)}
    failed = {**document(server, first), "status": "FAILURE"}
    failed["steps"] = [{**failed["steps"][0], "status": "FAILURE"}]
    assert mine.put(f"{path}/document", params=lease, json=failed).status_code == 204

    create(client, "q")
    other, its = begun(foreign)
    assert foreign.get(f"{other}/workspace", params=its).status_code == 404
    again = client.post(f"/v1/projects/p/builds/{first}:retry", params={"fromStep": "0"})
    assert again.status_code == 200, again.text
    path, lease = claimed(mine)
    assert mine.get(f"{path}/workspace", params=lease).status_code == 400
    assert mine.post(f"{path}:begin", params={**lease, "incarnation": "1:1"}).status_code == 200
    assert foreign.get(f"{path}/workspace", params=lease).status_code in (404, 409)
    found = mine.get(f"{path}/workspace", params=lease)
    assert found.status_code == 200
    assert b"an archive" in zlib.decompress(found.content, wbits=31)


def workspace_of(archive: bytes) -> list[bytes]:
    """The pieces of a workspace as a worker sends them."""
    pieces: list[bytes] = []
    packer = Packer(lambda piece, _: pieces.append(piece))
    with packer.file(ARCHIVE) as write:
        write(archive)
    packer.close()
    return pieces
