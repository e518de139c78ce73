"""The contract: Google's own Python client, unchanged, makes every call that it has for us."""

import uuid

import pytest
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.api_core.operation import Operation
from google.auth.credentials import AnonymousCredentials
from google.cloud.devtools import cloudbuild_v1 as cb
from google.protobuf.field_mask_pb2 import FieldMask

from tests.api_server import api_server

PROJECT = "p"
REGION = "europe-west1"
SECRET = "projects/p/secrets/hook/versions/1"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with api_server(tmp_path_factory.mktemp("server")) as server:
        server.secrets[SECRET] = "open sesame"
        yield server


@pytest.fixture(scope="module")
def client(server):
    options = ClientOptions(api_endpoint=server.url)
    with cb.CloudBuildClient(
        credentials=AnonymousCredentials(), transport="rest", client_options=options
    ) as client:
        yield client


def a_build(**fields):
    return cb.Build(
        steps=[
            cb.BuildStep(
                name="busybox", args=["echo", "$_WHO", "$BUILD_ID"], timeout={"seconds": 60}
            )
        ],
        substitutions={"_WHO": "world"},
        options=cb.BuildOptions(
            machine_type=cb.BuildOptions.MachineType.E2_HIGHCPU_8, disk_size_gb=200
        ),
        timeout={"seconds": 600},
        **fields,
    )


def a_trigger(name=None, **fields):
    return cb.BuildTrigger(name=name or f"t-{uuid.uuid4()}", build=a_build(), **fields)


@pytest.fixture
def created(client):
    operation = client.create_build(project_id=PROJECT, build=a_build())
    return operation, operation.metadata.build


def test_a_build_is_created_and_its_operation_knows_it(created):
    operation, build = created
    assert isinstance(operation, Operation)
    assert build.status is cb.Build.Status.QUEUED
    assert build.project_id == PROJECT
    assert build.name == f"projects/p/locations/global/builds/{build.id}"
    assert build.log_url
    assert build.logs_bucket
    assert build.options.machine_type is cb.BuildOptions.MachineType.E2_HIGHCPU_8
    assert build.options.disk_size_gb == 200
    assert build.timeout.total_seconds() == 600
    assert list(build.steps[0].args) == ["echo", "world", build.id]


def test_a_build_of_a_region_is_created_by_its_parent_alone(client):
    parent = f"projects/{PROJECT}/locations/{REGION}"
    operation = client.create_build(request=cb.CreateBuildRequest(parent=parent, build=a_build()))
    name = operation.metadata.build.name
    assert name.startswith(f"{parent}/builds/")
    assert client.get_build(request=cb.GetBuildRequest(name=name)).name == name


def test_a_parent_beside_the_project_gives_the_region(client):
    parent = f"projects/{PROJECT}/locations/{REGION}"
    request = cb.CreateBuildRequest(parent=parent, project_id=PROJECT, build=a_build())
    assert client.create_build(request=request).metadata.build.name.startswith(parent)


def test_a_build_is_found_by_both_kinds_of_name(client, created):
    _, build = created
    by_id = client.get_build(project_id=PROJECT, id=build.id)
    by_name = client.get_build(request=cb.GetBuildRequest(name=build.name))
    assert by_id == by_name
    assert by_id.id == build.id


def test_a_build_that_is_not_there_is_not_found(client):
    with pytest.raises(exceptions.NotFound, match="Requested entity was not found"):
        client.get_build(project_id=PROJECT, id=str(uuid.uuid4()))


def test_a_wrong_build_is_an_invalid_argument(client):
    build = cb.Build(steps=[cb.BuildStep(name="busybox", wait_for=["nobody"])])
    with pytest.raises(exceptions.BadRequest, match="has not been defined") as caught:
        client.create_build(project_id=PROJECT, build=build)
    (violation,) = caught.value.details[0]["fieldViolations"]
    assert violation["field"] == "steps[0].waitFor[0]"


def test_builds_are_listed_by_pages_and_filtered(client):
    project = f"list-{uuid.uuid4().hex[:8]}"
    ids = [
        client.create_build(project_id=project, build=a_build(tags=[tag])).metadata.build.id
        for tag in ("a", "b", "a", "a", "b")
    ]
    pager = client.list_builds(request=cb.ListBuildsRequest(project_id=project, page_size=2))
    assert [build.id for build in pager] == ids[::-1]
    tagged = client.list_builds(project_id=project, filter='tags="b" AND status="QUEUED"')
    assert [build.id for build in tagged] == [ids[4], ids[1]]
    parent = f"projects/{project}/locations/global"
    regional = client.list_builds(request=cb.ListBuildsRequest(parent=parent))
    assert [build.id for build in regional] == ids[::-1]


def test_a_wrong_filter_is_an_invalid_argument(client):
    with pytest.raises(exceptions.BadRequest):
        list(client.list_builds(project_id=PROJECT, filter="no such thing ((("))


def test_a_build_is_cancelled_once(client, created):
    operation, build = created
    cancelled = client.cancel_build(project_id=PROJECT, id=build.id)
    assert cancelled.status is cb.Build.Status.CANCELLED
    with pytest.raises(exceptions.BadRequest):
        client.cancel_build(project_id=PROJECT, id=build.id)
    with pytest.raises(exceptions.Cancelled):
        operation.result(timeout=60)


def test_a_build_is_retried_as_a_new_one(client, server, created):
    _, build = created
    server.run(build.id, "FAILURE")
    again = client.retry_build(project_id=PROJECT, id=build.id).metadata.build
    assert again.id != build.id
    assert again.status is cb.Build.Status.QUEUED
    assert list(again.steps[0].args) == ["echo", "world", again.id]
    named = cb.RetryBuildRequest(name=build.name, project_id=PROJECT, id=build.id)
    assert client.retry_build(request=named).metadata.build.id not in (build.id, again.id)


def test_the_operation_of_a_build_that_succeeded_has_the_build(client, server, created):
    operation, build = created
    assert not operation.done()
    results = {
        "images": [{"name": "a/b", "digest": "sha256:1"}],
        "buildStepOutputs": ["b3V0"],
        "numArtifacts": "3",
    }
    server.run(build.id, "SUCCESS", results=results)
    result = operation.result(timeout=60)
    assert result.status is cb.Build.Status.SUCCESS
    assert result.results.num_artifacts == 3
    assert result.results.build_step_outputs[0] == b"out"
    assert operation.done()


def test_fields_that_the_client_does_not_know_stay_out_of_operations(client, server):
    newer = {
        "steps": [{"name": "busybox"}],
        "options": {"pubsubTopic": "projects/p/topics/t", "dockerDaemon": "PRIVILEGED"},
    }
    build_id = server.create(**newer)
    name = server.http.get(f"/v1/projects/p/builds/{build_id}").json()
    assert name["options"]["pubsubTopic"]
    server.run(build_id, "SUCCESS")
    retried = client.retry_build(project_id=PROJECT, id=build_id)
    server.run(retried.metadata.build.id, "SUCCESS")
    assert retried.result(timeout=60).status is cb.Build.Status.SUCCESS


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("FAILURE", exceptions.Unknown),
        ("TIMEOUT", exceptions.DeadlineExceeded),
        ("INTERNAL_ERROR", exceptions.InternalServerError),
    ],
)
def test_the_operation_of_a_build_that_failed_has_its_error(client, server, status, error):
    operation = client.create_build(project_id=PROJECT, build=a_build())
    server.run(operation.metadata.build.id, status, statusDetail="because")
    with pytest.raises(error, match="because"):
        operation.result(timeout=60)


def test_an_operation_can_be_cancelled(client, created):
    operation, build = created
    assert operation.cancel()
    assert client.get_build(project_id=PROJECT, id=build.id).status is cb.Build.Status.CANCELLED


def approval_of(client, name=None):
    made = client.create_build_trigger(
        project_id=PROJECT,
        trigger=a_trigger(approval_config=cb.ApprovalConfig(approval_required=True)),
    )
    operation = client.run_build_trigger(project_id=PROJECT, trigger_id=made.id, source=None)
    return operation, operation.metadata.build


@pytest.mark.parametrize("form", ["projects/p/locations/global/builds/{}", "projects/p/builds/{}"])
def test_a_build_waits_for_its_approval(client, server, form):
    _, build = approval_of(client)
    assert build.status is cb.Build.Status.PENDING
    assert build.approval.state is cb.BuildApproval.State.PENDING
    result = cb.ApprovalResult(
        decision=cb.ApprovalResult.Decision.APPROVED, comment="fine", url="https://example.com"
    )
    operation = client.approve_build(name=form.format(build.id), approval_result=result)
    approved = operation.metadata.build
    assert approved.status is cb.Build.Status.QUEUED
    assert approved.approval.state is cb.BuildApproval.State.APPROVED
    assert approved.approval.result.comment == "fine"
    assert approved.approval.result.approver_account == "local"
    server.run(build.id, "SUCCESS")
    assert operation.result(timeout=60).id == build.id
    with pytest.raises(exceptions.BadRequest):
        client.approve_build(name=form.format(build.id), approval_result=result)


def test_a_rejected_build_never_runs_and_its_operation_is_done(client):
    _, build = approval_of(client)
    result = cb.ApprovalResult(decision=cb.ApprovalResult.Decision.REJECTED)
    operation = client.approve_build(name=build.name, approval_result=result)
    assert operation.done()
    after = client.get_build(project_id=PROJECT, id=build.id)
    assert after.status is cb.Build.Status.CANCELLED
    assert after.approval.state is cb.BuildApproval.State.REJECTED
    assert "rejected by local" in after.status_detail


def test_a_pending_build_can_be_cancelled(client):
    _, build = approval_of(client)
    cancelled = client.cancel_build(project_id=PROJECT, id=build.id)
    assert cancelled.status is cb.Build.Status.CANCELLED
    assert cancelled.approval.state is cb.BuildApproval.State.CANCELLED


def test_triggers_are_made_found_changed_and_deleted(client):
    name = f"t-{uuid.uuid4()}"
    made = client.create_build_trigger(
        project_id=PROJECT,
        trigger=a_trigger(name, description="first", substitutions={"_A": "1"}),
    )
    assert made.id
    assert made.create_time
    assert made.resource_name == f"projects/p/locations/global/triggers/{made.id}"
    assert client.get_build_trigger(project_id=PROJECT, trigger_id=made.id) == made
    assert client.get_build_trigger(project_id=PROJECT, trigger_id=name) == made
    assert name in [t.name for t in client.list_build_triggers(project_id=PROJECT)]

    masked = client.update_build_trigger(
        request=cb.UpdateBuildTriggerRequest(
            project_id=PROJECT,
            trigger_id=made.id,
            trigger=cb.BuildTrigger(description="second", disabled=True),
            update_mask=FieldMask(paths=["description", "disabled"]),
        )
    )
    assert (masked.description, masked.disabled) == ("second", True)
    assert dict(masked.substitutions) == {"_A": "1"}

    whole = client.update_build_trigger(
        project_id=PROJECT, trigger_id=made.id, trigger=a_trigger(name)
    )
    assert (whole.description, whole.disabled, dict(whole.substitutions)) == ("", False, {})
    assert (whole.id, whole.create_time) == (made.id, made.create_time)

    by_resource = a_trigger(name, description="third")
    by_resource.resource_name = made.resource_name
    request = cb.UpdateBuildTriggerRequest(trigger=by_resource)
    assert client.update_build_trigger(request=request).description == "third"

    client.delete_build_trigger(project_id=PROJECT, trigger_id=made.id)
    with pytest.raises(exceptions.NotFound):
        client.get_build_trigger(project_id=PROJECT, trigger_id=made.id)


def test_a_name_belongs_to_one_trigger(client):
    trigger = a_trigger()
    client.create_build_trigger(project_id=PROJECT, trigger=trigger)
    with pytest.raises(exceptions.Conflict):
        client.create_build_trigger(project_id=PROJECT, trigger=trigger)


def test_a_trigger_runs_with_the_values_of_the_run(client):
    made = client.create_build_trigger(
        project_id=PROJECT, trigger=a_trigger(substitutions={"_WHO": "trigger"})
    )
    source = cb.RepoSource(substitutions={"_WHO": "run"})
    build = client.run_build_trigger(
        project_id=PROJECT, trigger_id=made.id, source=source
    ).metadata.build
    assert build.build_trigger_id == made.id
    assert list(build.steps[0].args) == ["echo", "run", build.id]
    assert build.substitutions["TRIGGER_NAME"] == made.name
    assert build.options.dynamic_substitutions
    by_name = cb.RunBuildTriggerRequest(name=made.resource_name, source=source)
    named = client.run_build_trigger(request=by_name).metadata.build
    assert list(named.steps[0].args) == ["echo", "run", named.id]
    both = cb.RunBuildTriggerRequest(
        name=made.resource_name, project_id=PROJECT, trigger_id=made.id
    )
    assert list(client.run_build_trigger(request=both).metadata.build.steps[0].args)[1] == "trigger"


def test_a_webhook_takes_the_wrapped_payload(client):
    trigger = a_trigger(
        webhook_config=cb.WebhookConfig(secret=SECRET),
        substitutions={"_WHO": "$(body.who)"},
    )
    made = client.create_build_trigger(project_id=PROJECT, trigger=trigger)
    body = {"content_type": "application/json", "data": b'{"who": "hook"}'}
    request = cb.ReceiveTriggerWebhookRequest(
        project_id=PROJECT, trigger=made.id, secret="open sesame", body=body
    )
    client.receive_trigger_webhook(request=request)
    (build,) = client.list_builds(project_id=PROJECT, filter=f'trigger_id="{made.id}"')
    assert list(build.steps[0].args)[1] == "hook"
    request.secret = "wrong"
    with pytest.raises(exceptions.Forbidden):
        client.receive_trigger_webhook(request=request)


def test_worker_pools_are_listed_and_are_not_changed(server, client):
    server.token("arm-1", "worker", pool="arm")
    parent = "projects/p/locations/europe-west1"
    (pool,) = client.list_worker_pools(parent=parent)
    assert (pool.name, pool.state.name) == (f"{parent}/workerPools/arm", "RUNNING")
    assert client.get_worker_pool(name=pool.name) == pool
    with pytest.raises(exceptions.NotFound):
        client.get_worker_pool(name=f"{parent}/workerPools/x86")
    with pytest.raises(exceptions.MethodNotAllowed, match="in the settings of the server"):
        client.delete_worker_pool(name=pool.name)


def test_the_account_of_builds_can_be_asked_for(client):
    name = "projects/p/locations/global/defaultServiceAccount"
    request = cb.GetDefaultServiceAccountRequest(name=name)
    assert client.get_default_service_account(request=request).service_account_email
