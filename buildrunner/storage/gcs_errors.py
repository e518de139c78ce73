"""The meaning of errors of Google's client, in one sentence each."""

from __future__ import annotations

import http.client
import json
import re
from xml.sax.saxutils import unescape

from buildrunner.errors import StorageError
from buildrunner.retry import asked_wait_s

OUT_OF_STEP = (400, 409, 416)
"""Statuses with which servers refuse a piece of an upload that is not the next one."""

TO_ANYONE = " to anyone without credentials"
LOG_IN = (
    "log in with `gcloud auth application-default login`, or name a service account's key in "
    "GOOGLE_APPLICATION_CREDENTIALS"
)
_LET_IN = (
    "give the account of your credentials a role that may do it, such as roles/storage.objectUser, "
    "or be another: `gcloud auth application-default login`"
)

_XML_MESSAGE = re.compile(r"<Error>.*?<Message>([^<]+)</Message>", re.DOTALL)
_FORGOTTEN = (404, 410)
_GO_ON = 308
_NO_REASON = "it gives no reason"
_METHOD = re.compile(r"(?:GET|POST|PUT) https?://\S*: ")
_OF_THE_CLIENT = re.compile(
    r":? *\('(?:Request failed with status code|Response headers must).*", re.DOTALL
)


def status_of(error: BaseException | None) -> int:
    """The HTTP status that an error of the client stands for; 0 for none."""
    response = getattr(error, "response", None)
    return int(getattr(error, "code", None) or getattr(response, "status_code", None) or 0)


def wait_asked_for(error: BaseException | None) -> float:
    """Return the seconds that the server asks to wait before a retry; 0 if it does not ask."""
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or {}
    return asked_wait_s(headers.items())


def why_upload_lost(error: BaseException) -> str:
    """Why a server can't go on with an upload that it has begun; empty for another error.

    It has forgotten it, or does not take a piece twice. A 404 to the question that begins an upload
    is about the bucket.
    """
    request = getattr(getattr(error, "response", None), "request", None)
    status = status_of(error)
    if status not in _FORGOTTEN + OUT_OF_STEP or getattr(request, "method", "") != "PUT":
        return ""
    if status in _FORGOTTEN:
        return "the server has lost the upload"
    return f"the server answers {status}: {sentence(getattr(error, 'message', error))}"


def sentence(error: object) -> str:
    """The first line of an error, without the request's address, which the caller has named."""
    arguments = error.args if isinstance(error, BaseException) else ()
    first = arguments[0] if arguments and isinstance(arguments[0], str) else str(error)
    body = _OF_THE_CLIENT.sub("", _METHOD.sub("", first.strip(), count=1))
    lines = _said_in(body).splitlines()
    nothing = type(error).__name__ if isinstance(error, BaseException) else _NO_REASON
    text = lines[0].rstrip(".") if lines else nothing
    return text[:300]


def _said_in(body: str) -> str:
    """The message in an answer's body: in JSON, in XML, or in plain words."""
    if body.startswith("<"):  # without a message: a page for people, of a proxy most often
        found = _XML_MESSAGE.search(body)
        return unescape(found[1]).strip() if found else _NO_REASON
    try:
        return str(json.loads(body)["error"]["message"]).strip()
    except (ValueError, RecursionError, LookupError, TypeError):
        return body


def is_untrusted(error: BaseException | None) -> bool:
    """Whether an error means that the server's certificate is not trusted."""
    import ssl

    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: BaseException | None, host: str) -> str:
    """Why there was no answer: what the system said, below what libraries wrapped around it."""
    inner = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.errno and inner.strerror:
            if is_untrusted(inner):
                return f"the TLS certificate of {host} can't be trusted"
            return f"no connection to {host}: {inner.strerror}"
        if isinstance(inner, TimeoutError):
            return f"{host} does not answer in time"
        if isinstance(inner, http.client.HTTPException):  # IncompleteRead, RemoteDisconnected
            return f"the connection to {host} broke off"
        if isinstance(inner, json.JSONDecodeError):
            return f"the answer of {host} is not JSON"
        inner = inner.__cause__ or inner.__context__
    return sentence(error)


def refusal(
    what: str, status: int, message: str, error: BaseException, anonymous: bool
) -> StorageError:
    """The error about ``what`` for an answer that is none of those that were hoped for.

    Args:
        what: the object or bucket.
        status: of the answer.
        message: what it says.
        error: the client's.
        anonymous: we have no credentials.
    """
    said = sentence(message)
    if status in _FORGOTTEN:
        return StorageError(f"{what}: not found", missing=True)
    if status in (401, 403):
        who = TO_ANYONE if anonymous else ""
        known = status == 403 and not anonymous
        return StorageError(
            f"{what}: access denied{who}: {said}",
            unauthorized=True,
            hint=_LET_IN if known else LOG_IN,
        )
    if status == _GO_ON:  # to the whole content: the server has lost what it was sent
        return StorageError(f"{what}: the server has lost a part of it", corrupt=True)
    return StorageError(
        f"{what}: the server answers {status}: {said}",
        transient=status in (408, 429) or status >= 500,
        retry_after_s=wait_asked_for(error),
    )
