"""Our own routes beside Cloud Build's: uploads, plan, waiting, artifacts, health, documentation."""

import hashlib
import io
import json
import re
import tarfile
import threading

import pytest
from msgspec.structs import replace
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection

from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.model.builds import Lease
from tests.api_server import api_server

OURS = "/buildrunner/v1/projects/p"
STEPS = {"steps": [{"name": "busybox"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with api_server(tmp_path_factory.mktemp("server"), max_blob_bytes=3 << 20) as server:
        yield server


@pytest.fixture
def http(server):
    return server.http


def put(http, data):
    digest = hashlib.sha256(data).hexdigest()
    answer = http.put(f"{OURS}/sources/blobs/{digest}", content=data)
    assert answer.status_code == 204, answer.text
    return digest


def test_a_folder_is_uploaded_once_and_becomes_a_source(http, server):
    data = b"#!/bin/sh\n"
    digest = hashlib.sha256(data).hexdigest()
    requested = {"sha256": [digest]}
    assert http.post(f"{OURS}/sources:missing", json=requested).json() == {"missing": [digest]}
    files = [
        {"path": "d", "directory": True, "mode": 0o755, "mtimeNs": 10**18},
        {"path": "d/run", "mode": 0o755, "sha256": digest, "size": len(data), "mtimeNs": 10**18},
        {"path": "l", "link": "d/run", "mtimeNs": 10**18},
    ]
    early = http.post(f"{OURS}/sources/manifests", json={"files": files})
    assert early.status_code == 400
    assert early.json()["error"]["status"] == "FAILED_PRECONDITION"
    assert early.json()["error"]["details"] == [{"missing": [digest]}]
    put(http, data)
    assert http.post(f"{OURS}/sources:missing", json=requested).json() == {"missing": []}
    source = http.post(f"{OURS}/sources/manifests", json={"files": files}).json()["source"]
    storage = source["storageSource"]
    assert storage["bucket"] == "buildrunner-sources"
    with tarfile.open(f"{server.context.data_folder}/sources/{storage['object']}") as tar:
        assert tar.getnames() == ["d", "d/run", "l"]
        assert tar.extractfile("d/run").read() == data
    build = http.post("/v1/projects/p/builds", json={**STEPS, "source": source})
    assert build.json()["metadata"]["build"]["source"] == source


def test_an_archive_is_uploaded_and_becomes_a_source(http):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    digest = put(http, packed.getvalue())
    body = {"archive": {"sha256": digest, "name": "src.tgz"}}
    source = http.post(f"{OURS}/sources/manifests", json=body).json()["source"]
    assert source["storageSource"]["object"] == f"p/archives/{digest}.tgz"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("sources:missing", {}),
        ("sources:missing", {"sha256": ["x"]}),
        ("sources:missing", {"sha256": ["0" * 64] * 10_001}),
        ("sources/manifests", {}),
        ("sources/manifests", {"files": [{"mode": 1}]}),
        ("sources/manifests", {"files": [{"path": "../x", "directory": True}]}),
        ("sources/manifests", {"files": [{"path": "x", "directory": True, "mode": -1}]}),
        ("sources/manifests", {"files": [{"path": "x", "directory": True, "mode": 10**9}]}),
        ("sources/manifests", {"files": [{"path": "x", "directory": True, "mtimeNs": 10**20}]}),
        ("sources/manifests", {"archive": {"sha256": "x", "name": "a.tgz"}}),
        ("sources/manifests", {"archive": {"sha256": "0" * 64, "name": "a.exe"}}),
    ],
)
def test_uploads_that_can_not_be_are_refused(http, path, body):
    answer = http.post(f"{OURS}/{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_content_must_have_the_sum_of_its_path(http):
    answer = http.put(f"{OURS}/sources/blobs/{'0' * 64}", content=b"x")
    assert answer.status_code == 400
    assert http.put(f"{OURS}/sources/blobs/nonsense", content=b"x").status_code == 400


def test_a_blob_has_a_limit_and_large_ones_come_in_pieces(http):
    large = bytes(range(256)) * (3 << 12)
    put(http, large[: 3 << 20])
    too_large = large + b"x" * (1 << 20)
    digest = hashlib.sha256(too_large).hexdigest()
    answer = http.put(f"{OURS}/sources/blobs/{digest}", content=too_large)
    assert answer.status_code == 413


def test_the_same_blob_may_come_from_many_at_once(server):
    data = b"y" * (1 << 20)
    codes = []
    digest = hashlib.sha256(data).hexdigest()

    def upload():
        path = f"{OURS}/sources/blobs/{digest}"
        codes.append(server.http.put(path, content=data).status_code)

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [204] * 8


def test_a_waiting_build_says_why(http, server):
    build = server.create()
    waiting = http.get(f"{OURS}/builds/{build}/waiting").json()
    assert waiting["kind"]
    assert waiting["text"]
    server.run(build, None)
    assert http.get(f"{OURS}/builds/{build}/waiting").json() == {}


def test_the_plan_is_there_once_it_is_made(http, server):
    build = server.create()
    assert http.get(f"{OURS}/builds/{build}/plan").status_code == 404
    server.run(build, None)
    fence = server.store.builds.find(build).fence
    server.store.queue.record_plan(Lease(build, fence), b'{"steps": []}')
    assert http.get(f"{OURS}/builds/{build}/plan").json() == {"steps": []}


def test_artifacts_are_what_the_results_name(http, server):
    build = server.create()
    results = {
        "images": [{"name": "a/b:1", "digest": "sha256:1"}],
        "pythonPackages": [{"uri": "https://e.com/p"}],
        "artifactManifest": "gs://b/manifest.json",
        "numArtifacts": "2",
    }
    server.run(build, "SUCCESS", results=results)
    assert http.get(f"{OURS}/builds/{build}/artifacts").json()["artifacts"] == [
        {"kind": "image", "name": "a/b:1", "digest": "sha256:1"},
        {"kind": "pythonPackages", "name": "https://e.com/p"},
        {"kind": "objects", "name": "gs://b/manifest.json", "count": "2"},
    ]


def test_ready_means_that_a_build_would_run(http, server):
    assert http.get("/readyz").json() == {"status": "ready", "problems": []}
    server.worker_is_alive = False
    answer = http.get("/readyz")
    server.worker_is_alive = True
    assert answer.status_code == 503
    assert answer.json()["problems"] == ["worker: it does not look at the queue"]


def test_a_full_disk_is_not_ready(tmp_path):
    with api_server(tmp_path, min_free_bytes=1 << 62) as server:
        assert "disk" in server.http.get("/readyz").json()["problems"][0]


def test_a_worker_that_begins_nothing_is_not_ready(tmp_path):
    with api_server(tmp_path) as server:
        server.worker_holds_back = "No engine answers."
        assert server.http.get("/readyz").json()["problems"] == ["worker: No engine answers."]


def number(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


def test_numbers_are_there_for_prometheus(tmp_path):
    with api_server(tmp_path) as server:
        server.run(server.create(), None)
        server.create()
        metrics = server.context.metrics
        times = {
            "createTime": "2026-01-01T00:00:00Z",
            "startTime": "2026-01-01T00:00:02Z",
            "finishTime": "2026-01-01T00:01:02Z",
        }
        metrics.build_ended({**times, "status": "SUCCESS"})
        metrics.build_ended({**times, "status": "FAILURE", "failureInfo": {"type": "PUSH_FAILED"}})
        metrics.build_ended({"status": "EXPIRED"})
        text = server.http.get("/metrics").text
        server.http.get("/v1/projects/p/builds/none")
        later = server.http.get("/metrics").text
    assert number(text, "buildrunner_builds_queued") == 1
    assert number(text, "buildrunner_builds_running") == 1
    assert number(text, "buildrunner_builds_created_total") == 2
    assert number(text, 'buildrunner_builds_ended_total{status="SUCCESS"}') == 1
    assert number(text, 'buildrunner_build_failures_total{kind="PUSH_FAILED"}') == 1
    assert number(text, 'buildrunner_build_failures_total{kind="EXPIRED"}') == 1
    assert number(text, 'buildrunner_build_duration_seconds_sum{status="SUCCESS"}') == 60
    route = 'route="/v1/projects/{project}/builds/{build}"'
    assert number(later, f'buildrunner_http_requests_total{{code="404",method="GET",{route}}}') == 1


def test_every_route_is_documented_and_the_page_needs_no_other_host(http):
    document = http.get("/openapi.json").json()
    assert "/v1/projects/{project}/builds/{build}:cancel" in document["paths"]
    for path, methods in document["paths"].items():
        wanted = set(re.findall(r"\{([^}]*)\}", path))
        for operation in methods.values():
            assert {p["name"] for p in operation["parameters"] if p["in"] == "path"} == wanted
    for reference in set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document))):
        assert reference.startswith("#/components/schemas/")
        assert reference.rpartition("/")[2] in document["components"]["schemas"]
    page = http.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert name in page
        assert http.get(f"/docs/assets/{name}").status_code == 200
    assert http.get("/docs/assets/core.py").status_code == 404


def test_every_operation_that_takes_a_body_says_what_is_in_it(http):
    document = http.get("/openapi.json").json()
    without = [
        f"{method} {path}"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in ("post", "put", "patch") and "requestBody" not in operation
    ]
    assert without == []


def test_every_query_parameter_that_a_route_reads_is_documented(http, server, monkeypatch):
    read = set()

    class Recorded(QueryParams):
        def get(self, key, default=None):
            route = self.scope.get("route")
            if route is not None and route.include_in_schema and not key.startswith("$"):
                read.add((self.scope["method"].lower(), route.path_format, key))
            return super().get(key, default)

    def query_params(connection):
        found = Recorded(connection.scope["query_string"])
        found.scope = connection.scope
        return found

    cron = {"name": "c", "build": STEPS, "cron": {"schedule": "0 0 1 1 *"}}
    http.post("/v1/projects/p/triggers", json=cron)
    values = {"project": "p", "location": "global", "build": server.create(), "forge": "pubsub"}
    values |= {"trigger": "c", "sha256": "0" * 64}
    server.secrets["hooks-pubsub"] = "hush"
    monkeypatch.setattr(HTTPConnection, "query_params", property(query_params))
    document = http.get("/openapi.json").json()
    operations = [
        (method, path) for path, methods in document["paths"].items() for method in methods
    ]
    for method, path in sorted(operations, key=lambda one: one[0] == "delete"):
        names = re.findall(r"\{([^}]*)\}", path)
        place = path.format(**{name: values.get(name, "1") for name in names})
        if not place.endswith(("/stream", "/events")):
            http.request(method, place, json={} if method in ("post", "put", "patch") else None)
    declared = {
        (method, path, parameter["name"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for parameter in operation["parameters"]
        if parameter["in"] == "query"
    }
    spellings = {
        (method, path, re.sub(r"[A-Z]", lambda found: f"_{found.group().lower()}", name))
        for method, path, name in declared
    }
    assert ("get", "/v1/projects/{project}/builds", "pageToken") in read
    assert ("get", "/buildrunner/v1/deliveries", "hook") in read
    assert read - declared - spellings == set()


def test_documented_operations_have_ids_of_their_own(http):
    document = http.get("/openapi.json").json()
    ids = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    assert len(ids) == len(set(ids))


def test_what_is_answered_is_what_the_documented_message_decodes(http, server):
    shown = http.get(f"/v1/projects/p/builds/{server.create()}").json()
    assert decode_message(Build, shown).ok


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b'{"a": "1"}', 200), (b"{", 400), (b"", 200)],
)
def test_a_webhook_takes_json(http, server, payload, code):
    secret = "projects/p/secrets/s/versions/1"
    server.secrets[secret] = "hush\n"
    trigger = {
        "name": "hook",
        "webhookConfig": {"secret": secret},
        "build": {"steps": [{"name": "busybox", "args": ["$_A"]}]},
        "substitutions": {"_A": "$(body.a)"},
    }
    http.post("/v1/projects/p/triggers", json=trigger)
    for form in ("", "/locations/global"):
        path = f"/v1/projects/p{form}/triggers/hook:webhook"
        answer = http.post(path, params={"secret": "hush", "key": "x"}, content=payload)
        assert answer.status_code == code, answer.text
    assert http.post(path, params={"secret": "hush "}, content=payload).status_code == 403
    assert http.post(path, content=payload).status_code == 403


def test_a_webhook_s_filter_decides(http, server):
    secret = "projects/p/secrets/f/versions/1"
    server.secrets[secret] = "s"
    trigger = {
        "name": "filtered",
        "webhookConfig": {"secret": secret},
        "build": STEPS,
        "substitutions": {"_REF": "$(body.ref)"},
        "filter": '_REF.endsWith("/main") && body.go',
    }
    made = http.post("/v1/projects/p/triggers", json=trigger).json()
    path = "/v1/projects/p/triggers/filtered:webhook?secret=s"
    for payload in (
        {"ref": "a/dev", "go": True},
        {"ref": "a/main"},
        {"ref": "a/main", "go": False},
    ):
        assert http.post(path, json=payload).json() == {}
    found = {"filter": f'trigger_id="{made["id"]}"'}
    assert http.get("/v1/projects/p/builds", params=found).json()["builds"] == []
    assert http.post(path, json={"ref": "a/main", "go": True}).json() == {}
    assert len(http.get("/v1/projects/p/builds", params=found).json()["builds"]) == 1


def test_webhooks_of_unready_triggers_do_not_build(http, server):
    secret = "projects/p/secrets/none/versions/1"
    fields = {"webhookConfig": {"secret": secret}, "build": STEPS}
    http.post("/v1/projects/p/triggers", json={"name": "nosecret", **fields})
    http.post("/v1/projects/p/triggers", json={"name": "nohook", "build": STEPS})
    for name in ("nosecret", "nohook", "none"):
        answer = http.post(f"/v1/projects/p/triggers/{name}:webhook?secret=")
        assert answer.json()["error"]["message"] == "the trigger or its secret is not right"
    server.secrets[secret] = "s"
    http.patch("/v1/projects/p/triggers/nosecret?updateMask=disabled", json={"disabled": True})
    before = len(http.get("/v1/projects/p/builds?pageSize=1000").json()["builds"])
    assert http.post("/v1/projects/p/triggers/nosecret:webhook?secret=s").status_code == 200
    assert len(http.get("/v1/projects/p/builds?pageSize=1000").json()["builds"]) == before


def test_what_was_uploaded_here_is_built_here(tmp_path):
    name = f"p/archives/{'a' * 64}.tar"
    upload = {"storageSource": {"bucket": "buildrunner-sources", "object": name}}
    elsewhere = {"storageSource": {"bucket": "bkt", "object": "x.tar"}}
    with api_server(tmp_path, worker="machine/17") as server:
        kept = server.store.builds.find(server.create(source=upload)).only_worker
        free = server.store.builds.find(server.create(source=elsewhere)).only_worker
    assert (kept, free) == ("machine/17", "")


def test_a_log_that_is_gone_is_not_just_empty(tmp_path):
    with api_server(tmp_path) as server:
        build = server.create()
        server.run(build, "SUCCESS")
        answer = server.http.get(f"/buildrunner/v1/projects/p/builds/{build}/log")
    assert answer.status_code == 404
    assert "not on this server any more" in answer.json()["error"]["message"]


def test_what_holds_the_worker_back_is_the_reason_why_a_build_waits(tmp_path):
    with api_server(tmp_path) as server:
        context = replace(server.context, worker_holds_back=lambda: "The disk is full.")
        reason = context.why_waiting(server.create())
        assert (reason.kind, reason.text) == ("no_worker", "The disk is full.")
        running = server.create()
        server.run(running, None)
        assert context.why_waiting(running) is None
