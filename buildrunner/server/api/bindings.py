"""Our own routes of hooks: what each one is bound to."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import NotFound
from buildrunner.server.api.hooks import check_hook
from buildrunner.server.context import ServerContext
from buildrunner.server.events.hook_secrets import secret_name
from buildrunner.server.events.known_triggers import forge_hooks
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.errors import ApiError
from buildrunner.server.http.requests import as_mapping, json_body
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import documented
from buildrunner.spec.writing import encode_instant
from buildrunner.triggers.hook_binding import BARE, read_binding

_PATH = "/buildrunner/v1/hooks"


def router(context: ServerContext) -> APIRouter:
    """The routes. Hooks fire triggers of all projects: they need a token that is good for all."""
    access = Access(context)
    body_of = json_body(context)
    routes = APIRouter(tags=["hooks"])

    def listing(_: Caller = Depends(access.may("read", everywhere=True))) -> Response:
        """Hooks that are bound, and those that sent something without being bound."""
        bound, heard = context.store.hooks.all(), context.store.hooks.heard()
        names = sorted({*bound, *forge_hooks(heard)})
        shown = [_shown(name, bound.get(name), heard.get(name)) for name in names]
        return json_response({"hooks": shown})

    def bind(
        request: Request,
        forge: str,
        name: str = "",
        _: Caller = Depends(access.may("admin", "hooks.bind", everywhere=True)),
        body: Any = Depends(body_of),
    ) -> Response:
        """Bind a hook: host, owners, projects; repository of git/NAME; topic of pubsub/NAME."""
        hook = check_hook(forge, name)
        note_target(request, hook)
        binding = read_binding(hook, as_mapping(body))
        document = msgspec.to_builtins(binding)
        context.store.hooks.put(hook, document)
        return json_response(_shown(hook, document))

    def unbind(
        request: Request,
        forge: str,
        name: str = "",
        _: Caller = Depends(access.may("admin", "hooks.unbind", everywhere=True)),
    ) -> Response:
        """Bind a hook to nothing: what it tells fires no trigger."""
        hook = check_hook(forge, name)
        note_target(request, hook)
        try:
            if forge == BARE:  # forgotten, its next delivery would bind it to what it names
                context.store.hooks.get(hook)
                context.store.hooks.put(hook, {})
            else:
                context.store.hooks.delete(hook)
        except NotFound as error:
            raise ApiError(404, str(error)) from error
        return json_response({})

    routes.add_api_route(_PATH, listing, methods=["GET"])
    for path in ("/{forge}", "/{forge}/{name}"):
        routes.add_api_route(
            _PATH + path, bind, methods=["PUT"], openapi_extra=documented(body="HookBinding")
        )
        routes.add_api_route(_PATH + path, unbind, methods=["DELETE"])
    return routes


def _shown(
    name: str, binding: dict[str, Any] | None, heard: datetime | None = None
) -> dict[str, Any]:
    shown = {"name": name, "bound": bool(binding), "secret": secret_name(name)}
    shown |= binding or {}
    return shown | ({"lastDelivery": encode_instant(heard)} if heard is not None else {})
