"""What the OpenAPI document says of a route beside what FastAPI reads from its function.

Bodies are read by `http.requests`, which bounds them, and parameters in two spellings: FastAPI sees
neither, so each route says them itself, as ``openapi_extra``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

SCHEMAS: Final = "#/components/schemas/"
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


class Parameter(NamedTuple):
    """A query parameter: its name in camelCase, its JSON type, and what it does."""

    name: str
    kind: str
    text: str


PARENT: Final = Parameter(
    "parent", "string", "projects/P/locations/L: the location, for paths that name none."
)
PAGING: Final = (
    Parameter("pageSize", "integer", "How many at most: 50 unless given, 1000 at most."),
    Parameter("pageToken", "string", "nextPageToken of the answer before."),
)
REQUEST_ID: Final = Parameter(
    "requestId", "string", "A second request with the same key makes nothing new."
)
PUSH: Final = Parameter("push", "boolean", "false: push no images at the end.")
PRIORITY: Final = Parameter("priority", "integer", "From -1000 to 1000; higher runs earlier.")
SUPERSEDE: Final = Parameter(
    "supersede", "string", "cancel_queued or cancel_all: older builds of the group."
)
GROUP: Final = (
    Parameter("group", "string", "Builds of one group of a project share a limit."),
    Parameter("groupLimit", "integer", "How many of the group run at the same time; 0: no limit."),
)
LIMIT: Final = Parameter("limit", "integer", "How many at most.")
BEFORE: Final = Parameter("before", "integer", "Only entries before this one; 0: the newest.")


def documented(
    *, body: str = "", answer: str = "", query: Iterable[Parameter] = (), media: str = JSON
) -> dict[str, Any]:
    """Return the ``openapi_extra`` of a route.

    Args:
        body: name of the body's schema; empty for a route without one.
        answer: name of the answer's schema; empty for what FastAPI says.
        query: the query parameters that the route reads.
        media: media type of the body.
    """
    extra: dict[str, Any] = {
        "parameters": [
            {
                "name": one.name,
                "in": "query",
                "description": one.text,
                "schema": {"type": one.kind},
            }
            for one in query
        ]
    }
    if body:
        schema = ref(body) if media == JSON else {"type": "string", "format": "binary"}
        extra["requestBody"] = {"content": {media: {"schema": schema}}}
    if answer:
        extra["responses"] = {"200": content("Done.", answer)}
    return extra


def ref(name: str) -> dict[str, Any]:
    """Return a reference to a schema of the document."""
    return {"$ref": f"{SCHEMAS}{name}"}


def content(text: str, name: str) -> dict[str, Any]:
    """Return an answer in JSON of a schema."""
    return {"description": text, "content": {JSON: {"schema": ref(name)}}}
