"""Requests about triggers that several commands send to a server."""

from __future__ import annotations

import argparse

from buildrunner.cli.server.choice import chosen_server
from buildrunner.client.client import Document, ServerClient
from buildrunner.errors import UsageError


def connected(args: argparse.Namespace) -> ServerClient:
    """A client of the server that the flags choose.

    Raises:
        UsageError: they choose none.
    """
    from buildrunner.cli.folder_settings import folder_settings

    server = chosen_server(args)
    if server is None:
        raise UsageError(
            "triggers are a server's, and no server is chosen",
            hint="`buildrunner login URL` chooses one, or --server URL",
        )
    project = getattr(args, "project", "") or server.project or folder_settings().project_id
    return server.connect(project)


def trigger_path(name: str) -> str:
    """The address of a trigger in the API, for `ServerClient.call`."""
    from urllib.parse import quote

    return f"/v1/{{parent}}/triggers/{quote(name, safe='')}"


def trigger_url(client: ServerClient, trigger: Document) -> str:
    """The address of a trigger, without the server's."""
    return f"/v1/projects/{client.project}/triggers/{trigger['id']}"
