"""The web application: every route, around one context."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import FastAPI
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from buildrunner import __version__
from buildrunner.server import (
    openapi,
    routes_access,
    routes_badges,
    routes_bindings,
    routes_builds,
    routes_deliveries,
    routes_extras,
    routes_health,
    routes_hooks,
    routes_logs,
    routes_notifiers,
    routes_operations,
    routes_outbox,
    routes_refused,
    routes_schedules,
    routes_sources,
    routes_triggers,
    routes_webhooks,
)
from buildrunner.server.build_watch import BuildWatches
from buildrunner.server.errors import add_error_handlers
from buildrunner.server.pages import (
    artifact_list,
    build_actions,
    build_page,
    builds_page,
    deliveries_page,
    log_page,
    outbox_page,
    system_page,
    trends_page,
    trigger_edit_page,
    triggers_page,
)
from buildrunner.server.pages import routes as pages
from buildrunner.server.same_site import SameSite
from buildrunner.server.secure_headers import SecureHeaders
from buildrunner.server.unverified_bodies import UnverifiedBodies
from buildrunner.server.watch import Watch
from buildrunner.store.outbox_store import GIVEN_UP, WAITING

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext


_MODULES = (
    routes_builds,
    routes_operations,
    routes_triggers,
    routes_schedules,
    routes_webhooks,
    routes_hooks,
    routes_bindings,
    routes_deliveries,
    routes_notifiers,
    routes_outbox,
    routes_badges,
    routes_refused,
    routes_extras,
    routes_sources,
    routes_access,
    routes_health,
)


def create_app(context: ServerContext) -> FastAPI:
    """The application that serves Cloud Build's REST API, and our own routes beside it.

    Args:
        context: what it works with; not closed.

    Returns:
        The application. Whoever stops it calls ``app.state.build_watches.close()`` in its event
        loop, which ends the streams of logs.
    """
    app = FastAPI(
        title="buildrunner",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    watches = BuildWatches(context)
    app.state.build_watches = watches
    app.state.unverified_bodies = UnverifiedBodies(context)
    routers = [
        *(module.router(context) for module in _MODULES),
        pages.router(context),
        builds_page.router(context),
        build_page.router(context),
        artifact_list.router(context),
        build_actions.router(context),
        trigger_edit_page.router(context),
        triggers_page.router(context),
        deliveries_page.router(context),
        outbox_page.router(context),
        trends_page.router(context),
        system_page.router(context),
        log_page.router(context),
        # Last: it has a route for whatever bucket a build names.
        routes_logs.router(context, watches),
    ]
    app.state.routers = routers
    openapi.add_documentation(app, routers)
    for router in routers:
        app.include_router(router)
    add_error_handlers(app)
    context.metrics.watch_queue(context.store.queue_length, lambda: len(context.store.claimed()))
    store = context.store
    context.metrics.watch_outbox(
        lambda: store.count_messages(WAITING), lambda: store.count_messages(GIVEN_UP)
    )
    if not context.settings.auth:
        public_host = urlsplit(context.settings.public_url).hostname or ""
        app.add_middleware(SameSite, public_host=public_host)
    app.add_middleware(Watch, context=context)
    app.add_middleware(SecureHeaders, https=context.settings.https)
    if context.settings.trusted_proxies:
        trusted = list(context.settings.trusted_proxies)
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=trusted)
    return app
