"""The API as it is on the wire: addresses, spellings, errors, idempotency."""

import base64
import uuid
from datetime import timedelta

import pytest

from tests.api_server import api_server, now

STEPS = {"steps": [{"name": "busybox"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with api_server(tmp_path_factory.mktemp("server"), max_builds_per_trigger=1) as server:
        yield server


@pytest.fixture
def http(server):
    return server.http


@pytest.fixture
def project():
    return f"p-{uuid.uuid4().hex[:8]}"


def error_of(answer, code, status):
    assert answer.status_code == code, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["status"]) == (code, status)
    return error


def test_both_spellings_and_both_forms_of_numbers_are_read(http):
    body = {
        "steps": [{"name": "busybox", "wait_for": ["-"], "allowExitCodes": [1]}],
        "queue_ttl": "60s",
        "options": {"disk_size_gb": "100", "machineType": 5},
    }
    build = http.post("/v1/projects/p/builds", json=body).json()["metadata"]["build"]
    assert build["steps"][0]["waitFor"] == ["-"]
    assert build["queueTtl"] == "60s"
    assert build["options"] == {"diskSizeGb": "100", "machineType": "E2_HIGHCPU_8"}


def test_enums_are_numbers_when_the_client_asks_for_them(http):
    params = {"$alt": "json;enum-encoding=int", "prettyPrint": "false", "key": "x", "alt": "json"}
    made = http.post("/v1/projects/p/builds", params=params, json=STEPS).json()
    build = made["metadata"]["build"]
    assert build["status"] == 1
    assert http.get(f"/v1/projects/p/builds/{build['id']}", params=params).json()["status"] == 1
    listed = http.get("/v1/projects/p/builds", params=params).json()["builds"]
    assert {each["status"] for each in listed} <= set(range(11))
    assert http.get(f"/v1/projects/p/builds/{build['id']}").json()["status"] == "QUEUED"


def test_what_only_the_service_sets_is_ignored(http):
    body = {**STEPS, "id": "mine", "status": "SUCCESS", "projectId": "other", "logUrl": "x"}
    build = http.post("/v1/projects/p/builds", json=body).json()["metadata"]["build"]
    assert build["id"] != "mine"
    assert (build["status"], build["projectId"]) == ("QUEUED", "p")


def test_a_request_id_makes_one_build(http, project):
    path = f"/v1/projects/{project}/builds"
    names = {
        http.post(path, params={"requestId": "r1"}, json=STEPS).json()["name"] for _ in range(3)
    }
    assert len(names) == 1
    assert len(http.get(path).json()["builds"]) == 1


def test_the_queue_s_facts_go_by_parameters(http, server, project):
    params = {
        "push": "false",
        "priority": "7",
        "group": "g",
        "groupLimit": "2",
        "supersede": "cancel_queued",
    }
    path = f"/v1/projects/{project}/builds"
    first = http.post(path, params=params, json=STEPS).json()["metadata"]["build"]["id"]
    second = http.post(path, params=params, json=STEPS).json()["metadata"]["build"]["id"]
    stored = server.store.builds.find(second)
    assert (stored.push, stored.priority, stored.group, stored.group_limit) == (False, 7, "g", 2)
    assert server.store.builds.find(first).status == "CANCELLED"


def test_a_trigger_has_a_group_with_the_server_s_limit(http, server, project):
    trigger = {"name": "t", "build": STEPS}
    made = http.post(f"/v1/projects/{project}/triggers", json=trigger).json()
    ran = http.post(f"/v1/projects/{project}/triggers/t:run").json()["metadata"]["build"]
    stored = server.store.builds.find(ran["id"])
    assert (stored.group, stored.group_limit) == (f"trigger:{made['id']}", 1)


def test_a_warning_of_the_config_comes_with_the_build(http):
    body = {**STEPS, "options": {"diskSizeGb": "100"}}
    build = http.post("/v1/projects/p/builds", json=body).json()["metadata"]["build"]
    assert "diskSizeGb" in build["warnings"][0]["text"]
    assert build["warnings"][0]["priority"] == "WARNING"


def test_every_problem_is_in_the_answer(http):
    body = {
        "steps": [{"name": "a", "waitFor": ["x"]}, {"args": ["$_NONE"]}],
        "timeout": "90000s",
    }
    error = error_of(http.post("/v1/projects/p/builds", json=body), 400, "INVALID_ARGUMENT")
    (details,) = error["details"]
    assert details["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    fields = {violation["field"] for violation in details["fieldViolations"]}
    assert {"timeout", "steps[0].waitFor[0]", "steps[1]", "steps[1].args[0]"} <= fields
    assert "timeout exceeds" in error["message"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no build field was provided"),
        (b"{}", "no build field was provided"),
        (b"null", "no build field was provided"),
        (b"[]", "must be a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"steps": [{"name": 1}]}', "a string is wanted"),
        (b'{"steps": [{"name": "a"}], "nothing": 1}', "unknown field"),
        (b'{"steps": [{"name": "a"}], "images": {"a": 1}}', "images"),
    ],
)
def test_a_body_that_is_no_build_is_refused(http, content, text):
    answer = http.post("/v1/projects/p/builds", content=content)
    assert text in error_of(answer, 400, "INVALID_ARGUMENT")["message"]


def test_a_body_of_very_many_values_is_refused_at_once(http):
    for body in (
        {"steps": [{"name": "a"}] * 60_000},
        {"steps": [{"name": "a", "args": ["x"] * 100_001}]},
        {"substitutions": {f"_A{number}": "x" for number in range(100_001)}},
    ):
        answer = http.post("/v1/projects/p/builds", json=body)
        error = error_of(answer, 400, "INVALID_ARGUMENT")
        assert error["message"] == "the body holds more than 100000 values"


@pytest.mark.parametrize(
    ("method", "path", "code", "status"),
    [
        ("GET", "/v1/projects/p/builds/none", 404, "NOT_FOUND"),
        ("POST", "/v1/projects/p/builds/none:cancel", 404, "NOT_FOUND"),
        ("POST", "/v1/projects/p/builds/none:retry", 404, "NOT_FOUND"),
        ("GET", "/v1/projects/p/triggers/none", 404, "NOT_FOUND"),
        ("DELETE", "/v1/projects/p/triggers/none", 404, "NOT_FOUND"),
        ("PATCH", "/v1/projects/p/triggers/none", 404, "NOT_FOUND"),
        ("POST", "/v1/projects/p/triggers/none:run", 404, "NOT_FOUND"),
        ("POST", "/v1/projects/p/triggers/none:webhook", 403, "PERMISSION_DENIED"),
        ("GET", "/v1/operations/build/p/bm9uZQ==", 404, "NOT_FOUND"),
        ("GET", "/v1/operations/nonsense", 404, "NOT_FOUND"),
        ("GET", "/v1/nonsense", 404, "NOT_FOUND"),
        ("GET", "/nonsense", 404, "NOT_FOUND"),
        ("PUT", "/v1/projects/p/builds", 405, "UNIMPLEMENTED"),
        ("DELETE", "/v1/projects/p/builds/none", 405, "UNIMPLEMENTED"),
        ("GET", "/v1/projects/..%2fp/builds", 404, "NOT_FOUND"),
        ("GET", "/v1/projects/.p/builds", 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/projects/p/locations/X/builds", 400, "INVALID_ARGUMENT"),
        ("POST", "/v1/projects/p/locations/-/builds", 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/projects/p/builds?pageSize=x", 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/projects/p/builds?pageSize=-1", 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/projects/p/builds?pageToken=nonsense", 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/projects/p/builds?filter=status=", 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/projects/p/builds?parent=projects/q", 400, "INVALID_ARGUMENT"),
        ("POST", "/v1/projects/p/builds?priority=high", 400, "INVALID_ARGUMENT"),
        ("POST", "/v1/projects/p/builds?supersede=all", 400, "INVALID_ARGUMENT"),
        ("POST", "/v1/projects/p/builds?push=maybe", 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/projects/p/locations/global/workerPools/none", 404, "NOT_FOUND"),
        ("POST", "/v1/projects/p/locations/global/workerPools/w", 405, "UNIMPLEMENTED"),
        ("GET", "/v1/projects/p/locations/l/gitLabConfigs/g/repos", 405, "UNIMPLEMENTED"),
        ("GET", "/v1/projects/p/githubEnterpriseConfigs", 405, "UNIMPLEMENTED"),
    ],
)
def test_every_refusal_has_the_same_shape(http, method, path, code, status):
    body = None if method == "GET" else STEPS
    error_of(http.request(method, path, json=body), code, status)


@pytest.mark.parametrize(
    ("method", "path", "code", "said"),
    [
        ("GET", "/v2/projects/p/locations/l/connections", 404, "no Cloud Build v2 API"),
        ("POST", "/v2/projects/p/locations/l/connections", 404, "no Cloud Build v2 API"),
        ("GET", "/nonsense", 404, "this server has no /nonsense: /docs lists what it has"),
        ("GET", "/v1/projects/p/gitLabConfigs", 405, "gitLabConfigs are not supported"),
    ],
)
def test_what_there_is_not_is_a_page_for_browsers_and_a_reason_for_programs(
    http, method, path, code, said
):
    # gcloud sends a request again, five times, where a server answers 429, 500 or more.
    told = http.request(method, path, headers={"Accept": "application/json"})
    assert told.status_code == code
    assert said in told.json()["error"]["message"]
    page = http.request(method, path, headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.status_code == code
    assert page.headers["content-type"].startswith("text/html")
    assert said in page.text
    assert 'href="/builds"' in page.text


def test_not_found_is_said_as_google_says_it(http):
    error = http.get("/v1/projects/p/builds/none").json()["error"]
    assert error["message"] == "Requested entity was not found."


def test_a_build_belongs_to_its_project_and_its_region(http, project):
    made = http.post(f"/v1/projects/{project}/locations/us-east1/builds", json=STEPS).json()
    build = made["metadata"]["build"]["id"]
    assert http.get(f"/v1/projects/{project}/builds/{build}").status_code == 200
    assert http.get(f"/v1/projects/{project}/locations/us-east1/builds/{build}").status_code == 200
    assert http.get(f"/v1/projects/{project}/locations/-/builds/{build}").status_code == 200
    assert http.get(f"/v1/projects/{project}/locations/global/builds/{build}").status_code == 404
    assert http.get(f"/v1/projects/other/builds/{build}").status_code == 404
    assert http.get(f"/v1/projects/{project}/locations/global/builds").json() == {"builds": []}
    everywhere = http.get(f"/v1/projects/{project}/locations/-/builds").json()["builds"]
    assert [each["id"] for each in everywhere] == [build]


def test_an_operation_has_several_names(http, server):
    build = server.create()
    encoded = base64.b64encode(build.encode()).decode()
    name = http.get(f"/v1/operations/build/p/{encoded}").json()["name"]
    assert name == f"operations/build/p/{encoded}"
    for path in (
        f"/v1/operations/build/p/{encoded.replace('=', '%3D')}",
        f"/v1/operations/build/p/{build}",
        f"/v1/projects/p/locations/global/operations/{encoded}",
        f"/v1/projects/p/locations/global/operations/{build}",
    ):
        assert http.get(path).json()["name"] == name


def test_cancelling_an_operation_that_is_done_is_no_error(http, server):
    build = server.create()
    path = f"/v1/projects/p/locations/global/operations/{build}:cancel"
    assert http.post(path).json() == {}
    assert http.post(path, json={}).json() == {}
    assert server.store.builds.find(build).status == "CANCELLED"


def test_a_running_build_is_cancelled_by_its_process(http, server):
    build = server.create()
    server.run(build, None)
    server.woken.clear()
    answer = http.post(f"/v1/projects/p/builds/{build}:cancel")
    assert answer.json()["status"] == "WORKING"
    assert server.store.builds.find(build).cancel_reason == "cancelled by local"
    assert server.woken.is_set()


def test_a_retry_of_a_trigger_s_build_takes_the_same_commit(http, server):
    source = {"uri": "https://example.com/r", "ref": "refs/heads/main"}
    trigger = {"name": "retried", "build": STEPS, "sourceToBuild": source}
    assert http.post("/v1/projects/p/triggers", json=trigger).status_code == 200
    ran = http.post("/v1/projects/p/triggers/retried:run").json()["metadata"]["build"]
    resolved = {"resolvedGitSource": {"url": "https://example.com/r", "revision": "abc123"}}
    server.run(ran["id"], "FAILURE", sourceProvenance=resolved)
    again = http.post(f"/v1/projects/p/builds/{ran['id']}:retry").json()["metadata"]["build"]
    assert again["source"]["gitSource"]["revision"] == "abc123"
    assert again["buildTriggerId"] == ran["buildTriggerId"]
    assert server.store.builds.find(again["id"]).labels["retry_of"] == ran["id"]


def test_a_disabled_trigger_can_be_run_by_hand(http):
    http.post("/v1/projects/p/triggers", json={"name": "off", "build": STEPS, "disabled": True})
    build = http.post("/v1/projects/p/triggers/off:run").json()["metadata"]["build"]
    assert build["status"] == "QUEUED"


def test_a_queue_s_time_begins_when_a_build_is_approved(tmp_path):
    trigger = {
        "name": "slow",
        "build": {**STEPS, "queueTtl": "60s"},
        "approvalConfig": {"approvalRequired": True},
    }
    with api_server(tmp_path) as server:
        http, store = server.http, server.store
        http.post("/v1/projects/p/triggers", json=trigger)
        made = http.post("/v1/projects/p/triggers/slow:run").json()
        build = made["metadata"]["build"]["id"]
        assert store.queue.expire(now=now() + timedelta(days=1)) == []
        decision = {"approvalResult": {"decision": "APPROVED"}}
        assert http.post(f"/v1/projects/p/builds/{build}:approve", json=decision).status_code == 200
        assert store.queue.expire(now=now() + timedelta(seconds=50)) == []
        assert store.queue.expire(now=now() + timedelta(seconds=61)) == [build]


def test_a_pending_build_is_not_retried(http):
    trigger = {"name": "asks", "build": STEPS, "approvalConfig": {"approvalRequired": True}}
    http.post("/v1/projects/p/triggers", json=trigger)
    build = http.post("/v1/projects/p/triggers/asks:run").json()["metadata"]["build"]
    answer = http.post(f"/v1/projects/p/builds/{build['id']}:retry")
    error_of(answer, 400, "FAILED_PRECONDITION")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "decision is required"),
        ({"approvalResult": {"comment": "x"}}, "decision is required"),
        ({"approval_result": {"decision": "MAYBE"}}, "approvalResult"),
        ({"approvalResult": {"decision": 3}}, "decision"),
    ],
)
def test_an_approval_must_decide(http, server, body, text):
    answer = http.post(f"/v1/projects/p/builds/{server.create()}:approve", json=body)
    assert text in error_of(answer, 400, "INVALID_ARGUMENT")["message"]


def test_a_source_that_builds_may_not_reach_is_refused(http):
    body = {**STEPS, "source": {"gitSource": {"url": "http://169.254.169.254/r"}}}
    error = error_of(http.post("/v1/projects/p/builds", json=body), 400, "INVALID_ARGUMENT")
    assert error["details"][0]["fieldViolations"][0]["field"] == "source.gitSource.url"


def test_an_upload_of_another_project_is_refused(http):
    source = {"storageSource": {"bucket": "buildrunner-sources", "object": "q/archives/a.tar"}}
    answer = http.post("/v1/projects/p/builds", json={**STEPS, "source": source})
    assert "not an upload of project p" in error_of(answer, 400, "INVALID_ARGUMENT")["message"]


def test_a_git_build_is_kept_as_sent_since_its_commit_is_not_known(http, server):
    body = {
        "steps": [{"name": "busybox", "args": ["$SHORT_SHA", "$_X"]}],
        "substitutions": {"_X": "1"},
        "source": {"gitSource": {"url": "https://example.com/r"}},
    }
    build = http.post("/v1/projects/p/builds", json=body).json()["metadata"]["build"]
    assert build["steps"][0]["args"] == ["$SHORT_SHA", "$_X"]
    assert server.store.builds.find(build["id"]).request == body


def test_the_request_is_kept_as_it_came(server):
    steps = [{"name": "busybox", "args": ["$_X", "$PROJECT_ID"]}]
    build = server.create(steps=steps, substitutions={"_X": "1"})
    stored = server.store.builds.find(build)
    assert stored.request["steps"] == steps
    assert stored.document["steps"][0]["args"] == ["1", "p"]


def test_the_project_can_be_the_default_one(http):
    made = http.post("/v1/projects/-/builds", json=STEPS).json()
    assert made["metadata"]["build"]["projectId"] == "local-project"
