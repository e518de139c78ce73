"""The credentials that a server makes for builds of workers: tokens, logins, provenance."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest

from buildrunner.client.http import ServerConnection
from buildrunner.engine.outcome import BuildOutcome, PushedName, Span, StepOutcome
from buildrunner.errors import AttestationError, IdentityRefused, LeaseLost
from buildrunner.logs.files.log_file import log_folder
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan, SecretReference, StepPlan
from buildrunner.provenance.stored import read_attestations
from buildrunner.registries.logins import DockerLogins
from buildrunner.server.http.tokens import new_token
from buildrunner.settings import Settings
from buildrunner.settings.settings_file import GitSettings
from buildrunner.spec.model.build import Build, BuildOptions, Status, VerifyOption
from buildrunner.store.model.builds import Lease, NewBuild
from buildrunner.store.model.remote import Provenance
from buildrunner.triggers.labels import BUILT_REF, TRIGGER_NAME
from buildrunner.worker.remote.credentials import (
    RemoteAttester,
    RemoteIdentities,
    fetch_logins,
    remote_attester,
)
from buildrunner.worker.remote.queue import RemoteQueue
from tests.api_server import ApiServer, api_server, now

AUDIENCE = "https://cloud.example.com"
REPOSITORY = "https://git.example.com/acme/app"
DIGEST = f"sha256:{'a' * 64}"
IMAGE = "registry.example.com/p/app"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    logins = tmp_path / "logins"
    (logins / ".docker").mkdir(parents=True)
    auth = base64.b64encode(b"robot:hunter22").decode()
    auths = {one: {"auth": auth} for one in ("registry.example.com", "other.example.com")}
    (logins / ".docker" / "config.json").write_text(json.dumps({"auths": auths}))
    (logins / ".netrc").write_text("machine pypi.example.com login ci password hunter23\n")
    of_project = {"p": {"logins_folder": str(logins)}}
    with api_server(tmp_path / "data", auth=True, machine=Settings(projects=of_project)) as found:
        document = {"id": "t1", "name": "deploy", "build": {"steps": [{"name": "busybox"}]}}
        found.store.triggers.create("p", "global", document)
        found.store.triggers.set_settings("p", "t1", {"identity": {"audiences": [AUDIENCE]}})
        yield found


_CONNECTIONS: list[ServerConnection] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _CONNECTIONS:
        _CONNECTIONS.pop().close()


def queue(server: ApiServer, name: str = "w1") -> RemoteQueue:
    text, stored = new_token(name, ["worker"], now=now())
    server.store.tokens.create(stored)
    connection = ServerConnection(server.url, text, "", lambda _: None)
    _CONNECTIONS.append(connection)
    return RemoteQueue(connection, send_log=lambda *_: None)


def claimed(
    server: ApiServer, token: str = "w1", source: dict[str, Any] | None = None, **changes: Any
) -> Lease:
    """A build of the trigger that a worker has claimed; its id is that of the build."""
    step = {"name": "busybox", "args": ["deploy", "hunter24"]}
    request = {
        "steps": [step],
        "images": [IMAGE],
        "source": source or {"gitSource": {"url": REPOSITORY, "revision": "main"}},
    }
    document = {
        **request,
        "id": f"b-{len(server.store.builds.page('p').builds)}",
        "projectId": "p",
        "buildTriggerId": "t1",
        "createTime": now().isoformat().replace("+00:00", "Z"),
        "status": "QUEUED",
    }
    labels = {BUILT_REF: "refs/heads/main", TRIGGER_NAME: "deploy"}
    new = NewBuild(
        document=document,
        request=request,
        expires_at=datetime(2100, 1, 1, tzinfo=UTC),
        labels=labels,
    )
    server.store.builds.create(msgspec.structs.replace(new, **changes))
    found = server.store.queue.claim(f"worker:{token}/host", now=now(), lease_s=600, limit=100)
    assert found is not None
    return found[1]


def begun(server: ApiServer, mine: RemoteQueue, **changes: Any) -> Lease:
    """The same, begun and planned; the plan says more of its origin than a worker may."""
    lease = claimed(server, **changes)
    mine.set_process(lease, "1:1")
    mine.record_plan(lease, msgspec.json.encode(plan(lease.build_id)))
    return lease


def plan(build_id: str, **changes: Any) -> BuildPlan:
    origin = BuildOrigin(
        repository="https://git.example.com/acme/secret",
        commit="c" * 40,
        ref="refs/tags/v1",
        trigger="t2",
        trigger_name="release",
    )
    step = StepPlan(
        index=0,
        image="busybox",
        secrets=(SecretReference("A", "secretManager", "s"),),
    )
    plan = BuildPlan(
        build_id=build_id, project_id="q", steps=(step,), images=(IMAGE,), origin=origin
    )
    return msgspec.structs.replace(plan, **changes)


def published(image: str = IMAGE) -> BuildOutcome:
    at = datetime(2001, 1, 1, tzinfo=UTC)
    span = Span(at, at)
    return BuildOutcome(
        status=Status.SUCCESS,
        started_at=at,
        finished_at=datetime(2090, 1, 1, tzinfo=UTC),
        steps=(StepOutcome(index=0, output=b"private"),),
        images=(PushedName(name=f"{image}:latest", digest=DIGEST, timing=span),),
    )


def attested(
    mine: RemoteQueue, lease: Lease, outcome: BuildOutcome, *, required: bool = False
) -> Any:
    attester = RemoteAttester(mine, lease, Provenance(enabled=True), required=required)
    return attester.attest(
        outcome,
        logins=DockerLogins(),
        masked=lambda text: text,
        log=lambda _: None,
        cancel=threading.Event(),
    )


def test_a_build_of_a_worker_gets_a_token_that_says_what_the_server_knows(
    server: ApiServer,
) -> None:
    mine = queue(server)
    lease = begun(server, mine)
    assert mine.begun(lease).has_identity
    token = RemoteIdentities(mine, lease).identity_token(AUDIENCE)
    keys = jwt.PyJWKClient(f"{server.url}/.well-known/jwks.json")
    claims = jwt.decode(
        token, keys.get_signing_key_from_jwt(token), algorithms=["RS256"], audience=AUDIENCE
    )
    assert claims["sub"] == "project:p:trigger:t1:ref:refs/heads/main"
    assert (claims["build_id"], claims["trigger_name"]) == (lease.build_id, "deploy")
    assert (claims["repository"], claims["commit"]) == (REPOSITORY, "c" * 40)


@pytest.mark.parametrize("common", [{}, {"app": REPOSITORY}])
def test_the_repository_is_the_one_that_the_build_s_project_names(
    tmp_path: Path, common: dict[str, str]
) -> None:
    """Issue: the server stated what other projects name so, and the worker fetched another one."""
    fetched = "https://git.example.com/other/real"
    own = {"p": {"git": {"repositories": {"app": fetched}}}}
    machine = Settings(git=GitSettings(repositories=common), projects=own)
    with api_server(tmp_path / "data", auth=True, machine=machine) as server:
        server.store.triggers.create("p", "global", {"id": "t1", "name": "deploy"})
        server.store.triggers.set_settings("p", "t1", {"identity": {"audiences": [AUDIENCE]}})
        server.secrets["s"] = "hunter24"
        mine = queue(server)
        lease = begun(server, mine, source={"repoSource": {"repoName": "app"}})
        token = RemoteIdentities(mine, lease).identity_token(AUDIENCE)
        attested(mine, lease, published())
        folder = log_folder(server.context.data_folder, lease.build_id)
        envelope = json.loads(read_attestations(folder, lease.build_id))
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["repository"] == fetched
    definition = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["source"]["repository"] == fetched


def test_a_token_that_the_trigger_does_not_allow_is_refused(server: ApiServer) -> None:
    mine = queue(server)
    identities = RemoteIdentities(mine, begun(server, mine))
    with pytest.raises(IdentityRefused, match="does not allow tokens for the audience") as refused:
        identities.identity_token("https://elsewhere.example.com")
    assert "schedules settings TRIGGER --audience" in str(refused.value)
    fork = begun(server, mine, untrusted=True)
    assert not mine.begun(fork).has_identity
    with pytest.raises(IdentityRefused):
        RemoteIdentities(mine, fork).identity_token(AUDIENCE)


def test_the_logins_of_the_project_come_as_far_as_the_plan_names_them(
    server: ApiServer, tmp_path: Path
) -> None:
    mine = queue(server)
    lease = begun(server, mine)
    assert mine.begun(lease).has_logins
    folder = tmp_path / "run" / "logins"
    fetch_logins(mine, lease, str(folder))
    fetch_logins(mine, lease, str(folder))  # again, by a process that resumes the build
    config = json.loads((folder / ".docker" / "config.json").read_text())
    auth = base64.b64encode(b"robot:hunter22").decode()
    assert config == {"auths": {"registry.example.com": {"auth": auth}}}
    assert [path.name for path in folder.iterdir()] == [".docker"]
    assert (folder / ".docker" / "config.json").stat().st_mode & 0o777 == 0o600


def test_the_worker_of_a_fork_s_build_gets_no_logins(server: ApiServer, tmp_path: Path) -> None:
    mine = queue(server)
    lease = begun(server, mine, untrusted=True)
    fetch_logins(mine, lease, str(tmp_path / "logins"))
    assert list(tmp_path.glob("logins/**/*.json")) == []
    assert "cm9ib3Q6" not in mine.call("GET", lease, "/logins").text


def test_the_server_signs_and_keeps_the_provenance_with_the_facts_that_it_knows(
    server: ApiServer,
) -> None:
    server.secrets["s"] = "hunter24"
    mine = queue(server)
    lease = begun(server, mine)
    assert mine.begun(lease).provenance == Provenance(enabled=True)
    assert attested(mine, lease, published()).warnings == ()
    folder = log_folder(server.context.data_folder, lease.build_id)
    envelope = json.loads(read_attestations(folder, lease.build_id))
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["subject"] == [{"name": IMAGE, "digest": {"sha256": "a" * 64}}]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["source"] == {
        "repository": REPOSITORY,
        "commit": "c" * 40,
        "ref": "refs/heads/main",
    }
    assert definition["internalParameters"]["projectId"] == "p"
    assert definition["internalParameters"]["trigger"] == {"id": "t1", "name": "deploy"}
    (step,) = definition["externalParameters"]["build"]["steps"]
    assert step["args"][0] == "deploy"
    assert "hunter24" not in str(statement)
    details = statement["predicate"]["runDetails"]
    assert details["builder"]["id"] == server.url
    assert details["metadata"]["invocationId"].endswith(f"builds/{lease.build_id}")
    year = str(now().year)
    assert details["metadata"]["startedOn"][:4] == details["metadata"]["finishedOn"][:4] == year


def test_what_the_plan_does_not_push_is_not_attested(server: ApiServer) -> None:
    mine = queue(server)
    lease = begun(server, mine)
    made = attested(mine, lease, published("registry.example.com/p/other"))
    (warning,) = made.warnings
    assert "the build pushes no image registry.example.com/p/other:latest" in warning
    with pytest.raises(AttestationError, match="pushes no image"):
        attested(mine, lease, published("registry.example.com/p/other"), required=True)


@pytest.mark.parametrize("changes", [{"untrusted": True}, {"push": False}], ids=str)
def test_a_build_that_may_not_push_gets_no_provenance(
    server: ApiServer, changes: dict[str, Any]
) -> None:
    mine = queue(server)
    (warning,) = attested(mine, begun(server, mine, **changes), published()).warnings
    assert "gets no provenance" in warning


def test_a_build_that_demands_provenance_says_if_the_server_makes_none() -> None:
    options = BuildOptions(requested_verify_option=VerifyOption.VERIFIED)
    build = Build(options=options, images=(IMAGE,))
    with pytest.raises(Exception, match="the server makes none for this project"):
        remote_attester(None, Lease("b", 1), Provenance(), build, plan("b"))
    found = remote_attester(None, Lease("b", 1), Provenance(enabled=True), build, plan("b"))
    assert isinstance(found, RemoteAttester)


@pytest.mark.parametrize(
    ("method", "route"),
    [("POST", ":identityToken"), ("GET", "/logins"), ("POST", ":attest")],
)
def test_credentials_are_for_the_process_that_has_begun_the_build(
    server: ApiServer, method: str, route: str
) -> None:
    mine, other = queue(server), queue(server, "w2")

    def call(caller: RemoteQueue, lease: Lease) -> Any:
        content = msgspec.json.encode(published())
        return caller.call(method, lease, route, query={"audience": AUDIENCE}, content=content)

    lease = claimed(server)
    with pytest.raises(Exception, match="begin it first"):
        call(mine, lease)
    mine.set_process(lease, "1:1")
    with pytest.raises(Exception, match="has no plan yet"):
        call(mine, lease)
    mine.record_plan(lease, msgspec.json.encode(plan(lease.build_id)))
    assert call(mine, lease).status_code == 200
    with pytest.raises(LeaseLost):
        call(other, lease)
    later, _ = server.store.queue.claim_again(
        lease.build_id, "worker:w1/host", now=now(), lease_s=600, instead_of=lease.fence
    )
    assert later.fence > lease.fence
    with pytest.raises(LeaseLost):
        call(mine, lease)
    ended = {**later.document, "status": "SUCCESS"}
    server.store.queue.record(Lease(lease.build_id, later.fence), ended)
    with pytest.raises(LeaseLost):
        call(mine, Lease(lease.build_id, later.fence))
