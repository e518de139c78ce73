"""The worker protocol, as a worker's token opens it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.copies import log_piece
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.server.http import changes
from buildrunner.server.http.peers import Peers
from buildrunner.server.http.tokens import new_token
from buildrunner.server.services.remote_builds import RemoteBuilds
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.model.remote import ClaimRequest, WorkerIdentity
from tests.api_server import ApiServer, api_server, now
from tests.conftest import DEADLINE_S


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=True) as found:
        yield found


def user(server: ApiServer) -> httpx.Client:
    return bearer(server, server.token("user", "read", "submit", "admin"))


def worker(server: ApiServer, name: str = "w1", **token: Any) -> httpx.Client:
    text, stored = new_token(name, ["worker"], now=now(), **token)
    server.store.tokens.create(stored)
    return bearer(server, text)


_CLIENTS: list[httpx.Client] = []


@pytest.fixture(autouse=True)
def _closed_clients() -> Iterator[None]:
    yield
    while _CLIENTS:
        _CLIENTS.pop().close()


def bearer(server: ApiServer, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    client = httpx.Client(base_url=server.url, headers=headers, timeout=30)
    _CLIENTS.append(client)
    return client


def create(client: httpx.Client, project: str = "p", **build: Any) -> str:
    body = {"steps": [{"name": "busybox"}], **build}
    answer = client.post(f"/v1/projects/{project}/builds", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["metadata"]["build"]["id"])


def claim(client: httpx.Client, **request: Any) -> httpx.Response:
    return client.post("/worker/v1/builds:claim", json={"worker": "host/1", **request})


def claimed(client: httpx.Client, **request: Any) -> tuple[str, dict[str, Any]]:
    """Claim a build: the beginning of its routes, and the query of its lease."""
    answer = claim(client, **request)
    assert answer.status_code == 200, answer.text
    build = answer.json()
    return f"/worker/v1/builds/{build['document']['id']}", {"fence": build["fence"]}


def begun(client: httpx.Client, **request: Any) -> tuple[str, dict[str, Any]]:
    path, lease = claimed(client, **request)
    answer = client.post(f"{path}:begin", params={**lease, "incarnation": "1:1"})
    assert answer.status_code == 200, answer.text
    return path, lease


class TestClaim:
    def test_a_claim_waits_for_the_next_build(self, server: ApiServer) -> None:
        client, mine = user(server), worker(server)
        assert claim(mine).status_code == 204
        answers: list[httpx.Response] = []
        waits = threading.Thread(target=lambda: answers.append(claim(mine, waitS=20)))
        waits.start()
        while not server.app.state.changes.waiting:
            time.sleep(0.01)
        begin = time.monotonic()
        build = create(client)
        waits.join()
        assert answers[0].json()["document"]["id"] == build
        assert time.monotonic() - begin < 5

    def test_spare_pods_read_a_build_that_they_can_not_run_once(self, server: ApiServer) -> None:
        """After every change, every spare Pod read up to a hundred documents, each maybe large."""
        client, read = user(server), list[str]()
        worker(server, pool="arm")  # a server knows a pool by its workers
        pool = {"name": "projects/p/locations/global/workerPools/arm"}
        large = [create(client, options={"pool": pool}) for _ in range(3)]

        def fits(build: StoredBuild) -> bool:
            read.append(build.id)
            return build.id not in large

        peers = Peers(server.context.store.servers, server.context.settings.worker)
        builds = RemoteBuilds(replace(server.context, fits_spare=fits), peers)
        spares = [WorkerIdentity(name=f"pod:{n}", pool="arm", spare=f"s{n}") for n in range(4)]
        for one in spares:
            assert builds.claim(one, ClaimRequest(worker="w")) is None
        small = create(client, options={"pool": pool})
        found = builds.claim(spares[0], ClaimRequest(worker="w"))
        assert found is not None
        assert found.id == small
        assert sorted(read) == sorted([*large, small])

    def test_the_waiting_requests_of_a_token_are_limited(
        self, server: ApiServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(changes, "MOST_WAITS", 2)
        mine, other = worker(server), worker(server, "w2")
        client = user(server)
        answers: list[httpx.Response] = []
        waits = [
            threading.Thread(
                target=lambda name=name: answers.append(claim(mine, worker=name, waitS=20))
            )
            for name in ("a", "b")
        ]
        for one in waits:
            one.start()
        while server.app.state.changes.waiting < 2:
            time.sleep(0.01)
        refused = claim(mine, worker="c", waitS=20)
        assert refused.status_code == 429
        assert "2 requests of w1 wait already" in refused.json()["error"]["message"]
        assert claim(other).status_code == 204
        create(client)
        create(client)
        for one in waits:
            one.join()
        assert [one.status_code for one in answers] == [200, 200]
        assert claim(mine, worker="c").status_code == 204

    def test_a_claim_whose_client_has_hung_up_takes_no_build(self, server: ApiServer) -> None:
        mine = worker(server)
        token = mine.headers["Authorization"]
        body = json.dumps({"worker": "gone", "waitS": 60}).encode()
        for _ in range(3):
            with socket.create_connection((mine.base_url.host, mine.base_url.port)) as connection:
                head = (
                    "POST /worker/v1/builds:claim HTTP/1.1\r\nHost: x\r\n"
                    f"Authorization: {token}\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                connection.sendall(head.encode() + body)
                while not server.app.state.changes.waiting:
                    time.sleep(0.01)
        assert claim(mine).status_code == 204  # by then, the server has seen that they hung up
        create(user(server))
        assert claim(mine).status_code == 200

    def test_a_claim_of_another_scope_takes_no_lock(self, server: ApiServer) -> None:
        create(user(server))
        arm = worker(server, pool="arm")
        with server.store._database.write():  # nobody else gets the lock for as long as this lasts
            begin = time.monotonic()
            assert claim(arm).status_code == 204
            assert time.monotonic() - begin < 2

    def test_a_worker_runs_no_more_builds_than_it_says(self, server: ApiServer) -> None:
        client, mine = user(server), worker(server)
        create(client)
        create(client)
        claimed(mine)
        assert claim(mine).status_code == 204
        assert claim(mine, limit=2).status_code == 200

    def test_a_pool_has_the_builds_that_name_it(self, server: ApiServer) -> None:
        client, arm, other = user(server), worker(server, pool="arm"), worker(server, "w2")
        name = "projects/p/locations/global/workerPools/arm"
        build = create(client, options={"pool": {"name": name}})
        assert claim(other).status_code == 204
        assert claim(arm, pool="x86").status_code == 403
        running = create(client)
        claimed(other)
        refused = claim(arm, buildId=running)  # its status is none of this worker's business
        assert refused.status_code == 409
        assert "not for workers of the pool arm" in refused.json()["error"]["message"]
        path, _ = claimed(arm, pool="arm")
        assert path.endswith(build)
        shown = client.get(f"/v1/projects/p/builds/{build}").json()
        assert "warnings" not in shown

    def test_a_retry_from_a_step_stays_in_the_pool_of_its_build(self, server: ApiServer) -> None:
        """It ran outside of the pool, and waited for ever if only pools had workers."""
        client, arm = user(server), worker(server, pool="arm")
        build = create(client, options={"pool": {"name": "arm"}})
        path, lease = begun(arm)
        stored = server.store.builds.find(build).document
        failed = {**stored, "status": "FAILURE"}
        assert arm.put(f"{path}/document", params=lease, json=failed).status_code == 204
        server.keep_workspace(build)
        retried = client.post(f"/v1/projects/p/builds/{build}:retry", params={"fromStep": "0"})
        again = retried.json()["metadata"]["build"]["id"]
        assert claim(worker(server, "w2")).status_code == 204
        path, _ = claimed(arm)
        assert path.endswith(again)

    def test_a_pool_that_the_server_does_not_have_changes_nothing(self, server: ApiServer) -> None:
        client, mine = user(server), worker(server)
        build = create(client, options={"pool": {"name": "nobodys"}})
        assert claimed(mine)[0].endswith(build)
        shown = client.get(f"/v1/projects/p/builds/{build}").json()
        assert "builds run where buildrunner runs" in shown["warnings"][0]["text"]

    def test_a_token_of_projects_claims_their_builds_alone(self, server: ApiServer) -> None:
        client, mine = user(server), worker(server, projects=["q"])
        other = create(client)
        assert claim(mine).status_code == 204
        assert claim(mine, buildId=other).status_code == 404
        create(client, project="q")
        assert claim(mine).status_code == 200

    def test_a_build_that_is_named_is_claimed_once(self, server: ApiServer) -> None:
        client, mine = user(server), worker(server)
        create(client)
        build = create(client)
        assert claimed(mine, buildId=build)[0].endswith(build)
        again = claim(mine, buildId=build)
        assert again.status_code == 409
        assert "does not wait any more" in again.json()["error"]["message"]
        assert claim(mine, buildId="none").status_code == 404

    def test_builds_of_forks_wait_for_a_worker_that_isolates_them(self, tmp_path: Path) -> None:
        with api_server(tmp_path, isolation="capabilities") as server:
            mine = worker(server)
            build = server.create()
            server.store.builds.find(build)
            with server.store._database.write() as connection:
                connection.exec_driver_sql("UPDATE builds SET untrusted = 1")
            assert claim(mine).status_code == 204
            assert claim(mine, isolation="privileged").status_code == 204
            assert claim(mine, isolation="capabilities").status_code == 200

    def test_a_server_with_a_full_disk_gives_no_builds_away(self, tmp_path: Path) -> None:
        with api_server(tmp_path, min_free_bytes=1 << 60) as server:
            server.create()
            assert claim(worker(server)).status_code == 204

    @pytest.mark.parametrize(
        ("request_", "says"),
        [
            ({"worker": "../x"}, "no name of a worker"),
            ({"limit": 0}, "limit is from 1"),
            ({"isolation": "steel"}, "no isolation is called so"),
            ({"limit": "x"}, "not what this route takes"),
        ],
    )
    def test_a_claim_that_can_not_be_is_refused(
        self, server: ApiServer, request_: dict[str, Any], says: str
    ) -> None:
        answer = claim(worker(server), **request_)
        assert answer.status_code == 400
        assert says in answer.json()["error"]["message"]


class TestOwnBuilds:
    def test_nothing_is_told_or_taken_before_the_build_is_begun(self, server: ApiServer) -> None:
        create(user(server))
        mine = worker(server)
        path, lease = claimed(mine)
        for method, route in (
            ("GET", "/secrets"),
            ("GET", "/source"),
            ("GET", "/payload"),
            ("PUT", "/plan"),
            ("PUT", "/log"),
            ("POST", ":renew"),
        ):
            query = {**lease, "offset": 0}
            answer = mine.request(method, path + route, params=query, content=b"{}")
            assert (route, answer.status_code) == (route, 400)
            assert "begin it first" in answer.json()["error"]["message"]

    def test_a_second_process_of_the_same_claim_is_refused(self, server: ApiServer) -> None:
        create(user(server))
        mine = worker(server)
        path, lease = begun(mine)
        again = mine.post(f"{path}:begin", params={**lease, "incarnation": "1:1"})
        assert again.status_code == 200
        second = mine.post(f"{path}:begin", params={**lease, "incarnation": "2:2"})
        assert second.status_code == 409
        assert second.json()["error"]["details"] == [{"reason": "LEASE_LOST"}]

    def test_another_workers_build_is_as_one_that_does_not_exist(self, server: ApiServer) -> None:
        create(user(server))
        path, lease = begun(worker(server))
        other = worker(server, "w2")
        assert other.get(path).status_code == 404
        missing = "/worker/v1/builds/none"
        for method, route in (
            ("POST", ":begin"),
            ("POST", ":renew"),
            ("POST", ":takeOver"),
            ("POST", ":storeLog"),
            ("GET", "/signals"),
            ("PUT", "/document"),
            ("PUT", "/plan"),
            ("PUT", "/log"),
            ("PUT", "/events"),
            ("GET", "/log"),
            ("GET", "/events"),
            ("GET", "/source"),
            ("GET", "/payload"),
            ("GET", "/secrets"),
        ):
            query = {**lease, "incarnation": "1:1", "worker": "host/1", "offset": 0}
            told = [
                other.request(method, one + route, params=query, content=b'{"id":"none"}')
                for one in (path, missing)
            ]
            assert [one.status_code for one in told] == [409, 409], route
            texts = [one.json()["error"]["message"].replace("none", "ID") for one in told]
            assert texts[0].replace(path.rpartition("/")[2], "ID") == texts[1]

    def test_a_lease_that_was_lost_writes_nothing(self, server: ApiServer, tmp_path: Path) -> None:
        build = create(user(server))
        mine = worker(server)
        path, lease = begun(mine)
        taken = mine.post(f"{path}:takeOver", params={**lease, "worker": "host/1"}).json()
        assert taken["fence"] > lease["fence"]
        sink = LogFileSink(str(tmp_path / "log"))
        sink.write(LogChunk(b"late\n", None, now()))
        sink.close()
        piece, _ = log_piece(str(tmp_path / "log"), 0)
        query = {**lease, "offset": 0}
        assert mine.put(f"{path}/log", params=query, content=piece).status_code == 409
        answer = mine.put(f"{path}/document", params=lease, json={"id": build})
        assert answer.status_code == 409
        assert (tmp_path / "logs" / build / "log.txt").read_bytes() == b""

    def test_what_the_server_alone_sets_stays(self, server: ApiServer) -> None:
        client, mine = user(server), worker(server)
        build = create(client)
        path, lease = begun(mine)
        before = mine.get(path).json()["document"]
        changed = {**before, "projectId": "q", "buildTriggerId": "t", "status": "WORKING"}
        assert mine.put(f"{path}/document", params=lease, json=changed).status_code == 204
        shown = client.get(f"/v1/projects/p/builds/{build}").json()
        assert (shown["projectId"], shown["status"]) == ("p", "WORKING")
        assert "buildTriggerId" not in shown
        other = mine.put(f"{path}/document", params=lease, json={**changed, "id": "x"})
        assert other.status_code == 400

    def test_a_worker_changes_the_outcome_of_a_build_and_nothing_else(
        self, server: ApiServer
    ) -> None:
        client, mine = user(server), worker(server)
        requested = {"tags": ["a"], "substitutions": {"_A": "1"}, "logsBucket": "gs://logs"}
        steps = [{"name": "busybox", "args": ["$_A"]}, {"name": "busybox"}]
        build = create(client, steps=steps, **requested)
        path, lease = begun(mine)
        before = mine.get(path).json()["document"]
        at = encode_instant(now())
        done = {"status": "WORKING", "startTime": at, "statusDetail": "it works", "x": 1}
        states = [{"status": "SUCCESS", "exitCode": 0}, {"status": "WORKING"}]
        changed = {
            **before,
            **done,
            "steps": [{"name": "evil", "args": ["x"], **one} for one in states],
            "tags": ["deployed"],
            "substitutions": {"BRANCH_NAME": "main"},
            "options": {"logging": "NONE"},
            "logsBucket": "gs://others",
            "source": {"storageSource": {"bucket": "b", "object": "o"}},
            "serviceAccount": "root",
            "timeout": "1s",
        }
        refused = mine.put(f"{path}/document", params=lease, json=changed)
        assert refused.status_code == 400
        assert "x" in refused.json()["error"]["message"]
        del changed["x"], done["x"]
        put = mine.put(f"{path}/document", params=lease, json=changed)
        assert put.status_code == 204, put.text
        expected = {
            **before,
            **done,
            "steps": [
                {"name": "busybox", "args": ["1"], "status": "SUCCESS"},
                {"name": "busybox", "status": "WORKING"},
            ],
        }
        assert server.store.builds.find(build).document == expected

    def test_the_clock_of_a_worker_sets_no_time_outside_the_build(self, server: ApiServer) -> None:
        client, mine = user(server), worker(server)
        build = create(client)
        path, lease = begun(mine)
        before = mine.get(path).json()["document"]
        old, late = "2001-01-01T00:00:00Z", "2040-01-01T00:00:00Z"
        step = {"timing": {"startTime": late, "endTime": old}, "pullTiming": {"startTime": old}}
        changed = {
            **before,
            "status": "SUCCESS",
            "startTime": old,
            "finishTime": late,
            "timing": {"BUILD": {"startTime": old, "endTime": late}},
            "steps": [{**before["steps"][0], "status": "SUCCESS", **step}],
            "results": {"pythonPackages": [{"uri": "x", "pushTiming": {"endTime": late}}]},
        }
        assert mine.put(f"{path}/document", params=lease, json=changed).status_code == 204
        shown = server.store.builds.find(build).document
        first, last = shown["createTime"], shown["finishTime"]
        assert first <= last <= encode_instant(now())
        assert shown["startTime"] == first
        assert shown["timing"] == {"BUILD": {"startTime": first, "endTime": last}}
        (step,) = shown["steps"]
        assert step["timing"] == {"startTime": last, "endTime": last}
        assert step["pullTiming"] == {"startTime": first}
        (package,) = shown["results"]["pythonPackages"]
        assert package["pushTiming"] == {"endTime": last}

    def test_a_finish_is_never_before_the_start(self, server: ApiServer) -> None:
        build = create(user(server))
        mine = worker(server)
        path, lease = begun(mine)
        before = mine.get(path).json()["document"]
        start = encode_instant(now())
        changed = {
            **before,
            "status": "SUCCESS",
            "startTime": start,
            "finishTime": "2001-01-01T00:00:00Z",
        }
        assert mine.put(f"{path}/document", params=lease, json=changed).status_code == 204
        shown = server.store.builds.find(build).document
        assert (shown["startTime"], shown["finishTime"]) == (start, start)

    def test_a_log_is_what_the_worker_says(self, server: ApiServer, tmp_path: Path) -> None:
        client, mine = user(server), worker(server)
        build = create(client)
        path, lease = begun(mine)
        sink = LogFileSink(str(tmp_path / "log"))
        sink.write(LogChunk(b"all tests passed\n", None, now()))
        sink.close()
        piece, _ = log_piece(str(tmp_path / "log"), 0)
        put = mine.put(f"{path}/log", params={**lease, "offset": 0}, content=piece)
        assert put.status_code == 200, put.text
        log = client.get(f"/buildrunner/v1/projects/p/builds/{build}/log")
        assert log.text == "all tests passed\n"

    def test_a_config_in_the_source_is_the_worker_s_until_a_step_begins(
        self, server: ApiServer
    ) -> None:
        source = {"gitSource": {"url": "https://git.example.com/r", "revision": "main"}}
        build = create(
            user(server),
            source=source,
            steps=[{"name": "busybox", "args": ["$COMMIT_SHA"], "env": ["A=$_A"]}],
            tags=["kept"],
            substitutions={"_A": "1"},
            logsBucket="gs://logs",
        )
        mine = worker(server)
        path, lease = begun(mine)
        before = mine.get(path).json()["document"]

        def put(args: str, status: str) -> dict[str, Any]:
            steps = [{"name": "busybox", "args": [args], "status": status}]
            changed = {
                **before,
                "status": "WORKING",
                "steps": steps,
                "tags": ["new"],
                "substitutions": {"_A": "2", "COMMIT_SHA": "abc"},
                "logsBucket": "gs://others",
                "source": {"gitSource": {"url": "https://git.example.com/s"}},
            }
            answer = mine.put(f"{path}/document", params=lease, json=changed)
            assert answer.status_code == 204, answer.text
            return server.store.builds.find(build).document

        planned = put("abc", "QUEUED")
        assert planned["steps"] == [{"name": "busybox", "args": ["abc"], "status": "QUEUED"}]
        assert planned["substitutions"] == {"_A": "1", "COMMIT_SHA": "abc"}
        assert (planned["tags"], planned["logsBucket"]) == (["new", "kept"], "gs://logs")
        assert planned["source"] == before["source"]
        assert put("abc", "WORKING")["steps"][0]["status"] == "WORKING"
        assert put("other", "SUCCESS")["steps"] == [
            {"name": "busybox", "args": ["abc"], "status": "SUCCESS"}
        ]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"steps": 5},
            {"steps": [None]},
            {"steps": []},
            {"substitutions": [1]},
            {"options": 3},
            {"tags": 7},
            {"status": "PENDING"},
            {"status": "EXPIRED"},
            {"status": "done"},
            {"startTime": 5},
            {"finishTime": "soon"},
            {"results": {"images": 1}},
            {"warnings": ["text"]},
            {"failureInfo": []},
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("route", ["PUT /document", "POST :storeLog"])
    def test_what_is_no_build_is_refused(
        self, server: ApiServer, wrong: dict[str, Any], route: str
    ) -> None:
        build = create(user(server))
        mine = worker(server)
        path, lease = begun(mine)
        before = mine.get(path).json()["document"]
        method, _, operation = route.partition(" ")
        sent = {**before, "status": "WORKING", **wrong}
        answer = mine.request(method, path + operation, params=lease, json=sent)
        assert answer.status_code == 400, answer.text
        assert server.store.builds.find(build).document == before

    @pytest.mark.parametrize(
        "route", ["POST /builds:claim", "PUT {}/document", "PUT {}/deployments", "PUT {}/plan"]
    )
    def test_json_that_is_nested_very_deeply_is_refused(
        self, server: ApiServer, route: str
    ) -> None:
        create(user(server))
        mine = worker(server)
        path, lease = begun(mine)
        method, _, operation = route.partition(" ")
        deep = b'{"x":' + b"[" * 100_000
        address = operation.format(path) if "{}" in operation else f"/worker/v1{operation}"
        answer = mine.request(method, address, params=lease, content=deep)
        assert answer.status_code == 400, answer.text

    def test_the_log_of_no_other_build_is_stored(self, tmp_path: Path) -> None:
        with api_server(tmp_path) as server:
            told: list[dict[str, Any]] = []

            def store_log(stored: StoredBuild, document: dict[str, Any]) -> dict[str, Any]:
                told.append({"stored": stored.id, **document})
                return {**document, "warnings": [{"text": "too late"}]}

            msgspec.structs.force_setattr(server.context, "store_log", store_log)
            build = server.create(logsBucket="gs://logs")
            mine = worker(server)
            path, lease = begun(mine)
            before = mine.get(path).json()["document"]
            done = {**before, "status": "SUCCESS"}
            other = mine.post(f"{path}:storeLog", params=lease, json={**done, "id": "other"})
            assert (other.status_code, told) == (400, [])
            sent = {**done, "logsBucket": "gs://others", "options": {"logging": "GCS_ONLY"}}
            answer = mine.post(f"{path}:storeLog", params=lease, json=sent)
            assert told == [{"stored": build, **done}]
            assert answer.json() == {**done, "warnings": [{"text": "too late"}]}

    def test_a_deployment_is_of_a_step_of_the_build_and_of_the_time_of_its_run(
        self, server: ApiServer
    ) -> None:
        build = create(user(server), steps=[{"name": "busybox", "id": "deploy"}])
        mine = worker(server)
        path, lease = begun(mine)
        before = mine.get(path).json()["document"]
        target = {"target": "run://p/r/s", "images": ["i@sha256:1"], "reported": True}

        def put(**made: Any) -> int:
            one = {"step": 0, "time": "2999-01-01T00:00:00Z", "deployment": target, **made}
            answer = mine.put(f"{path}/deployments", params=lease, json=[one])
            return answer.status_code

        assert put(step=1) == put(step=-1) == 400
        assert put(time="2999-01-01T00:00:00") == put(id="x") == put(projectId="q") == 400
        assert put(deployment={**target, "target": "no target"}) == 400
        assert server.store.deployments.of_build(build).deployments == ()
        begin = now()
        assert put() == put() == 204
        target = {"target": "run://p/r/t"}
        assert put(deployment=target, time="1970-01-01T00:00:00Z") == 204
        early, late = server.store.deployments.of_build(build).deployments
        assert encode_instant(early.time) == before["createTime"]
        assert begin <= late.time <= now()
        assert (late.project_id, late.build_id, late.step_id) == ("p", build, "deploy")
        assert len(late.id) == 16

    def test_many_deployments_at_once_are_refused(self, server: ApiServer) -> None:
        """Issue: 40,000 of them locked the database of all projects for minutes."""
        create(user(server))
        mine = worker(server)
        path, lease = begun(mine)
        at = "2026-01-01T00:00:00Z"
        many = [
            {"step": 0, "time": at, "deployment": {"target": f"a://{number}"}}
            for number in range(40_000)
        ]
        refused = mine.put(f"{path}/deployments", params=lease, json=many)
        assert refused.status_code == 400
        assert "1000" in refused.json()["error"]["message"]

    @pytest.mark.parametrize("route", ["log", "events"])
    def test_log_and_events_have_a_limit_and_leave_space_on_the_disk(
        self, tmp_path: Path, route: str
    ) -> None:
        with api_server(tmp_path, max_log_bytes=1 << 20) as server:
            server.create()
            mine = worker(server)
            path, lease = begun(mine)
            far = {**lease, "offset": 3 << 20}
            refused = mine.put(f"{path}/{route}", params=far, content=b"{}\n")
            assert refused.status_code == 400
            assert "would be larger than 1 MiB" in refused.json()["error"]["message"]
            full = msgspec.structs.replace(server.context.settings, min_free_bytes=1 << 60)
            msgspec.structs.force_setattr(server.context, "settings", full)
            here = {**lease, "offset": 0}
            late = mine.put(f"{path}/{route}", params=here, content=b"{}\n")
            assert late.status_code == 503
            assert "MiB are free" in late.json()["error"]["message"]

    def test_secrets_are_those_that_the_plan_names(self, server: ApiServer) -> None:
        create(user(server))
        server.secrets.hold(KEY="value", OTHER="hidden")
        mine = worker(server)
        path, lease = begun(mine)
        assert mine.get(f"{path}/secrets", params=lease).status_code == 400
        references = tuple(SecretReference(e, "secretManager", e) for e in ("KEY", "NONE"))
        plan = BuildPlan(
            build_id="b",
            project_id="p",
            steps=(StepPlan(index=0, image="busybox", secrets=references),),
        )
        stored = mine.put(f"{path}/plan", params=lease, content=plan.to_json())
        assert stored.status_code == 204, stored.text
        got = mine.get(f"{path}/secrets", params=lease).json()["secrets"]
        assert [(one["reference"]["name"], one.get("value", "")) for one in got] == [
            ("KEY", "value"),
            ("NONE", ""),
        ]
        assert "no secret NONE" in got[1]["error"]

    def test_a_plan_with_more_secrets_than_a_build_may_have_gets_none(
        self, server: ApiServer
    ) -> None:
        """Each secret of 150,000 was looked for in all of the plan, for minutes."""
        create(user(server))
        mine = worker(server)
        path, lease = begun(mine)
        references = tuple(SecretReference(f"E{n}", "secretManager", "S") for n in range(101))
        step = StepPlan(index=0, image="busybox", secrets=references)
        plan = BuildPlan(build_id="b", project_id="p", steps=(step,))
        assert mine.put(f"{path}/plan", params=lease, content=plan.to_json()).status_code == 204
        answer = mine.get(f"{path}/secrets", params=lease)
        assert (answer.status_code, "101 secrets, at most 100" in answer.text) == (400, True)

    def test_the_wish_to_cancel_arrives_at_once(self, server: ApiServer) -> None:
        client, mine = user(server), worker(server)
        build = create(client)
        path, lease = begun(mine)
        heard: list[float] = []

        def listen() -> None:
            answer = mine.get(f"{path}/signals", params={**lease, "wait": 20})
            assert answer.json() == {"cancel": True}
            heard.append(time.monotonic())

        listens = threading.Thread(target=listen)
        listens.start()
        while not server.app.state.changes.waiting:
            time.sleep(0.01)
        client.post(f"/v1/projects/p/builds/{build}:cancel", json={})
        requested = time.monotonic()
        listens.join()
        assert heard[0] - requested < 0.2
        renewed = mine.post(f"{path}:renew", params=lease).json()
        assert renewed == {"cancel": "cancelled by user"}


class TestTokens:
    def test_a_workers_token_signs_nobody_in(self, server: ApiServer) -> None:
        mine = worker(server)
        token = mine.headers["Authorization"].removeprefix("Bearer ")
        for path in ("/buildrunner/v1/whoami", "/v1/projects/p/builds", "/metrics"):
            assert mine.get(path).status_code == 401
        form = httpx.post(f"{server.url}/login", data={"token": token}, timeout=DEADLINE_S)
        assert "buildrunner_session" not in form.cookies

    def test_a_token_of_another_kind_is_verified_beside_those_of_the_database(
        self, tmp_path: Path
    ) -> None:
        with api_server(tmp_path) as server:
            build = server.create()
            server.create()
            identity = WorkerIdentity(name="pod", build_id=build)
            verified = {"projected": identity}.get
            from buildrunner.server.app import create_app
            from buildrunner.server.http.listener import Listener, listen_on

            listening = listen_on("127.0.0.1", 0)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            context = replace(server.context, worker_tokens=(verified,))
            listener = Listener(create_app(context), listening)
            thread = threading.Thread(target=listener.run)
            thread.start()
            listener.wait_until_ready()
            try:
                headers = {"Authorization": "Bearer projected"}
                with httpx.Client(base_url=url, headers=headers, timeout=30) as pod:
                    path, _ = claimed(pod)
                    assert path.endswith(build)
                    assert claim(pod, limit=9).status_code == 409  # no other one is its own
                headers = {"Authorization": "Bearer unknown"}
                assert (
                    httpx.post(
                        f"{url}/worker/v1/builds:claim", headers=headers, timeout=DEADLINE_S
                    ).status_code
                    == 401
                )
            finally:
                listener.stop()
                thread.join()

    def test_a_revoked_token_opens_nothing(self, server: ApiServer) -> None:
        mine = worker(server)
        server.store.tokens.revoke("w1", now=now())
        assert claim(mine).status_code == 401
