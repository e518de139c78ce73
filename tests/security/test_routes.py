"""Every route of the server, asked by every kind of caller.

`TABLE` says for each route who may pass its door, and what a caller who passes is answered. A
route that is not in the table fails a test: whoever adds one says here who may use it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import httpx
import pytest

from buildrunner.engine.deployments import Deployment
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.log_file import LogFileSink, log_folder
from buildrunner.provenance.stored import store_attestations
from buildrunner.server.http.access import Sessions
from buildrunner.server.http.tokens import hash_of
from buildrunner.store.model.access import Session
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.store.model.deployments import recorded
from buildrunner.store.model.outbox import NewMessage
from tests.api_server import ApiServer, api_server, now

# Method, path (also below /locations/{location} where there is such a form), door, scopes that are
# needed, where they are needed, and what is answered behind the door.
#
# door   api: a token, or a session that reads. page, form: a session; a form also its own value.
#        open: nobody is asked for anything. proof: what is sent must prove itself.
#        worker: the token of a worker, which passes no other door.
# where  project: that of the path. object: that of the object, which a caller of other projects is
#        told does not exist. hidden: the same, and so is every other caller who may not see it.
#        server: all. any: some project.
# +      nobody needs to sign in to read it where the project is public.
# A call that changes something is sent for an object that does not exist by those who may pass.
TABLE = """
GET    /openapi.json                                          open  -       -        200
GET    /docs                                                  open  -       -        200
GET    /docs/assets/{name}                                    open  -       -        200
GET    /healthz                                               open  -       -        200
GET    /readyz                                                open  -       -        200
GET    /metrics                                               api   read    any      200
GET    /static/{version}/{name}                               open  -       -        200
GET    /login                                                 open  -       -        200
POST   /login                                                 open  -       -        403
GET    /                                                      open  -       -        303
POST   /logout                                                form  -       -        303

POST   /hooks/{forge}                                         proof -       -        401
POST   /hooks/{forge}/                                        proof -       -        401
POST   /hooks/{forge}/{name}                                  proof -       -        401
POST   /v1/projects/{project}/triggers/{trigger}:webhook      proof -       -        403

GET    /v1/projects/{project}/builds                          api   read    project+ 200
POST   /v1/projects/{project}/builds                          api   submit  project  400
GET    /v1/projects/{project}/builds/{build}                  api   read    project+ 200
POST   /v1/projects/{project}/builds/{build}:cancel           api   submit  project  404
POST   /v1/projects/{project}/builds/{build}:retry            api   submit  project  404
POST   /v1/projects/{project}/builds/{build}:approve          api   approve project  404
GET    /v1/operations/{operation:path}                        api   read    object+  200
POST   /v1/operations/{operation:path}:cancel                 api   submit  object   404
GET    /v1/projects/{project}/locations/{location}/operations/{operation} api read project+ 200
POST   /v1/projects/{project}/locations/{location}/operations/{operation}:cancel api submit project 404
GET    /v1/projects/{project}/triggers                        api   read    project+ 200
POST   /v1/projects/{project}/triggers                        api   admin   project  400
GET    /v1/projects/{project}/triggers/{trigger}              api   read    project+ 200
PATCH  /v1/projects/{project}/triggers/{trigger}              api   admin   project  404
DELETE /v1/projects/{project}/triggers/{trigger}              api   admin   project  404
POST   /v1/projects/{project}/triggers/{trigger}:run          api   submit  project  404
GET    /v1/projects/{project}/locations/{location}/defaultServiceAccount api read project+ 200
GET    /v1/projects/{project}/workerPools                     api   read    project+ 200
POST   /v1/projects/{project}/workerPools                     api   read    project+ 405
PATCH  /v1/projects/{project}/workerPools                     api   read    project+ 405
DELETE /v1/projects/{project}/workerPools                     api   read    project+ 405
GET    /v1/projects/{project}/workerPools/{pool}              api   read    project+ 404
*      /v1/projects/{project}/workerPools/{rest:path}         api   read    project+ 405
*      /v1/projects/{project}/githubEnterpriseConfigs         api   read    project+ 405
*      /v1/projects/{project}/githubEnterpriseConfigs/{rest:path} api read  project+ 405
*      /v1/projects/{project}/bitbucketServerConfigs          api   read    project+ 405
*      /v1/projects/{project}/bitbucketServerConfigs/{rest:path} api read   project+ 405
*      /v1/projects/{project}/gitLabConfigs                   api   read    project+ 405
*      /v1/projects/{project}/gitLabConfigs/{rest:path}       api   read    project+ 405
*      /v1/projects/{project}/installations                   api   read    project+ 405
*      /v1/projects/{project}/installations/{rest:path}       api   read    project+ 405
*      /v1/projects/{project}/connectedRepositories           api   read    project+ 405
*      /v1/projects/{project}/connectedRepositories/{rest:path} api read    project+ 405

GET    /buildrunner/v1/whoami                                 api   -       any+     200
GET    /buildrunner/v1/tokens                                 api   admin   server   200
POST   /buildrunner/v1/tokens                                 api   admin   server   400
DELETE /buildrunner/v1/tokens/{name}                          api   admin   server   404
GET    /buildrunner/v1/audit                                  api   admin   server   200
GET    /buildrunner/v1/hooks                                  api   read    server   200
PUT    /buildrunner/v1/hooks/{forge}                          api   admin   server   400
PUT    /buildrunner/v1/hooks/{forge}/{name}                   api   admin   server   400
DELETE /buildrunner/v1/hooks/{forge}                          api   admin   server   404
DELETE /buildrunner/v1/hooks/{forge}/{name}                   api   admin   server   404
GET    /buildrunner/v1/deliveries                             api   read    server   200
GET    /buildrunner/v1/deliveries/{delivery}                  api   admin   server   200
POST   /buildrunner/v1/deliveries/{delivery}:replay           api   admin   server   404
DELETE /buildrunner/v1/projects/{project}/builds/{build}      api   admin   project  404
GET    /buildrunner/v1/projects/{project}/builds/{build}/plan api   read    project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/waiting api read   project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/approval api read  project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/artifacts api read project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/provenance api read project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/deployments api read project+ 200
GET    /buildrunner/v1/projects/{project}/deployments         api   read    project+ 200
GET    /buildrunner/v1/projects/{project}/deployments/{deployment} api read project+ 200
GET    /buildrunner/v1/provenance-key                         open  -       -        200
GET    /.well-known/openid-configuration                      open  -       -        200
GET    /.well-known/jwks.json                                 open  -       -        200
GET    /buildrunner/v1/projects/{project}/builds/{build}/events api read    project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/log  api   read    project+ 200
HEAD   /buildrunner/v1/projects/{project}/builds/{build}/log  api   read    project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/log/lines api read project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/log/steps api read project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/log/search api read project+ 200
GET    /buildrunner/v1/projects/{project}/builds/{build}/log/stream api read project+ 200
GET    /{bucket}/log-{build}.txt                              api   read    hidden+  200
HEAD   /{bucket}/log-{build}.txt                              api   read    hidden+  200
GET    /{bucket}/{folder:path}/log-{build}.txt                api   read    hidden+  404
HEAD   /{bucket}/{folder:path}/log-{build}.txt                api   read    hidden+  404
GET    /badge/{project}/{trigger}.svg                         badge read    project+ 200
HEAD   /badge/{project}/{trigger}.svg                         badge read    project+ 200
POST   /buildrunner/v1/projects/{project}/sources:missing     api   submit  project  400
PUT    /buildrunner/v1/projects/{project}/sources/blobs/{sha256} api submit project  400
POST   /buildrunner/v1/projects/{project}/sources/manifests   api   submit  project  400
GET    /buildrunner/v1/projects/{project}/triggers/{trigger}/fires api read project+ 200
GET    /buildrunner/v1/projects/{project}/triggers/{trigger}/next api read  project+ 200
GET    /buildrunner/v1/projects/{project}/triggers/{trigger}/settings api read project+ 200
PUT    /buildrunner/v1/projects/{project}/triggers/{trigger}/settings api admin project 404
POST   /buildrunner/v1/projects/{project}/triggers/{trigger}:test api read  project  404
GET    /buildrunner/v1/projects/{project}/notifiers           api   read    project  200
POST   /buildrunner/v1/projects/{project}/notifiers:test      api   admin   project  400
GET    /buildrunner/v1/projects/{project}/notifiers/{notifier} api  read    project  200
PUT    /buildrunner/v1/projects/{project}/notifiers/{notifier} api  admin   project  400
DELETE /buildrunner/v1/projects/{project}/notifiers/{notifier} api  admin   project  404
POST   /buildrunner/v1/projects/{project}/notifiers/{notifier}:test api read project 404
POST   /buildrunner/v1/projects/{project}/notifiers/{notifier}:send api admin project 404
GET    /buildrunner/v1/projects/{project}/outbox              api   read    project  200
GET    /buildrunner/v1/projects/{project}/outbox/{message}    api   read    project  200
DELETE /buildrunner/v1/projects/{project}/outbox/{message}    api   admin   project  404
POST   /buildrunner/v1/projects/{project}/outbox/{message}:retry api admin  project  404

POST   /worker/v1/builds:claim                                worker -      -        400
GET    /worker/v1/builds                                      worker -      -        200
GET    /worker/v1/builds/{build}                              worker -      -        404
POST   /worker/v1/builds/{build}:takeOver                     worker -      -        409
POST   /worker/v1/builds/{build}:begin                        worker -      -        409
POST   /worker/v1/builds/{build}:renew                        worker -      -        409
GET    /worker/v1/builds/{build}/signals                      worker -      -        409
PUT    /worker/v1/builds/{build}/document                     worker -      -        409
POST   /worker/v1/builds/{build}:storeLog                     worker -      -        409
PUT    /worker/v1/builds/{build}/workspace                    worker -      -        409
GET    /worker/v1/builds/{build}/workspace                    worker -      -        409
PUT    /worker/v1/builds/{build}/plan                         worker -      -        409
PUT    /worker/v1/builds/{build}/deployments                  worker -      -        400
PUT    /worker/v1/builds/{build}/log                          worker -      -        409
GET    /worker/v1/builds/{build}/log                          worker -      -        409
PUT    /worker/v1/builds/{build}/events                       worker -      -        409
GET    /worker/v1/builds/{build}/events                       worker -      -        409
GET    /worker/v1/builds/{build}/source                       worker -      -        409
GET    /worker/v1/builds/{build}/payload                      worker -      -        409
GET    /worker/v1/builds/{build}/secrets                      worker -      -        409
GET    /worker/v1/builds/{build}/logins                       worker -      -        409
POST   /worker/v1/builds/{build}:identityToken                worker -      -        400
POST   /worker/v1/builds/{build}:attest                       worker -      -        400

GET    /builds                                                page  read    project+ 200
GET    /builds/{project}/{build}                              page  read    project+ 200
GET    /builds/{project}/{build}/log                          page  read    project+ 200
GET    /builds/{project}/{build}/artifacts/{number}           page  read    project+ 404
POST   /builds/{project}/{build}/{action=cancel}              form  read,submit  project 404
POST   /builds/{project}/{build}/{action=retry}               form  read,submit  project 404
POST   /builds/{project}/{build}/{action=approve}             form  read,approve project 404
POST   /builds/{project}/{build}/{action=reject}              form  read,approve project 404
GET    /triggers                                              page  read    project+ 200
GET    /triggers/{project}/{trigger}                          page  read    project+ 200
GET    /triggers/{project}/{trigger}/export                   page  read    project+ 200
GET    /triggers/{project}/-/new                              page  admin   project  200
POST   /triggers/{project}/-/new                              form  admin   project  400
GET    /triggers/{project}/{trigger}/edit                     page  admin   project  200
POST   /triggers/{project}/{trigger}/edit                     form  admin   project  404
POST   /triggers/{project}/{trigger}/settings                 form  admin   project  404
POST   /triggers/{project}/{trigger}/delete                   form  admin   project  404
POST   /triggers/{project}/{trigger}/{action=run}             form  read,submit project 404
POST   /triggers/{project}/{trigger}/{action=enable}          form  admin   project  404
POST   /triggers/{project}/{trigger}/{action=disable}         form  admin   project  404
GET    /deployments                                           page  read    project+ 200
GET    /trends                                                page  read    project+ 200
GET    /deliveries                                            page  read    server   200
GET    /deliveries/{delivery}                                 page  read    server   200
POST   /deliveries/{delivery}/replay                          form  admin   server   303
GET    /outbox                                                page  read    project  200
POST   /outbox/{project}/{message}/{action=retry}             form  admin   project  303
POST   /outbox/{project}/{message}/{action=drop}              form  admin   project  303
GET    /system                                                page  admin   server   200
"""  # noqa: E501

MINE, OTHER, PUBLIC = "p", "q", "open"
OF_A_PROJECT = ("project", "object", "hidden")
REFUSED_KINDS = ("GET", "POST", "PATCH", "DELETE")
MISSING = "00000000-0000-0000-0000-000000000000"


class Row(NamedTuple):
    """One line of the table, of one method."""

    method: str
    path: str
    door: str
    scopes: tuple[str, ...]
    where: str
    public: bool
    code: int

    @property
    def changes(self) -> bool:
        return self.method not in ("GET", "HEAD")

    @property
    def template(self) -> str:
        """The path as the application knows it."""
        return re.sub(r"{(\w+)=\w+}", r"{\1}", self.path)


def rows() -> list[Row]:
    found = []
    for line in filter(None, TABLE.splitlines()):
        methods, path, door, scopes, where, code = line.split()
        for method in REFUSED_KINDS if methods == "*" else (methods,):
            needed = () if scopes == "-" else tuple(scopes.split(","))
            at, public = where.rstrip("+"), where.endswith("+")
            found.append(Row(method, path, door, needed, at, public, int(code)))
    return found


ROWS = rows()


class Caller(NamedTuple):
    """Somebody who asks: a token, and the session of a browser that signed in with it."""

    name: str
    scopes: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    token: str = ""
    session: str = ""
    csrf: str = ""

    def may(self, row: Row) -> bool:
        if row.where == "server" and self.projects:
            return False
        if (
            row.where in ("project", "object", "hidden")
            and self.projects
            and MINE not in self.projects
        ):
            return False
        return all(scope in self.scopes or "admin" in self.scopes for scope in row.scopes)


SCOPES = (("read",), ("submit",), ("approve",), ("admin",), ("read", "submit"), ("read", "approve"))
HOLDERS = [
    *(("-".join((*scopes, project)), scopes, (project,)) for scopes in SCOPES for project in "pq"),
    *(("-".join((*scopes, "all")), scopes, ()) for scopes in (("read",), ("submit",), ("admin",))),
]
NAMES = [name for name, _, _ in HOLDERS]
STRANGERS = ("nobody", "wrong", "revoked", "expired", "worker")


class Place:
    """A server with one of everything in project p, and all callers."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.callers = {name: self._holder(*given) for name, *given in HOLDERS}
        boss = {"Authorization": f"Bearer {self.callers['admin-all'].token}"}
        self.boss = httpx.Client(base_url=server.url, headers=boss, timeout=30)
        self.callers |= self._strangers()
        self.values = self._things()
        self.client = httpx.Client(base_url=server.url, timeout=30)

    def close(self) -> None:
        self.boss.close()
        self.client.close()

    def _holder(self, scopes: tuple[str, ...], projects: tuple[str, ...]) -> Caller:
        name = "-".join((*scopes, *(projects or ("all",))))
        token = self.server.token(name, *scopes, projects=projects)
        sessions = Sessions(self.server.context)
        session = sessions.begin(name)
        return Caller(name, scopes, projects, token, session, sessions.form_value(session))

    def _strangers(self) -> dict[str, Caller]:
        store = self.server.store
        revoked = self._holder(("admin",), ("gone",))
        store.tokens.revoke(revoked.name, now=now())
        sessions = Sessions(self.server.context)
        over = now() - timedelta(seconds=1)
        store.sessions.create(
            Session(
                hash_hex=hash_of("expired"), token_name="admin-all", expires_at=over, ends_at=over
            ),
            now=over - timedelta(days=1),
        )
        return {
            "nobody": Caller("nobody"),
            "worker": Caller("worker", token=self.server.token("worker", "worker")),
            "wrong": Caller("wrong", token="brt_wrong", session="wrong"),
            "revoked": revoked._replace(name="revoked"),
            "expired": Caller("expired", session="expired", csrf=sessions.form_value("expired")),
        }

    def _things(self) -> dict[str, str]:
        server, store = self.server, self.server.store
        made = self.boss.post(f"/v1/projects/{MINE}/builds", json={"steps": [{"name": "b"}]})
        build = made.json()["metadata"]["build"]["id"]
        claimed = store.queue.claim("tests", now=now(), lease_s=600, limit=9)
        assert claimed is not None
        stored, lease = claimed
        store.queue.record_plan(lease, b"{}")
        store_attestations(log_folder(server.context.data_folder, build), [b"{}"])
        log = LogFileSink(log_folder(server.context.data_folder, build))
        log.write(LogChunk(b"hello\n", 0, now()))
        log.close()
        deployment = recorded(
            Deployment(target="run://p/r/web"),
            project_id=MINE,
            build_id=build,
            step=0,
            step_id="",
            time=now(),
        )
        store.queue.record_deployments(lease, [deployment])
        store.queue.record(lease, {**stored.document, "status": "SUCCESS"})
        trigger = {
            "name": "t",
            "build": {"steps": [{"name": "b"}]},
            "cron": {"schedule": "0 0 1 1 *"},
        }
        made = self.boss.post(f"/v1/projects/{MINE}/triggers", json=trigger)
        notifier = {
            "apiVersion": "buildrunner/v1",
            "kind": "HTTPNotifier",
            "metadata": {"name": "n"},
            "spec": {"notification": {"delivery": {"url": "https://example.com/"}}},
        }
        path = f"/buildrunner/v1/projects/{MINE}/notifiers/n"
        assert self.boss.put(path, json=notifier).status_code == 200
        message = NewMessage(
            key="k", lane="l", kind="http", project_id=MINE, build_id=build, target="t", message={}
        )
        delivery = NewDelivery(hook="github", delivery_id="d", headers={}, body=b"{}")
        ((kept, _),) = store.deliveries.add([delivery], now=now())
        operation = base64.b64encode(build.encode()).decode()
        return {
            "project": MINE,
            "location": "global",
            "build": build,
            "trigger": made.json()["id"],
            "notifier": "n",
            "deployment": deployment.id,
            "message": str(store.outbox.put(message, now=now()).id),
            "delivery": str(kept.number),
            "operation": operation,
            "operation:path": f"build/{MINE}/{operation}",
            "pool": "none",
            "rest:path": "x/y",
            "folder:path": "f",
            "bucket": "buildrunner-logs",
            "forge": "github",
            "name": "nobody",
            "number": "0",
            "sha256": "nonsense",
            "version": "x",
        }

    def path(self, row: Row, *, missing: bool = False, **others: str) -> str:
        """The path of a row, of what there is in project p, or of what does not exist."""
        values = {**self.values, **others}
        if row.path.startswith(("/static/", "/docs/assets/")):
            values["name"] = "style.css" if "static" in row.path else "swagger-ui.css"
        if missing:
            operation = base64.b64encode(MISSING.encode()).decode()
            values |= dict.fromkeys(("build", "trigger", "notifier"), MISSING)
            values |= {"message": "999999", "delivery": "999999", "operation": operation}
            values["operation:path"] = f"build/{values['project']}/{operation}"
        path = re.sub(r"{\w+=(\w+)}", r"\1", row.path)
        path = re.sub(r"{([\w:]+)}", lambda match: values[match[1]], path)
        if row.where == "project" and "{project}" not in row.path:
            path += f"?project={values['project']}"
        if path.endswith("/log/search"):
            path += "?q=hello"
        if path.startswith("/worker/"):
            path += "?worker=w&fence=1&incarnation=i&offset=0&wait=0"
        return path

    def ask(self, row: Row, path: str, caller: Caller, *, how: str, **headers: str) -> int:
        """Send a request as a caller does, and return the status of its answer.

        Args:
            row: says which method.
            path: the path.
            caller: who asks.
            how: ``token``; ``session``, also with the value of its forms; ``no value``: without.
            **headers: more of them.
        """
        given: dict[str, Any] = {"headers": dict(headers)}
        if how == "token" and caller.token:
            given["headers"]["Authorization"] = f"Bearer {caller.token}"
        if how != "token" and caller.session:
            given["headers"]["Cookie"] = f"buildrunner_session={caller.session}"
        if row.changes:
            if row.door == "form" or row.path == "/login":
                given["data"] = {"csrf": caller.csrf if how == "session" else ""}
            elif row.method != "DELETE":
                given["json"] = {}
        with self.client.stream(row.method, path, **given) as answer:
            if answer.headers.get("location", "").startswith("/login?"):
                return 303_000  # to sign in, which is a refusal
            return answer.status_code


LOGIN = 303_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("server")
    with api_server(folder, auth=True, public_projects=(PUBLIC,)) as server:
        found = Place(server)
        yield found
        found.close()


def state_of(place: Place) -> Any:
    """What no refused caller may have changed."""
    store = place.server.store
    return (
        [(build.id, build.status) for build in store.builds.page(MINE).builds],
        store.triggers.page(MINE, page_size=10),
        store.triggers.settings(MINE, place.values["trigger"]),
        store.notifiers.of_project(MINE),
        [(one.id, one.state, one.next_try) for one in store.outbox.page(project_id=MINE)],
        [(one.name, one.revoke_time) for one in store.tokens.all()],
        [(one.number, one.replays) for one in store.deliveries.page() if one.status != "refused"],
    )


def by_name(row: Row) -> str:
    return f"{row.method} {row.path}"


def test_every_route_is_in_the_table_and_no_other(place: Place) -> None:
    app = place.server.app
    known = {
        (method, route.path)
        for routes in (app.routes, *(router.routes for router in app.state.routers))
        for route in routes
        if getattr(route, "path", None)
        for method in route.methods
    }
    listed = {(row.method, row.template) for row in ROWS}
    newer = {
        (method, path.replace("{project}/", "{project}/locations/{location}/", 1))
        for method, path in listed
        if path.startswith("/v1/")
    }
    assert listed <= known
    assert known - listed - newer == set()


def refusal(row: Row, caller: Caller, how: str) -> int:
    """What a caller who may not pass is answered."""
    bad_token = how == "token" and caller.name in ("wrong", "revoked", "worker")
    if row.door == "worker":
        return 401 if how == "token" and caller.token else 403
    if row.where == "object" and not bad_token and asks_for_object(row, caller, how):
        return 404
    if row.door == "badge" or (row.where == "hidden" and not bad_token):
        return 404
    if row.door in ("page", "form"):
        return 403 if caller.name not in STRANGERS and how != "token" else LOGIN
    return 401 if bad_token else 403


def asks_for_object(row: Row, caller: Caller, how: str) -> bool:
    """Whether a caller may ask for objects of some project, though not of that one."""
    if caller.name in STRANGERS:
        return row.public  # some project is public
    return (how == "token" or not row.changes) and caller.may(row._replace(where="any"))


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_each_caller_is_answered_as_the_table_says(place: Place, row: Row) -> None:
    before = state_of(place)
    wrong = []
    for caller in place.callers.values():
        known = caller.name not in STRANGERS
        for how in ("token", "session"):
            # A session changes nothing but by forms, and a token opens no pages.
            fits = how == "session" if row.door in ("page", "form") else True
            if row.door in ("api", "badge") and how == "session":
                fits = not row.changes
            passes = row.door in ("open", "proof") or (known and fits and caller.may(row))
            if row.door == "worker":
                passes = caller.name == "worker" and how == "token"
            if row.where == "any" and row.public and not (how == "token" and caller.token):
                passes = True  # some project is public: everybody is somebody
            path = place.path(row, missing=row.changes and passes)
            if row.path == "/logout" and passes:
                continue  # it would end the session; see test_sessions.py
            expected = row.code if passes else refusal(row, caller, how)
            got = place.ask(row, path, caller, how=how)
            if got != expected:
                wrong.append(f"{caller.name} by {how}: {got}, not {expected}")
    assert wrong == []
    assert state_of(place) == before


REACHED_BY_STRANGERS = {
    "the sign-in page": {"/login", "/logout", "/"},
    "what every browser needs": {"/static/{version}/{name}"},
    "the description of the API": {"/openapi.json", "/docs", "/docs/assets/{name}"},
    "whether the server is well": {"/healthz", "/readyz"},
    "public keys": {
        "/buildrunner/v1/provenance-key",
        "/.well-known/openid-configuration",
        "/.well-known/jwks.json",
    },
    "webhooks": {
        "/hooks/{forge}",
        "/hooks/{forge}/",
        "/hooks/{forge}/{name}",
        "/v1/projects/{project}/triggers/{trigger}:webhook",
    },
}


def test_a_stranger_reaches_what_the_page_says() -> None:
    """Beside that, the table has what is public of a public project, and refuses all others."""
    without_token = {row.path for row in ROWS if not row.scopes and row.door != "worker"}
    without_token -= {"/buildrunner/v1/whoami"}  # tells of a token, or of a public project
    assert without_token == set().union(*REACHED_BY_STRANGERS.values())


OBJECTS = ("{build}", "{trigger}", "{notifier}", "{message}", "{operation}")
OF_OBJECTS = [
    row for row in ROWS if row.where == "project" and any(name in row.path for name in OBJECTS)
]
OF_PROJECTS = [
    row
    for row in ROWS
    if row.door in ("api", "page") and row.where in ("project", "object", "hidden")
]
OF_TWO_FORMS = [
    row for row in ROWS if row.path.startswith("/v1/projects/") and "/locations/" not in row.path
]


@pytest.mark.parametrize("row", OF_OBJECTS, ids=by_name)
def test_what_a_project_has_is_not_found_through_another(place: Place, row: Row) -> None:
    """The admin of project q asks for things of project p by paths of project q."""
    before = state_of(place)
    how = "session" if row.door in ("page", "form") else "token"
    got = place.ask(row, place.path(row, project=OTHER), place.callers["admin-q"], how=how)
    told = 303 if row.path.startswith("/outbox/") else 404
    if row.method == "PUT" and "/notifiers/" in row.path:
        told = 400  # it would make one of that name in its own project
    assert got == (405 if row.code == 405 else told)
    assert state_of(place) == before


@pytest.mark.parametrize("row", OF_PROJECTS, ids=by_name)
def test_of_a_public_project_anybody_reads_what_is_public(place: Place, row: Row) -> None:
    path = place.path(row, missing=True, project=PUBLIC)
    got = place.ask(row, path, place.callers["nobody"], how="token")
    if row.public and not row.changes:
        assert got not in (401, 403, LOGIN)
    else:
        assert got == (LOGIN if row.door == "page" else 403)


@pytest.mark.parametrize("row", [row for row in ROWS if row.changes], ids=by_name)
def test_a_browser_is_not_led_to_change_anything_by_another_site(place: Place, row: Row) -> None:
    """The browser of an admin, whose cookie goes along, also where the form's value was stolen."""
    before = state_of(place)
    boss = place.callers["admin-all"]
    for headers in (
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example.com"},
        {"Origin": "https://evil.example.com"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        got = place.ask(row, place.path(row), boss, how="session", **headers)
        assert got == (401 if row.code == 401 else 403)
    if row.door == "form":
        assert place.ask(row, place.path(row), boss, how="no value") == 403
    assert state_of(place) == before


@pytest.mark.parametrize("row", OF_TWO_FORMS, ids=by_name)
def test_a_form_of_locations_has_the_same_door(place: Place, row: Row) -> None:
    """The newer form of a path, ``/projects/P/locations/L/...``, is the same route in another."""
    path = row.path.replace("{project}/", "{project}/locations/{location}/", 1)
    newer = row._replace(path=path)
    if row.door == "proof":
        expected = {"admin-p": row.code, "nobody": row.code}
    else:
        expected = {"nobody": 403, "wrong": 401, "admin-q": 403, "admin-p": row.code}
    for name, code in expected.items():
        missing = row.changes and name == "admin-p"
        got = place.ask(newer, place.path(newer, missing=missing), place.callers[name], how="token")
        assert (name, got) == (name, code)
