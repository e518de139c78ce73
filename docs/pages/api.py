"""Every route of the server, from the application itself."""

from __future__ import annotations

import re
import tempfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from buildrunner import wiring
from buildrunner.server.app import create_app
from buildrunner.server.context import ServerContext, ServerSettings
from buildrunner.server.loop import Signal
from buildrunner.server.metrics import Metrics
from buildrunner.server.openapi import openapi_document
from buildrunner.settings import Settings
from buildrunner.sources.uploads import SourceUploads
from buildrunner.store.sql.store import open_store
from pages.markdown import code, codes, inline_code, table

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCATION = re.compile(r"/locations/\{location\}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

_HEAD = """\
# The server's API

`buildrunner serve` implements [Cloud Build's REST API, version 1](https://cloud.google.com/build/docs/api/reference/rest),
so that the official clients and `gcloud` work unchanged. It also has routes of its own. `/docs` of a
running server shows all messages; `/openapi.json` has the same for programs.

- Paths have two forms: `projects/P/builds` and `projects/P/locations/L/builds`. The first form uses the location
  `global`, but finds a build of any location by its id. The project `-` is the server's default project. The location
  `-` means all locations (lists only).
- Bodies are protobuf JSON: camelCase or snake_case, enums as names or numbers, 64-bit numbers as strings
  or numbers. Unknown fields are refused; fields that only the service sets are ignored.
- With `$alt=json;enum-encoding=int`, enums are numbers. `alt`, `prettyPrint`, `fields`, `key`, `quotaUser` and
  other `$` parameters are ignored.
- Errors have Google's form: `{"error": {"code", "message", "status", "details"}}`. For an invalid build, the
  message and a `google.rpc.BadRequest` list every problem.
- Send the token as `Authorization: Bearer TOKEN`. The answer to an invalid token is 401. Without a token it is 403,
  since Google's clients would react to 401 with a refresh and hide the reason.

"""

_CREATE = """
## Parameters of our own when a build is created

They stand in the query of `POST .../builds`. `:run` takes all but the group, which is the trigger's; `:retry`
takes `requestId`, and has the rest from the build it repeats.

"""

_PARAMETERS = (
    (
        "requestId",
        "A second creation by the same caller with the same key in the same project returns the first build.",
    ),
    ("push", "`false`: push no images at the end."),
    ("priority", "From -1000 to 1000; higher runs earlier in its project. Default: 0."),
    (
        "group",
        "Builds of one group of a project share a limit. A trigger's builds are one by themselves.",
    ),
    ("groupLimit", "How many of the group may run at the same time; 0 for no limit."),
    (
        "supersede",
        "`cancel_queued` cancels older builds of the group that wait; `cancel_all` also cancels those that run.",
    ),
)

_TAIL = """
## Operations

The operation of a build is `operations/build/PROJECT/ID` (the id in base64). It is done when the build has
ended. Its result is the Build or an error. The code of the error is 1 for a cancelled build, 2 for a failed one, 4 for a
timeout or an expired build, and 13 for an internal error. It has only fields that the published client (google-cloud-build 3.43.0) knows, since
the client's poller refuses other fields.

## Substitutions

For a build without a Git source, the server applies substitutions when the build is created, and refuses it if a value is
missing. A build from a Git repository is shown as it was sent until the fetch, which sets `$COMMIT_SHA` and similar
values. `:retry` uses the request as it was sent, not as it is shown. A build of a trigger is retried at its commit.
"""


def page() -> str:
    """The page."""
    rows = sorted(_rows(), key=lambda row: (row[0], row[2], row[1]))
    cloud = [row[1:] for row in rows if row[0] == 0]
    own = [row[1:] for row in rows if row[0] == 1]
    head = ("method", "path", "scope", "what it does")
    parameters = [(code(name), text) for name, text in _PARAMETERS]
    return (
        f"{_HEAD}## Cloud Build's routes\n\nEach of these paths has its form with `/locations/L`, too.\n\n"
        f"{table(head, cloud)}\n## Routes of buildrunner\n\n{table(head, own)}"
        f"{_CREATE}{table(('parameter', 'meaning'), parameters)}{_TAIL}"
    )


def _rows() -> Iterator[tuple[int, str, str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        document = _document(folder)
    merged: dict[tuple[str, str], list[str]] = {}
    for path, methods in document["paths"].items():
        short = _LOCATION.sub("", path)
        for method, operation in methods.items():
            text = " ".join(operation.get("description", "").split())
            known = merged.setdefault((short, text), [])
            if method.upper() not in known:
                known.append(method.upper())
    for (path, text), methods in merged.items():
        what, _, scope = text.partition(" Needs scope ")
        names = codes(sorted(methods, key=_METHODS.index))
        ours = 0 if path.startswith("/v1/") else 1
        yield ours, names, code(path), code(scope.rstrip(".")), inline_code(what)


def _document(folder: str) -> dict[str, Any]:
    store = open_store(f"sqlite:///{folder}/server.db")
    try:
        context = ServerContext(
            store=store,
            settings=ServerSettings(),
            data_folder=folder,
            uploads=SourceUploads(folder),
            metrics=Metrics(),
            clock=lambda: datetime.now(UTC),
            new_id=str,
            wake=Signal(),
            worker_alive=bool,
            secrets=wiring.ServerSecrets(Settings()),
        )
        app = create_app(context)
        return openapi_document(app, app.state.routers)
    finally:
        store.close()
