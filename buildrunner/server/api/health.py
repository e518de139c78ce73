"""Health, readiness and metrics of the server."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from buildrunner.errors import StoreError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access
from buildrunner.server.http.answers import json_response
from buildrunner.server.metrics import CONTENT_TYPE


def router(context: ServerContext) -> APIRouter:
    """Return the routes for monitoring. Health needs no token; metrics need ``read``."""
    routes = APIRouter(tags=["monitoring"])
    access = Access(context)

    async def healthz() -> Response:
        """Answer 200 while the process lives."""
        # In the event loop, so that the route answers while every thread waits for a database.
        return json_response({"status": "ok"})

    def readyz() -> Response:
        """Answer 200 if new builds can start, or 503 with the reason: database, worker, disk."""
        problems = _problems(context)
        ready = "ready" if not problems else "not ready"
        return json_response({"status": ready, "problems": problems}, 503 if problems else 200)

    def metrics() -> Response:
        """Return metrics for Prometheus."""
        return Response(context.metrics.text(), media_type=CONTENT_TYPE)

    routes.add_api_route("/healthz", healthz, methods=["GET"])
    routes.add_api_route("/readyz", readyz, methods=["GET"])
    may_read = [Depends(access.may("read", known=True))]
    routes.add_api_route("/metrics", metrics, methods=["GET"], dependencies=may_read)
    return routes


def _problems(context: ServerContext) -> list[str]:
    problems = []
    try:
        context.store.ping()
    except StoreError as error:
        problems.append(f"database: {error}")
    if not context.worker_alive():
        problems.append("worker: it does not look at the queue")
    if disk := context.disk_problem():
        problems.append(f"disk: {disk}")
    if held := context.worker_holds_back():
        problems.append(f"worker: {held}")
    return problems
