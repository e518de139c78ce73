"""Access to the routes of the worker protocol: tokens of workers, and no others."""

from __future__ import annotations

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import permission_denied, unauthenticated
from buildrunner.server.http.tokens import WORKER, Caller, hash_of, worker_of
from buildrunner.store.model.remote import WorkerIdentity


class WorkerAccess:
    """The dependency of the routes of the worker protocol: returns the worker of the token.

    Args:
        context: the server's. Its ``worker_tokens`` verify further kinds of tokens.

    Attributes:
        scope: of the tokens.
    """

    scope = WORKER

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def __call__(self, request: Request) -> WorkerIdentity:
        """Return who sent a request. Raises `ApiError`."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if not token or scheme.lower() != "bearer":
            raise permission_denied(
                "this route is for workers: send 'Authorization: Bearer TOKEN' "
                "(buildrunner tokens create NAME --worker makes one)"
            )
        worker = await run_in_threadpool(self._verified, token)
        if worker is None:
            raise unauthenticated("the token is no worker's, is unknown or was revoked")
        request.state.caller = Caller(worker.name, ())
        return worker

    def _verified(self, token: str) -> WorkerIdentity | None:
        for verified in self._context.worker_tokens:
            if (worker := verified(token)) is not None:
                return worker
        return worker_of(token, self._context.store.tokens.find(hash_of(token)))
