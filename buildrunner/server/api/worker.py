"""Routes of the worker protocol: how workers on other hosts claim builds and report on them.

Every route takes a token of a worker, and no other. Routes of a build take the fence of the
worker's lease (``fence``). All but ``claim`` and ``begin`` need a build that the worker has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.responses import FileResponse, StreamingResponse

from buildrunner.engine.outcome import BuildOutcome
from buildrunner.errors import LeaseLost
from buildrunner.logs.files.copies import OffsetMismatch, events_piece, log_piece
from buildrunner.server.context import MIB, ServerContext
from buildrunner.server.events.reading import payload_of_build
from buildrunner.server.http.access import WorkerAccess
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.bodies import (
    CREDENTIALS_AT_ONCE,
    MAX_PAYLOAD_VALUES,
    MAX_VALUES,
    REPORTS_AT_ONCE,
    CallerSlots,
    as_mapping,
    json_text,
    parsed,
    raw_body,
    slot_of,
)
from buildrunner.server.http.changes import Changes
from buildrunner.server.http.errors import ApiError, invalid_argument
from buildrunner.server.http.peers import Peers
from buildrunner.server.openapi import BYTES, documented
from buildrunner.server.services.build_credentials import WorkerCredentials
from buildrunner.server.services.remote_builds import RemoteBuilds
from buildrunner.store.model.builds import Lease
from buildrunner.store.model.remote import ClaimRequest, WorkerDeployments, WorkerIdentity

_LONGEST_WAIT_S = 60.0
_MOST_PIECE_BYTES = 16 * MIB
_MOST_PLAN_BYTES = 16 * MIB
_LEASE_THREADS = 8
_CREDENTIAL_THREADS = 8

Offset = Annotated[int, Query(ge=0, le=1 << 60)]

Result = TypeVar("Result")


def router(context: ServerContext, changes: Changes, peers: Peers) -> APIRouter:
    """Return the routes.

    Args:
        context: the server's context.
        changes: wakes requests that wait for a change of the queue.
        peers: the other servers.
    """
    routes = APIRouter(prefix="/worker/v1", tags=["workers"])
    builds = RemoteBuilds(context, peers)
    # Other callers can take all common threads for a while, and a lease that is not renewed ends.
    threads = CapacityLimiter(_LEASE_THREADS)
    worker = Depends(WorkerAccess(context, threads))
    for one in (
        *_routes_of_leases(context, builds, changes, worker, threads),
        *_routes_that_report(context, builds, worker),
        *_data_routes(context, builds, worker),
        *_routes_of_credentials(context, builds, worker),
    ):
        routes.add_api_route(
            one.path,
            one.route,
            methods=[one.method],
            dependencies=one.needs,
            openapi_extra=one.documentation,
        )
    return routes


class _Route(NamedTuple):
    method: str
    path: str
    route: Callable[..., Any]
    documentation: dict[str, Any] | None = None
    needs: Sequence[Any] = ()


def _routes_of_leases(
    context: ServerContext,
    builds: RemoteBuilds,
    changes: Changes,
    worker: Any,
    threads: CapacityLimiter,
) -> list[_Route]:
    """Return the routes that claim and begin builds, and renew leases, in threads of their own."""
    small = Depends(raw_body(context, context.settings.max_body_bytes))
    in_own_thread = partial(_in_own_thread, threads)

    async def claim(
        requested: Request, worker: WorkerIdentity = worker, body: bytes = small
    ) -> Response:
        """Claim a build; 204 if there is none for the worker within ``waitS`` seconds."""
        request = _decoded(body, ClaimRequest)
        look = partial(in_own_thread, builds.claim, worker, request)
        stored = await changes.wait_for(
            look,
            min(request.wait_s, _LONGEST_WAIT_S),
            line=(worker, request.build_id, request.isolation),
            caller=_caller(worker),
            is_gone=requested.is_disconnected,
        )
        return Response(status_code=204) if stored is None else json_response(stored)

    async def held(
        name: Annotated[str, Query(alias="worker")], worker: WorkerIdentity = worker
    ) -> Response:
        """Return the builds that a worker holds."""
        return json_response({"builds": await in_own_thread(builds.held, worker, name)})

    async def get(build: str, worker: WorkerIdentity = worker) -> Response:
        """Return a build that a worker with this token holds."""
        return json_response(await in_own_thread(builds.find, worker, build))

    async def take_over(
        build: str,
        fence: int,
        name: Annotated[str, Query(alias="worker")],
        worker: WorkerIdentity = worker,
    ) -> Response:
        """Give a worker a new lease of a build that it holds and whose process died."""
        lease = Lease(build, fence)
        return json_response(await in_own_thread(builds.take_over, worker, name, lease))

    async def begin(
        build: str, fence: int, incarnation: str, worker: WorkerIdentity = worker
    ) -> Response:
        """Begin a build; 409 if another process has begun it under the same fence."""
        if not incarnation:
            raise invalid_argument("incarnation names the process", field="incarnation")
        lease = Lease(build, fence)
        return json_response(await in_own_thread(builds.begin, worker, lease, incarnation))

    async def renew(build: str, fence: int, worker: WorkerIdentity = worker) -> Response:
        """Renew the lease; the answer has the reason if the build is to be cancelled."""
        wanted = await in_own_thread(builds.renew, worker, Lease(build, fence))
        return json_response({"cancel": wanted})

    async def signals(
        build: str,
        fence: int,
        wait: Annotated[float, Query(ge=0, le=_LONGEST_WAIT_S)] = 25.0,
        worker: WorkerIdentity = worker,
    ) -> Response:
        """Answer as soon as the build is to be cancelled, else after ``wait`` seconds."""
        lease = Lease(build, fence)

        async def look() -> bool | None:
            wanted = await in_own_thread(builds.wants_cancel, worker, lease)
            return wanted or None

        found = await changes.wait_while_undisturbed(lease, look, wait, caller=_caller(worker))
        return json_response({"cancel": bool(found)})

    return [
        _Route("POST", "/builds:claim", claim, documented(body="WorkerClaim")),
        _Route("GET", "/builds", held),
        _Route("GET", "/builds/{build}", get),
        _Route("POST", "/builds/{build}:takeOver", take_over, documented(body="Empty")),
        _Route("POST", "/builds/{build}:begin", begin, documented(body="Empty")),
        _Route("POST", "/builds/{build}:renew", renew, documented(body="Empty")),
        _Route("GET", "/builds/{build}/signals", signals),
    ]


def _routes_that_report(context: ServerContext, builds: RemoteBuilds, worker: Any) -> list[_Route]:
    """Return the routes that store a worker's reports on a build."""
    small = Depends(json_text(context, context.settings.max_body_bytes, MAX_VALUES))
    piece = Depends(raw_body(context, _MOST_PIECE_BYTES))
    plan = Depends(json_text(context, _MOST_PLAN_BYTES, MAX_PAYLOAD_VALUES))
    raw = documented(body="Bytes", media=BYTES)
    # Counted per token, even if many workers share it: only abuse makes such requests long.
    few = (worker, Depends(slot_of(CallerSlots("reports", REPORTS_AT_ONCE))))

    def document(
        build: str, fence: int, worker: WorkerIdentity = worker, body: bytes = small
    ) -> Response:
        """Store status, times, results and states of steps; a final status ends the lease."""
        changed = as_mapping(parsed(body))
        _of_lease(builds.record, worker, Lease(build, fence), changed)
        return Response(status_code=204)

    def store_log(
        build: str, fence: int, worker: WorkerIdentity = worker, body: bytes = small
    ) -> Response:
        """Store the finished log in the bucket of the Build; return the Build, with warnings."""
        finished = as_mapping(parsed(body))
        return json_response(_of_lease(builds.store_log, worker, Lease(build, fence), finished))

    def put_plan(
        build: str, fence: int, worker: WorkerIdentity = worker, body: bytes = plan
    ) -> Response:
        """Store the compiled plan."""
        _of_lease(builds.record_plan, worker, Lease(build, fence), body)
        return Response(status_code=204)

    def deployments(
        build: str, fence: int, worker: WorkerIdentity = worker, body: bytes = small
    ) -> Response:
        """Record the deployments that steps of the build made."""
        made = _decoded(body, WorkerDeployments)
        _of_lease(builds.record_deployments, worker, Lease(build, fence), made)
        return Response(status_code=204)

    def put_log(
        build: str,
        fence: int,
        offset: Offset,
        worker: WorkerIdentity = worker,
        body: bytes = piece,
    ) -> Response:
        """Append a piece of the log; 409 with the right offset if it does not continue it."""
        lease = Lease(build, fence)
        return json_response({"offset": _of_lease(builds.append_log, worker, lease, offset, body)})

    def put_events(
        build: str,
        fence: int,
        offset: Offset,
        worker: WorkerIdentity = worker,
        body: bytes = piece,
    ) -> Response:
        """Append a piece of the events; 409 as for the log."""
        lease = Lease(build, fence)
        return json_response(
            {"offset": _of_lease(builds.append_events, worker, lease, offset, body)}
        )

    def put_workspace(
        build: str,
        fence: int,
        offset: Offset,
        worker: WorkerIdentity = worker,
        body: bytes = piece,
        *,
        last: bool = False,
    ) -> Response:
        """Append a piece of the workspace that the build leaves; keep it after the ``last`` one."""
        keep = partial(builds.keep_workspace, last=last)
        return json_response({"offset": _of_lease(keep, worker, Lease(build, fence), offset, body)})

    return [
        _Route("PUT", "/builds/{build}/document", document, documented(body="Build")),
        _Route("POST", "/builds/{build}:storeLog", store_log, documented(body="Build"), few),
        _Route("PUT", "/builds/{build}/plan", put_plan, documented(body="Payload")),
        _Route("PUT", "/builds/{build}/deployments", deployments, documented(body="Payload")),
        _Route("PUT", "/builds/{build}/log", put_log, raw, few),
        _Route("PUT", "/builds/{build}/events", put_events, raw, few),
        _Route("PUT", "/builds/{build}/workspace", put_workspace, raw, few),
    ]


def _data_routes(context: ServerContext, builds: RemoteBuilds, worker: Any) -> list[_Route]:
    """Return the routes with the data that a worker needs to begin a build."""

    def get_log(
        build: str, fence: int, offset: Offset, worker: WorkerIdentity = worker
    ) -> Response:
        """Return a piece of the log that an earlier worker of the build has written."""
        folder = _of_lease(builds.log_folder, worker, Lease(build, fence))
        return Response(log_piece(folder, offset)[0], media_type=BYTES)

    def get_events(
        build: str, fence: int, offset: Offset, worker: WorkerIdentity = worker
    ) -> Response:
        """Return a piece of the events that an earlier worker of the build has written."""
        folder = _of_lease(builds.log_folder, worker, Lease(build, fence))
        return Response(events_piece(folder, offset)[0], media_type=BYTES)

    def source(build: str, fence: int, worker: WorkerIdentity = worker) -> Response:
        """Return the uploaded archive that is the source of the build; takes byte ranges."""
        name = _of_lease(builds.upload, worker, Lease(build, fence))
        path = context.uploads.path_of(name)
        if not path:
            raise ApiError(404, f"the uploaded source {name} is not here any more")
        return FileResponse(path, media_type=BYTES)

    def workspace(build: str, fence: int, worker: WorkerIdentity = worker) -> Response:
        """Return the kept workspace with which the build begins."""
        found = _of_lease(builds.kept_workspace, worker, Lease(build, fence))
        return StreamingResponse(found, media_type=BYTES)

    def payload(build: str, fence: int, worker: WorkerIdentity = worker) -> Response:
        """Return the payload of the event that fired the build's trigger."""
        stored = _of_lease(builds.begun, worker, Lease(build, fence))
        return json_response({"payload": payload_of_build(context.store.deliveries, stored)})

    return [
        _Route("GET", "/builds/{build}/log", get_log),
        _Route("GET", "/builds/{build}/events", get_events),
        _Route("GET", "/builds/{build}/source", source),
        _Route("GET", "/builds/{build}/workspace", workspace),
        _Route("GET", "/builds/{build}/payload", payload),
    ]


def _routes_of_credentials(
    context: ServerContext, builds: RemoteBuilds, worker: Any
) -> list[_Route]:
    """Return the routes that give a build its secrets, logins, identity tokens and signatures."""
    published = Depends(json_text(context, context.settings.max_body_bytes, MAX_VALUES))
    few = (worker, Depends(slot_of(CallerSlots("requests for credentials", CREDENTIALS_AT_ONCE))))
    # A key service or Sigstore may take minutes, and other requests need the common threads.
    in_own_thread = partial(_in_own_thread, CapacityLimiter(_CREDENTIAL_THREADS))
    credentials = WorkerCredentials(context, builds)

    def identity_token(
        build: str, fence: int, audience: str, worker: WorkerIdentity = worker
    ) -> Response:
        """Return an identity token of the build, or the reason why it gets none."""
        lease = Lease(build, fence)
        return json_response(_of_lease(credentials.identity_token, worker, lease, audience))

    async def logins(build: str, fence: int, worker: WorkerIdentity = worker) -> Response:
        """Return the files with the project's logins for registries and packages of the plan."""
        files = await in_own_thread(credentials.logins, worker, Lease(build, fence))
        return json_response({"files": files})

    async def attest(
        build: str, fence: int, worker: WorkerIdentity = worker, body: bytes = published
    ) -> Response:
        """Sign, store and return the provenance of the artifacts that the build published."""
        outcome = _decoded(body, BuildOutcome)
        signed = await in_own_thread(credentials.attest, worker, Lease(build, fence), outcome)
        return json_response(signed)

    async def secrets(build: str, fence: int, worker: WorkerIdentity = worker) -> Response:
        """Return the secrets that the plan of the build names."""
        found = await in_own_thread(builds.secrets, worker, Lease(build, fence))
        return json_response({"secrets": found})

    return [
        _Route("GET", "/builds/{build}/secrets", secrets, None, few),
        _Route("GET", "/builds/{build}/logins", logins, None, few),
        _Route("POST", "/builds/{build}:identityToken", identity_token, documented(body="Empty")),
        _Route("POST", "/builds/{build}:attest", attest, documented(body="Payload"), few),
    ]


async def _in_own_thread(
    threads: CapacityLimiter, operation: Callable[..., Result], *args: Any
) -> Result:
    return await to_thread.run_sync(partial(_of_lease, operation, *args), limiter=threads)


def _of_lease(operation: Callable[..., Result], *args: Any) -> Result:
    """Call an operation, and convert its errors to answers that a worker can distinguish.

    Raises:
        ApiError: the lease is lost, or a piece does not continue the copy.
    """
    try:
        return operation(*args)
    except LeaseLost as error:
        raise ApiError(409, str(error), details=[{"reason": "LEASE_LOST"}]) from error
    except OffsetMismatch as error:
        raise ApiError(409, str(error), details=[{"offset": error.size}]) from error


def _caller(worker: WorkerIdentity) -> str:
    """Return the caller whose waiting requests are counted: a token, or the Pod of a build."""
    return f"{worker.name} for {worker.build_id}" if worker.build_id else worker.name


def _decoded(body: bytes, kind: type[Result]) -> Result:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid_argument(f"the body is not what this route takes: {error}") from None
