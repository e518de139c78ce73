"""The web application: every route, around one context."""

from __future__ import annotations

from collections import Counter
from urllib.parse import urlsplit

from fastapi import FastAPI
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from buildrunner import __version__
from buildrunner.server import openapi
from buildrunner.server.api import access as routes_access
from buildrunner.server.api import badges as routes_badges
from buildrunner.server.api import builds as routes_builds
from buildrunner.server.api import deliveries as routes_deliveries
from buildrunner.server.api import deployments as routes_deployments
from buildrunner.server.api import health as routes_health
from buildrunner.server.api import hooks as routes_hooks
from buildrunner.server.api import identity as routes_identity
from buildrunner.server.api import logs as routes_logs
from buildrunner.server.api import notifications as routes_notifications
from buildrunner.server.api import pools as routes_pools
from buildrunner.server.api import provenance as routes_provenance
from buildrunner.server.api import sources as routes_sources
from buildrunner.server.api import triggers as routes_triggers
from buildrunner.server.api import unsupported as routes_unsupported
from buildrunner.server.api import worker as routes_worker
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import CallerShares, SameSite, SecureHeaders
from buildrunner.server.http.bodies import (
    BADGES_AT_ONCE,
    BUILDS_AT_ONCE,
    LARGE_AT_ONCE,
    PACKS_AT_ONCE,
    READS_AT_ONCE,
    SEARCHES_AT_ONCE,
    UPLOADS_AT_ONCE,
    CallerSlots,
    UnverifiedBodies,
)
from buildrunner.server.http.changes import Changes
from buildrunner.server.http.errors import add_error_handlers
from buildrunner.server.http.log_home import LogHome, PassedOnStreams
from buildrunner.server.http.peers import Peers
from buildrunner.server.http.request_log import Watch
from buildrunner.server.logs.live import BuildWatches
from buildrunner.server.pages import deployments as deployments_page
from buildrunner.server.pages import login as login_page
from buildrunner.server.pages import outbox as outbox_page
from buildrunner.server.pages import system as system_page
from buildrunner.server.pages.builds import artifacts as artifact_list
from buildrunner.server.pages.builds import list as builds_page
from buildrunner.server.pages.builds import log as log_page
from buildrunner.server.pages.builds import page as build_page
from buildrunner.server.pages.rendering import error_page
from buildrunner.server.pages.triggers import deliveries as deliveries_page
from buildrunner.server.pages.triggers import edit as trigger_edit_page
from buildrunner.server.pages.triggers import page as triggers_page
from buildrunner.server.pages.triggers import trends as trends_page
from buildrunner.store.model.outbox import GIVEN_UP, WAITING

_ROUTERS = (
    routes_builds.router,
    routes_builds.operations_router,
    routes_triggers.router,
    routes_triggers.settings_router,
    routes_hooks.webhooks_router,
    routes_hooks.router,
    routes_deliveries.router,
    routes_notifications.notifiers_router,
    routes_notifications.outbox_router,
    routes_badges.router,
    routes_pools.router,
    routes_unsupported.router,
    routes_builds.own_router,
    routes_provenance.router,
    routes_deployments.router,
    routes_identity.router,
    routes_sources.router,
    routes_access.router,
    routes_health.router,
)


def create_app(context: ServerContext) -> FastAPI:
    """Return the application with Cloud Build's REST API and buildrunner's own routes.

    Args:
        context: the server's context; not closed.

    Returns:
        The application. To stop it, call ``app.state.build_watches.close()`` and
        ``app.state.passed_on.close()`` and ``app.state.changes.close()`` in its event loop, which
        end the streams of logs and the requests that wait for builds.
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
    app.state.changes = changes = Changes(
        context.wake,
        context.store.queue.undisturbed,
        hears_all=lambda: context.store.hears_changes,
    )
    app.state.large_bodies = CallerSlots("large requests", LARGE_AT_ONCE)
    app.state.searches = CallerSlots("searches", SEARCHES_AT_ONCE)
    app.state.badges = CallerSlots("badges", BADGES_AT_ONCE)
    app.state.uploads = CallerSlots("uploads", UPLOADS_AT_ONCE)
    app.state.packs = CallerSlots("sources", PACKS_AT_ONCE)
    app.state.checked_builds = CallerSlots("requests that check builds", BUILDS_AT_ONCE)
    app.state.reads = CallerSlots("reads of builds", READS_AT_ONCE)
    app.state.unverified_bodies = UnverifiedBodies(context)
    peers = Peers(context.store.servers, context.settings.worker)
    workers = routes_worker.router(context, changes, peers)
    routers = [
        *(router(context) for router in _ROUTERS),
        workers,
        login_page.router(context),
        builds_page.router(context),
        build_page.router(context),
        artifact_list.router(context),
        deployments_page.router(context),
        trigger_edit_page.router(context),
        triggers_page.router(context),
        deliveries_page.router(context),
        outbox_page.router(context),
        trends_page.router(context),
        system_page.router(context),
        log_page.router(context),
        # Last, since its route matches any bucket name.
        routes_logs.router(context, watches),
    ]
    app.state.routers = routers
    openapi.add_documentation(app, routers)
    # A request tries the routers in order, and most requests of a busy server are workers'.
    for router in sorted(routers, key=lambda one: one is not workers):
        app.include_router(router)
    add_error_handlers(app, error_page)
    context.metrics.watch_queue(context.store.queue.length, context.store.queue.running)
    store = context.store
    context.metrics.watch_outbox(
        lambda: store.outbox.count(WAITING), lambda: store.outbox.count(GIVEN_UP)
    )
    app.state.passed_on = PassedOnStreams()
    app.state.under_way = Counter()
    app.add_middleware(LogHome, context=context, streams=app.state.passed_on, peers=peers)
    if not context.settings.auth:
        public_host = urlsplit(context.settings.public_url).hostname or ""
        app.add_middleware(SameSite, public_host=public_host)
    # Outside of it: a request that is passed on to another server ends there, too.
    app.add_middleware(CallerShares, under_way=app.state.under_way)
    app.add_middleware(Watch, context=context)
    app.add_middleware(SecureHeaders, https=context.settings.https)
    if context.settings.trusted_proxies:
        trusted = list(context.settings.trusted_proxies)
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=trusted)
    return app
