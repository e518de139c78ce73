"""Secrets: who may not have one does not get it, whatever way they ask for it."""

from __future__ import annotations

import base64
import json
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.errors import SecretError
from buildrunner.plan.build_plan import project_number
from buildrunner.plan.pinned_images import with_pinned_images
from buildrunner.plan.resolve import PlanContext
from buildrunner.secrets.secret_name import SecretName, parse_name
from buildrunner.secrets.secret_scope import Scope
from buildrunner.server.http.pinned import gates
from buildrunner.server.notifications.dispatch import NotificationService
from buildrunner.server.outbox.sender import Delivery, OutboxSender
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.store.model.builds import StoredBuild, build_asker
from tests.api_server import ApiServer, api_server, now
from tests.conftest import Registry
from tests.fixtures_google import GoogleServer
from tests.http_receivers import Receiver, receiver
from tests.mail_receivers import mail_server
from tests.plans import plan_build
from tests.security.server_build import ServerBuild

GCLOUD = f"gcr.io/p/gcloud@sha256:{'a' * 64}"
HERE = SourcePolicy(hosts=("127.0.0.1",))
STORED = {
    "hooks-github": Scope(),
    "forge-github_com": Scope(forge="github.com"),
    "status-github-com": Scope(),
    "projects/bank/secrets/db": Scope(),
    "projects/shop/secrets/own": Scope(),
    "short": Scope(),
    "web-only": Scope(projects=("web",)),
    "shared": Scope(projects=("shop",)),
    "deploy": Scope(projects=("shop",), triggers=("deploy",), refs=("refs/heads/main",)),
    "slack": Scope(projects=("shop",), uses=("notifiers",)),
    "gcloud-only": Scope(projects=("shop",), images=(GCLOUD,), variables=("KEY",)),
}
# What a member or an admin of the project shop must not get, by the names that they may try.
NOT_THEIRS = [
    "hooks-github",
    "projects/shop/secrets/hooks-github",
    "projects/shop/secrets/hooks-github/versions/latest",
    "forge-github_com",
    "projects/shop/secrets/status-github-com/versions/1",
    "projects/bank/secrets/db",
    "projects/bank/secrets/db/versions/latest",
    "short",
    "projects/shop/secrets/short/versions/latest",
    "projects/bank/secrets/short",
    "web-only",
]


def value_of(name: str) -> str:
    return f"value-of-{name.replace('/', '-')}"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The server's user has the secrets of `STORED`."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    settings = Settings()
    store = wiring.secret_store(settings)
    for name, scope in STORED.items():
        store.put(SecretName(name), value_of(name), scope)
    return settings


@pytest.fixture
def server(tmp_path: Path, settings: Settings) -> Iterator[ApiServer]:
    secrets = wiring.ServerSecrets(settings)
    with api_server(tmp_path, secrets=secrets, auth=True, notify=HERE, sources=HERE) as running:
        yield running


@pytest.fixture
def listener() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def as_(server: ApiServer, *scopes: str) -> httpx.Client:
    """A client of somebody with these scopes in the project shop."""
    token = server.token(f"t{uuid.uuid4().hex}", *scopes, projects=("shop",))
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=30)


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


# -- notifiers -------------------------------------------------------------------------------------


def send_by_notifier(
    server: ApiServer, secret: str, delivery: dict[str, Any], kind: str = "HTTPNotifier"
) -> list[Any]:
    """What an admin of the project shop has sent by a notifier: the messages in the outbox."""
    notifier = {
        "apiVersion": "buildrunner/v1",
        "kind": kind,
        "metadata": {"name": "spy"},
        "spec": {
            "notification": {"delivery": delivery},
            "secrets": [{"name": "s", "value": secret}],
        },
    }
    with as_(server, "admin") as http:
        ok(http.post("/v1/projects/shop/builds", json={"steps": [{"name": "busybox"}]}))
        ok(http.put("/buildrunner/v1/projects/shop/notifiers/spy", json=notifier))
        ok(http.post("/buildrunner/v1/projects/shop/notifiers/spy:send", json={}))
    sent = Delivery(server.context.secrets, gates(server.context.settings), now)
    sender = OutboxSender(
        server.store, sent, [NotificationService(server.context)], now=now, random=lambda: 0.5
    )
    sender.begin_sending()
    assert sender.wait_until_idle(30)
    sender.stop()
    return list(server.store.outbox.page())


@pytest.mark.parametrize("field", ["token", "signature", "webhookUrl", "password"])
@pytest.mark.parametrize("name", NOT_THEIRS)
def test_a_project_s_admin_has_no_foreign_secret_sent_anywhere(
    server: ApiServer, listener: Receiver, name: str, field: str
) -> None:
    ref = {"secretRef": "s"}
    with mail_server() as mail:
        mail.password = "anything"
        kind, given = "HTTPNotifier", {"url": f"{listener.url}/spy", field: ref}
        if field == "webhookUrl":
            kind, given = "SlackNotifier", {field: ref}
        if field == "password":
            kind = "SMTPNotifier"
            given = {
                "server": "127.0.0.1",
                "port": mail.port,
                "sender": "spy@example.com",
                "recipients": ["spy@example.com"],
                field: ref,
            }
        (message,) = send_by_notifier(server, name, given, kind)
        assert mail.received == []
    assert listener.received == []
    assert message.state == "waiting"
    assert "was not found" in message.last_error
    assert "value-of" not in message.last_error


@pytest.mark.parametrize("name", ["projects/shop/secrets/own/versions/latest", "shared", "slack"])
def test_what_is_theirs_is_sent(server: ApiServer, listener: Receiver, name: str) -> None:
    send_by_notifier(server, name, {"url": f"{listener.url}/", "token": {"secretRef": "s"}})
    (came,) = listener.received
    assert came.headers["authorization"].startswith("Bearer value-of-")


@pytest.mark.parametrize(("name", "said"), [("deploy", "trigger"), ("gcloud-only", "image")])
def test_a_secret_for_certain_builds_goes_to_no_notifier(
    server: ApiServer, listener: Receiver, name: str, said: str
) -> None:
    given = {"url": f"{listener.url}/", "token": {"secretRef": "s"}}
    (message,) = send_by_notifier(server, name, given)
    assert listener.received == []
    assert "is refused" in message.last_error
    assert said in message.last_error


# -- webhook triggers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NOT_THEIRS, "slack"])
def test_a_webhook_trigger_does_not_tell_whether_a_guess_is_a_foreign_secret(
    server: ApiServer, name: str
) -> None:
    whole = name if "/" in name else f"projects/shop/secrets/{name}"
    version = whole if "/versions/" in whole else f"{whole}/versions/latest"
    trigger = {
        "name": "oracle",
        "webhookConfig": {"secret": version},
        "build": {"steps": [{"name": "busybox"}]},
    }
    with as_(server, "admin") as http:
        ok(http.post("/v1/projects/shop/triggers", json=trigger))
    bare = name.partition("/versions/")[0].rpartition("/")[2]
    guess = value_of("projects/bank/secrets/db" if bare == "db" else bare)
    path = "/v1/projects/shop/triggers/oracle:webhook"
    right = server.http.post(path, params={"secret": guess}, json={})
    wrong = server.http.post(path, params={"secret": "wrong"}, json={})
    assert right.status_code == wrong.status_code == 403
    assert right.json() == wrong.json()
    assert server.store.builds.page("shop").builds == ()


def test_a_webhook_trigger_has_the_secrets_of_its_project(server: ApiServer) -> None:
    trigger = {
        "name": "hook",
        "webhookConfig": {"secret": "projects/shop/secrets/own/versions/latest"},
        "build": {"steps": [{"name": "busybox"}]},
    }
    with as_(server, "admin") as http:
        ok(http.post("/v1/projects/shop/triggers", json=trigger))
    secret = value_of("projects/shop/secrets/own")
    ok(server.http.post(f"/v1/projects/shop/triggers/hook:webhook?secret={secret}", json={}))


# -- builds ----------------------------------------------------------------------------------------


def asking_for(name: str, image: str = "busybox", **step: Any) -> dict[str, Any]:
    version = name if "/versions/" in name else f"{name}/versions/latest"
    secrets = {"secretManager": [{"versionName": version, "env": "KEY"}]}
    return {
        "steps": [{"name": image, "secretEnv": ["KEY"], **step}],
        "availableSecrets": secrets,
    }


def resolved(settings: Settings, stored: StoredBuild, *pinned: str) -> str:
    """Return the value that the process of a build gets for its first secret.

    ``pinned`` are images of a rollback.
    """
    build = decode_message(Build, stored.request).value
    built_ins = BuiltIns(project_id="shop", project_number="1", build_id=stored.id)
    plan = with_pinned_images(plan_build(build, context=PlanContext(built_ins=built_ins)), pinned)
    reference = plan.steps[0].secrets[0]
    resolver = wiring.secret_resolver(settings, build_asker(stored, settings.project_id))
    return resolver.resolve(reference, plan)


def submitted(server: ApiServer, body: dict[str, Any]) -> StoredBuild:
    with as_(server, "submit") as http:
        made = ok(http.post("/v1/projects/shop/builds", json=body))
    return server.store.builds.find(made["metadata"]["build"]["id"])


@pytest.mark.parametrize("name", [*NOT_THEIRS, "slack", "deploy", "gcloud-only"])
def test_whoever_may_submit_gets_no_foreign_secret(
    server: ApiServer, settings: Settings, name: str
) -> None:
    stored = submitted(server, asking_for(name))
    with pytest.raises(SecretError) as refused:
        resolved(settings, stored)
    assert "value-of" not in str(refused.value)


def test_the_name_of_a_variable_is_no_way_to_a_short_name(
    server: ApiServer, settings: Settings
) -> None:
    body = asking_for("projects/shop/secrets/none")
    body["steps"][0]["secretEnv"] = ["short"]
    body["availableSecrets"]["secretManager"][0]["env"] = "short"
    with pytest.raises(SecretError, match="no secret short is shared with project shop"):
        resolved(settings, submitted(server, body))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("projects/shop/secrets/own", "projects/shop/secrets/own"),
        ("projects/$PROJECT_NUMBER/secrets/own", "projects/shop/secrets/own"),
        ("projects/shop/secrets/shared", "shared"),
        ("projects/bank/secrets/shared", "shared"),
    ],
)
def test_a_build_gets_what_is_its_project_s(
    tmp_path: Path, settings: Settings, name: str, value: str
) -> None:
    request = asking_for(name.replace("$PROJECT_NUMBER", project_number("shop")))
    assert resolved(settings, built(request)) == value_of(value)


def built(request: dict[str, Any], **fields: Any) -> StoredBuild:
    document = {"id": "b", "projectId": "shop", "status": "QUEUED", **fields.pop("document", {})}
    return StoredBuild(document=document, request=request, **fields)


def test_a_build_that_is_not_trusted_gets_nothing_even_of_its_own_project(
    settings: Settings,
) -> None:
    for name in ("projects/shop/secrets/own", "shared"):
        with pytest.raises(SecretError, match="not trusted gets no secrets"):
            resolved(settings, built(asking_for(name), untrusted=True))


TRIGGER = {"sourceToBuild": {"uri": "https://git.example.com/r", "ref": "refs/heads/main"}}


def run_trigger(server: ApiServer, name: str, source: dict[str, Any]) -> StoredBuild:
    """A run of a trigger of the project shop by somebody who may submit only."""
    trigger = {"name": name, "build": asking_for("deploy"), **TRIGGER}
    with as_(server, "admin") as http:
        ok(http.post("/v1/projects/shop/triggers", json=trigger))
    path = f"/v1/projects/shop/locations/global/triggers/{name}:run"
    with as_(server, "submit") as http:
        made = ok(http.post(path, json={"source": source}))
    return server.store.builds.find(made["metadata"]["build"]["id"])


def test_the_trigger_and_branch_of_a_secret_get_it(server: ApiServer, settings: Settings) -> None:
    assert resolved(settings, run_trigger(server, "deploy", {})) == value_of("deploy")


def test_the_number_of_a_project_avoids_no_limit(settings: Settings) -> None:
    """A name with the number has the scope of the name with the id, and none of its own."""
    store = wiring.secret_store(settings)
    store.set_scope("projects/shop/secrets/own", Scope(triggers=("deploy",)))
    for project in ("shop", project_number("shop")):
        with pytest.raises(SecretError, match="is limited to the triggers deploy"):
            resolved(settings, built(asking_for(f"projects/{project}/secrets/own")))


def test_a_name_with_the_number_of_another_project_is_shared_by_its_short_name(
    settings: Settings,
) -> None:
    name = f"projects/{project_number('bank')}/secrets/money"
    with pytest.raises(SecretError) as caught:
        resolved(settings, built(asking_for(name)))
    assert "`buildrunner secrets scope money --project shop`" in caught.value.hint


@pytest.mark.parametrize(
    ("trigger", "source", "said"),
    [
        ("ci", {}, "limited to the triggers deploy, and this build is of ci"),
        ("ci", {"substitutions": {"TRIGGER_NAME": "deploy"}}, "this build is of ci"),
        ("deploy", {"branchName": "dev"}, "limited to refs/heads/main, and this build is of"),
        (
            "deploy",
            {"branchName": "dev", "substitutions": {"BRANCH_NAME": "main", "REF_NAME": "main"}},
            "this build is of refs/heads/dev",
        ),
        (
            "deploy",
            {"commitSha": "a" * 40, "substitutions": {"BRANCH_NAME": "main"}},
            "of a commit that its caller named",
        ),
        ("deploy", {"tagName": "main"}, "this build is of refs/tags/main"),
    ],
)
def test_no_run_of_a_trigger_pretends_to_be_another_trigger_or_branch(
    server: ApiServer, settings: Settings, trigger: str, source: dict[str, Any], said: str
) -> None:
    with pytest.raises(SecretError, match=said):
        resolved(settings, run_trigger(server, trigger, source))


@pytest.mark.parametrize(
    "claims",
    [
        {"buildTriggerId": "deploy"},
        {"substitutions": {"TRIGGER_NAME": "deploy", "BRANCH_NAME": "main", "_A": "$_A"}},
        {"tags": ["trigger-deploy"], "labels": {"trigger_name": "deploy"}},
        {
            "source": {
                "gitSource": {"url": "https://evil.example.com/r", "revision": "refs/heads/main"}
            }
        },
    ],
    ids=["its id", "its variables", "its tags", "a branch of another repository"],
)
def test_no_submitted_build_pretends_to_be_a_trigger_s(
    server: ApiServer, settings: Settings, claims: dict[str, Any]
) -> None:
    body = {**asking_for("deploy"), **claims}
    with as_(server, "submit") as http:
        answer = http.post("/v1/projects/shop/builds", json=body)
    if answer.status_code == 400:  # the claim itself is refused
        return
    stored = server.store.builds.find(ok(answer)["metadata"]["build"]["id"])
    with pytest.raises(SecretError, match="this build has no trigger"):
        resolved(settings, stored)


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_retry_fetches_no_repository_that_its_trigger_has_left(
    server: ApiServer, is_deleted: bool
) -> None:
    """Attack: the name of the old repository is somebody else's now."""
    first = run_trigger(server, "deploy", {})
    retry = f"/v1/projects/shop/builds/{first.id}:retry"
    with as_(server, "submit") as http:
        ok(http.post(f"/v1/projects/shop/builds/{first.id}:cancel", json={}))
        ok(http.post(retry, json={}))
    path = "/v1/projects/shop/triggers/deploy"
    moved = {"sourceToBuild": {**TRIGGER["sourceToBuild"], "uri": "https://git.example.com/new"}}
    with as_(server, "admin") as http:
        if is_deleted:
            ok(http.delete(path))
        else:
            ok(http.patch(path, json=moved, params={"updateMask": "sourceToBuild"}))
    with as_(server, "submit") as http:
        answer = http.post(retry, json={})
    assert answer.status_code == 400
    assert "no longer builds that repository" in answer.json()["error"]["message"]


def test_a_retry_of_a_build_is_of_the_same_trigger_and_branch(
    server: ApiServer, settings: Settings
) -> None:
    for source, gets in (({}, True), ({"branchName": "dev"}, False)):
        first = run_trigger(server, f"deploy{'' if gets else '2'}", source)
        server.run(first.id, "FAILURE")
        with as_(server, "submit") as http:
            made = ok(http.post(f"/v1/projects/shop/builds/{first.id}:retry", json={}))
        again = server.store.builds.find(made["metadata"]["build"]["id"])
        assert again.labels["trigger_name"] == first.labels["trigger_name"]
        if gets:
            assert resolved(settings, again) == value_of("deploy")
        else:
            with pytest.raises(SecretError, match="is limited to"):
                resolved(settings, again)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"image": "busybox"}, "runs busybox"),
        ({"image": GCLOUD, "entrypoint": "bash"}, "has an entrypoint of its own"),
        ({"image": GCLOUD, "script": "env"}, "has a script"),
        ({"image": GCLOUD, "env": ["LD_PRELOAD=/workspace/x.so"]}, "sets LD_PRELOAD"),
        ({"image": GCLOUD, "env": ["_JAVA_OPTIONS=-agentpath:x"]}, "sets _JAVA_OPTIONS"),
        (
            {"image": GCLOUD, "volumes": [{"name": "v", "path": "/usr"}]},
            "mounts volumes",
        ),
    ],
)
def test_a_secret_for_an_image_goes_to_no_other_program(
    settings: Settings, step: dict[str, Any], said: str
) -> None:
    fine = built(asking_for("gcloud-only", image=GCLOUD, args=["x"]))
    assert resolved(settings, fine) == value_of("gcloud-only")
    with pytest.raises(SecretError, match=said):
        resolved(settings, built(asking_for("gcloud-only", **step)))


def test_a_rollback_has_the_secret_of_an_image(settings: Settings) -> None:
    """The server sets a variable for it. A config may not, since its value could be anything."""
    fine = built(asking_for("gcloud-only", image=GCLOUD, args=["x"]))
    image = f"r.example/app@sha256:{'1' * 64}"
    assert resolved(settings, fine, image) == value_of("gcloud-only")
    env = ["BUILDRUNNER_PINNED_IMAGES=x"]
    evil = built(asking_for("gcloud-only", image=GCLOUD, args=["x"], env=env))
    with pytest.raises(SecretError, match="sets BUILDRUNNER_PINNED_IMAGES"):
        resolved(settings, evil)


@pytest.mark.parametrize("image", ["r.example/team/app", "r.example/team/app:1"])
def test_no_build_gets_the_secret_of_a_tag_by_pushing_an_image_to_it(
    settings: Settings, image: str
) -> None:
    """Such a scope may be from an earlier version; `secrets set` refuses it."""
    scope = Scope(projects=("shop",), images=(image,), variables=("KEY",))
    wiring.secret_store(settings).put(SecretName("of-tag"), "value-of-tag", scope)
    with pytest.raises(SecretError, match="can be another image after the next push"):
        resolved(settings, built(asking_for("of-tag", image=image, args=["x"])))


@pytest.mark.parametrize("where", ["options", "automap", "secret"])
def test_no_variable_of_the_config_changes_the_program_of_a_limited_secret(
    settings: Settings, where: str
) -> None:
    evil = asking_for("gcloud-only", image=GCLOUD)
    match where:
        case "options":
            evil["options"] = {"env": ["NODE_OPTIONS=--require=/workspace/evil.js"]}
            said = "sets NODE_OPTIONS"
        case "automap":
            evil["substitutions"] = {"_JAVA_OPTIONS": "-javaagent:/workspace/evil.jar"}
            evil["options"] = {"automapSubstitutions": True}
            said = "sets _JAVA_OPTIONS"
        case _:  # whoever writes the config encrypts any text with the key
            key = "projects/shop/locations/global/keyRings/r/cryptoKeys/k"
            evil["steps"][0]["secretEnv"].append("LD_PRELOAD")
            inline = {"kmsKeyName": key, "envMap": {"LD_PRELOAD": "bm90IGEgcmVhbCBvbmU="}}
            evil["availableSecrets"]["inline"] = [inline]
            said = "gets secrets as LD_PRELOAD"
    with pytest.raises(SecretError, match=said):
        resolved(settings, built(evil))


@pytest.mark.docker
def test_no_step_gets_the_secret_of_an_image_by_making_one_of_that_name(
    settings: Settings,
    docker_engine: DockerEngine,
    busybox: str,
    tmp_path: Path,
    registry: Registry,
) -> None:
    """With the engine's socket a step can also read the environment of each container."""
    tagged = f"{registry.address}/gcloud-{uuid.uuid4().hex[:8]}:1"
    docker_engine.tag_image(str(docker_engine.find_image(busybox).id), tagged)
    pushed = docker_engine.push_image(tagged, on_progress=print, cancel=threading.Event())
    name = f"{tagged.removesuffix(':1')}@{pushed.digest}"
    scope = Scope(projects=("shop",), images=(name,), variables=("KEY",))
    wiring.secret_store(settings).put(SecretName("of-image"), "value-of-image", scope)
    evil = asking_for("of-image", image=name, args=["sh", "-c", 'echo "$$KEY" | rev'])
    evil["steps"].insert(0, {"name": busybox, "args": ["true"]})
    try:
        for daemon, said in (("NON_PRIVILEGED", "engine's socket"), ("PRIVILEGED", "socket")):
            evil["options"] = {"dockerDaemon": daemon}
            build = ServerBuild(docker_engine, tmp_path, evil, settings=settings, project="shop")
            outcome = build.run()
            assert outcome.status is Status.FAILURE
            assert said in outcome.error
            assert "egami-fo-eulav" not in build.log.text
        evil["options"] = {"dockerDaemon": "NO_DOCKER"}
        build = ServerBuild(docker_engine, tmp_path, evil, settings=settings, project="shop")
        assert build.run().status is Status.SUCCESS, build.log.text
        assert "egami-fo-eulav" in build.log.text
    finally:
        docker_engine.untag_image(tagged)


@pytest.mark.docker
def test_a_real_build_stops_before_its_first_step_and_says_what_is_missing(
    server: ApiServer,
    settings: Settings,
    docker_engine: DockerEngine,
    busybox: str,
    tmp_path: Path,
) -> None:
    for name, said in (("deploy", "limited to the triggers deploy"), ("short", "was not found")):
        body = asking_for(name, image=busybox, script="echo got $KEY")
        build = ServerBuild(docker_engine, tmp_path, body, settings=settings, project="shop")
        build.stored = replace(build.stored, request=submitted(server, body).request)
        outcome = build.run()
        assert outcome.status is Status.FAILURE
        assert said in outcome.error
        assert "got" not in build.log.text
    body = asking_for("shared", image=busybox, script='test "$KEY" = value-of-shared && echo right')
    body["options"] = {"dockerDaemon": "NON_PRIVILEGED"}
    build = ServerBuild(docker_engine, tmp_path, body, settings=settings, project="shop")
    assert build.run().status is Status.SUCCESS, build.log.text
    assert "right" in build.log.text


# -- Google and keys -------------------------------------------------------------------------------

KEY = "projects/bank/locations/global/keyRings/r/cryptoKeys/k"
SEALED = base64.b64encode(b"sealed").decode()


def encrypted(key: str) -> dict[str, Any]:
    return {
        "steps": [{"name": "busybox", "secretEnv": ["KEY"]}],
        "availableSecrets": {"inline": [{"kmsKeyName": key, "envMap": {"KEY": SEALED}}]},
    }


def test_the_server_s_google_account_reads_for_a_project_what_is_the_project_s(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    google = GoogleServer(tmp_path)
    try:
        for name, value in google.environ.items():
            monkeypatch.setenv(name, value)
        google.versions["projects/bank/secrets/g/versions/latest"] = b"of the bank"
        google.versions["projects/shop/secrets/g/versions/latest"] = b"of the shop"
        google.plaintexts[KEY, b"sealed"] = b"of the bank"
        requested = replace(settings, google_secrets=True)
        assert resolved(requested, built(asking_for("projects/shop/secrets/g"))) == "of the shop"
        google.requests.clear()
        for request in (asking_for("projects/bank/secrets/g"), encrypted(KEY)):
            with pytest.raises(SecretError, match="is shared with project shop"):
                resolved(requested, built(request))
        assert google.requests == []
        store = wiring.secret_store(settings)
        for name in ("projects/bank/secrets/g", KEY):
            store.set_scope(name, Scope(projects=("shop",)))
        assert resolved(requested, built(asking_for("projects/bank/secrets/g"))) == "of the bank"
        assert resolved(requested, built(encrypted(KEY))) == "of the bank"
    finally:
        google.close()


def test_the_server_s_decrypt_command_is_not_run_for_another_project_s_key(
    tmp_path: Path, settings: Settings
) -> None:
    ran = tmp_path / "ran"
    program = f"open({str(ran)!r}, 'w'); print('plain', end='')"
    requested = replace(settings, kms_command=(sys.executable, "-c", program))
    with pytest.raises(SecretError, match="is shared with project shop"):
        resolved(requested, built(encrypted(KEY)))
    assert not ran.exists()
    assert resolved(requested, built(encrypted(KEY.replace("bank", "shop")))) == "plain"


@pytest.mark.parametrize("version", ["", "/cryptoKeyVersions/1", "/versions/1"])
def test_a_version_of_a_key_has_the_limits_of_the_key(
    tmp_path: Path, settings: Settings, version: str
) -> None:
    key = KEY.replace("bank", "shop")
    ran = tmp_path / "ran"
    program = f"open({str(ran)!r}, 'w'); print('plain', end='')"
    requested = replace(settings, kms_command=(sys.executable, "-c", program))
    wiring.secret_store(requested).set_scope(key, Scope(triggers=("deploy",)))
    with pytest.raises(SecretError, match="is limited to the triggers deploy"):
        resolved(requested, built(encrypted(f"{key}{version}")))
    assert not ran.exists()


def test_a_mapping_of_the_settings_has_the_same_rules(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "value").write_text("mapped")
    at = f"file:{tmp_path}/value"
    mapped = {
        "m": at,
        "projects/bank/secrets/m2": at,
        "projects/shop/secrets/m3": at,
        "hooks-x": at,
    }
    requested = replace(settings, secrets=mapped)
    for name in ("m", "projects/bank/secrets/m2", "hooks-x"):
        with pytest.raises(SecretError, match="was not found"):
            resolved(requested, built(asking_for(name)))
    assert resolved(requested, built(asking_for("projects/shop/secrets/m3"))) == "mapped"
    wiring.secret_store(settings).set_scope("m", Scope(projects=("shop",)))
    assert resolved(requested, built(asking_for("projects/shop/secrets/m"))) == "mapped"


# -- the store, and this machine -------------------------------------------------------------------


def test_whoever_changes_the_store_s_file_without_the_key_shares_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "buildrunner" / "secrets" / "secrets.json"
    document = json.loads(path.read_text())
    scopes = document["scopes"]
    scopes["short"] = scopes["shared"]
    scopes["web-only"]["scope"]["projects"].append("shop")
    del scopes["deploy"]["scope"]["refs"]
    path.write_text(json.dumps(document))
    for name in ("short", "web-only", "deploy"):
        with pytest.raises(SecretError, match="is damaged"):
            resolved(settings, built(asking_for(name)))


def test_without_a_server_the_user_s_own_builds_have_all_of_the_user_s_secrets(
    settings: Settings,
) -> None:
    from buildrunner.plan.build_plan import SecretReference

    for name in STORED:
        reference = SecretReference("KEY", "secretManager", parse_name(name).secret)
        assert wiring.secret_resolver(settings).resolve(reference) == value_of(name)


def test_a_server_names_what_nobody_gets_after_an_update(settings: Settings) -> None:
    assert wiring.ServerSecrets(settings).unused() == {
        "short": "no project",
        "status-github-com": "nobody: set it again with --forge HOST",
    }
