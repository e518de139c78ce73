"""What errors of Google's client mean, in one sentence each."""

from __future__ import annotations

import http.client


def status_of(error: BaseException | None) -> int:
    """The HTTP status that an error of the client stands for; 0 for none."""
    response = getattr(error, "response", None)
    return int(getattr(error, "code", None) or getattr(response, "status_code", None) or 0)


def sentence(error: object) -> str:
    """The first line of an error, without the request's address, which the caller has named."""
    arguments = error.args if isinstance(error, BaseException) else ()
    first = arguments[0] if arguments and isinstance(arguments[0], str) else str(error)
    lines = first.strip().splitlines()
    text = lines[0].rstrip(".") if lines else type(error).__name__
    for method in ("GET", "POST", "PUT"):
        if text.startswith(f"{method} http"):
            text = text.partition(": ")[2] or text
    return text[:300]


def reason(error: BaseException | None, host: str) -> str:
    """Why there was no answer: what the system said, below what libraries wrapped around it."""
    inner = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.errno and inner.strerror:
            return f"no connection to {host}: {inner.strerror}"
        if isinstance(inner, TimeoutError):
            return f"{host} does not answer in time"
        if isinstance(inner, http.client.HTTPException):  # IncompleteRead, RemoteDisconnected
            return f"the connection to {host} broke off"
        inner = inner.__cause__ or inner.__context__
    return sentence(error)
