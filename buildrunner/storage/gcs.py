"""Cloud Storage by Google's own client: the only module that imports it.

The client finds the credentials: the application default credentials, or none for public buckets.
``STORAGE_EMULATOR_HOST`` names another server, as for every program with this client. `refusal` and
`reason` convert errors of the client to one sentence each.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit
from xml.sax.saxutils import unescape

from requests.adapters import HTTPAdapter

from buildrunner.errors import StorageError
from buildrunner.retry import LONGEST_WAIT_S, asked_wait_s
from buildrunner.storage.object_store import SCHEME, Content, Retried, StoredObject, has_arrived

_CHUNK_BYTES = 8 * 1024 * 1024  # size of a piece of a resumable upload, which is held in memory
_TIMEOUT_S = (5.0, 60.0)  # seconds to connect, and between two pieces
_QUESTION_TIMEOUT_S = (5.0, 15.0)  # seconds for requests that a server answers at once
_TRIES_WHEN_DAMAGED = 3
_SMALL_BYTES = 1024 * 1024
_OK = 200
# Errors of the client for JSON of another form, since it does not check answers.
_NONSENSE = (AttributeError, TypeError, ValueError, LookupError)
_DAMAGED = "its checksum is wrong after the transfer"

OUT_OF_STEP = (400, 409, 416)
"""Statuses by which servers refuse a piece of an upload that is not the next one."""

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
_RESUME_INCOMPLETE = 308
_NO_REASON = "it gives no reason"
_METHOD = re.compile(r"(?:GET|POST|PUT) https?://\S*: ")
_OF_THE_CLIENT = re.compile(
    r":? *\('(?:Request failed with status code|Response headers must).*", re.DOTALL
)


class GoogleStore:
    """Implements `ObjectStore`. The client is made by the first call that needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: Any = None
        self._anonymous = False
        self._answers = AnswerReader()
        self._retry_policy = RetryPolicy()

    def url_of(self, bucket: str, name: str) -> str:
        """See `ObjectStore.url_of`."""
        return f"{SCHEME}{bucket}/{name}"

    def check_bucket(self, bucket: str, *, retried: Retried | None = None) -> None:
        """See `ObjectStore.check_bucket`."""
        url = f"{SCHEME}{bucket}"
        try:
            with self._translated(url):
                retry = self._retry(url, retried)
                self._client().bucket(bucket).reload(timeout=_QUESTION_TIMEOUT_S, retry=retry)
        except StorageError as error:
            if error.missing:
                raise _no_bucket(bucket) from error
            if not error.unauthorized:
                raise

    def find(
        self, bucket: str, name: str, generation: int = 0, *, retried: Retried | None = None
    ) -> StoredObject:
        """See `ObjectStore.find`."""
        url = self.url_of(bucket, name)
        try:
            with self._translated(url):
                blob = self._client().bucket(bucket).blob(name, generation=generation or None)
                blob.reload(timeout=_QUESTION_TIMEOUT_S, retry=self._retry(url, retried))
                found = _described(blob, url)
        except StorageError as error:
            if not error.missing:
                raise
            self.check_bucket(bucket)
            named = f"generation {generation} of {url}" if generation else f"object {url}"
            raise StorageError(f"there is no {named}", missing=True) from error
        # Some servers of this API ignore generations and return the newest one.
        if generation and found.generation != generation:
            raise StorageError(f"there is no generation {generation} of {url}", missing=True)
        return found

    def read(self, found: StoredObject, offset: int, cancel: threading.Event) -> Iterator[bytes]:
        """See `ObjectStore.read`."""
        pipe = Pipe()
        threading.Thread(
            target=self._download, args=(found, offset, pipe), name="download", daemon=True
        ).start()
        try:
            yield from pipe.pieces(cancel)
        finally:
            pipe.abandon()

    def _download(self, found: StoredObject, offset: int, pipe: Pipe) -> None:
        try:
            with self._translated(found.pinned_url), self._answers.downloading(pipe):
                blob = (
                    self._client()
                    .bucket(found.bucket)
                    .blob(found.name, generation=found.generation or None)
                )
                # The stored bytes, regardless of Content-Encoding. The reader computes the digest,
                # since the client can't do so across several tries.
                blob.download_to_file(
                    pipe,
                    start=offset or None,
                    raw_download=True,
                    checksum=None,
                    timeout=_TIMEOUT_S,
                    retry=None,
                )
        except Abandoned:
            return
        except BaseException as error:  # noqa: BLE001  (it goes to the thread that reads)
            pipe.finish(error)
        else:
            pipe.finish(None)

    def write(
        self,
        bucket: str,
        name: str,
        content: Content,
        size_bytes: int,
        *,
        content_type: str,
        retried: Retried | None = None,
    ) -> StoredObject:
        """See `ObjectStore.write`.

        An object that arrived damaged is sent again as a whole: if the connection broke after a
        piece, some servers store it twice, others refuse it the second time. So is an upload that a
        server has lost: Cloud Storage answers a piece of it with 404 or 410.
        """
        tries_left = _TRIES_WHEN_DAMAGED
        while True:
            tries_left -= 1
            try:
                return self._write(bucket, name, content, size_bytes, content_type, retried)
            except StorageError as error:
                if error.missing:
                    raise _no_bucket(bucket) from error
                if not error.corrupt or not tries_left:
                    raise
                if retried is not None:
                    retried(error)

    def _write(
        self,
        bucket: str,
        name: str,
        content: Content,
        size_bytes: int,
        content_type: str,
        retried: Retried | None,
    ) -> StoredObject:
        url = self.url_of(bucket, name)
        from google.api_core.exceptions import GoogleAPICallError

        with self._translated(url), self._answers.uploading(content):
            blob = self._client().bucket(bucket).blob(name, chunk_size=_CHUNK_BYTES)
            try:
                blob.upload_from_file(
                    content,
                    rewind=True,
                    size=size_bytes,
                    content_type=content_type,
                    timeout=_TIMEOUT_S if size_bytes > _SMALL_BYTES else _QUESTION_TIMEOUT_S,
                    retry=self._retry(url, retried),
                )
            except GoogleAPICallError as error:
                if lost := why_upload_lost(error):
                    raise StorageError(f"{url}: {lost}", corrupt=True) from error
                if error.code != _OK:
                    raise
                # Everything has arrived, but the answer lacks a checksum.
                blob.reload(timeout=_QUESTION_TIMEOUT_S, retry=self._retry(url, retried))
            stored = _described(blob, url)
        # For large objects, the client itself compares the digest of its bytes with the answer.
        arrived = stored.size_bytes == size_bytes
        if arrived and size_bytes <= _CHUNK_BYTES:
            arrived = has_arrived(content, size_bytes, stored)
        if not arrived:
            raise StorageError(f"{url}: {_DAMAGED}", corrupt=True)
        return stored

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make_client()
            return self._made

    def _make_client(self) -> Any:
        from google.auth.transport.requests import AuthorizedSession
        from google.cloud import storage

        # Other clients, and the documentation of some servers, use the address without a scheme.
        host = os.environ.get("STORAGE_EMULATOR_HOST", "")
        options = {"api_endpoint": f"http://{host}"} if host and "://" not in host else None
        credentials = self._credentials(is_emulator=bool(host))
        session = AuthorizedSession(credentials)
        session.configure_mtls_channel()
        if not session.is_mtls:
            session.mount("https://", self._answers)
        session.mount("http://", self._answers)
        return storage.Client(
            project=None, credentials=credentials, client_options=options, _http=session
        )

    def _credentials(self, *, is_emulator: bool) -> Any:
        import google.auth
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage

        if is_emulator:
            return AnonymousCredentials()
        try:
            return google.auth.default(scopes=storage.Client.SCOPE)[0]
        except DefaultCredentialsError:
            if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
                raise  # a named file must not be ignored silently
            self._anonymous = True
            return AnonymousCredentials()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Convert any error of the client to a `StorageError` about ``what``."""
        import requests
        import urllib3
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.auth.exceptions import GoogleAuthError, InvalidOperation, TransportError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

        try:
            yield
            self._retry_policy.answered()
        except RetryError as error:
            raise self._no_answer(what, error.cause) from error
        except GoogleAPICallError as error:
            self._retry_policy.answered()
            raise refusal(
                what, error.code or 0, error.message or "", error, self._anonymous
            ) from error
        except InvalidResponse as error:
            self._retry_policy.answered()
            raise refusal(
                what, error.response.status_code, str(error), error, self._anonymous
            ) from error
        except DataCorruption as error:
            raise StorageError(f"{what}: {_DAMAGED}", corrupt=True) from error
        except (TransportError, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._no_answer(what, error) from error
        except GoogleAuthError as error:
            if error.retryable:
                raise StorageError(
                    f"{what}: the server that gives out Google's access tokens is busy or broken",
                    transient=True,
                ) from error
            # For missing credentials, the library reports that they can't be refreshed.
            nobody = self._anonymous or isinstance(error, InvalidOperation)
            who = f": no Google credentials that work: {sentence(error)}"
            raise StorageError(
                f"{what}: access denied{TO_ANYONE if nobody else who}",
                unauthorized=True,
                hint=LOG_IN,
            ) from error
        except _NONSENSE as error:
            raise StorageError(
                f"{what}: the answer of {self._host()} is not of Cloud Storage's API"
            ) from error

    def _retry(self, what: str, retried: Retried | None) -> Any:
        def tell(error: Exception) -> None:
            if retried is not None:
                lost = not status_of(error)
                retried(StorageError(self._text(what, error), transient=True, unreachable=lost))

        return self._retry_policy.retry(tell)

    def _no_answer(self, what: str, error: BaseException | None) -> StorageError:
        untrusted = is_untrusted(error)
        hint = "is the server reachable from here?" if self._retry_policy.is_lost else ""
        if untrusted:
            hint = "name a file with its authority's certificate in REQUESTS_CA_BUNDLE"
        return StorageError(
            self._text(what, error),
            transient=not untrusted,
            unreachable=not status_of(error),
            hint=hint,
        )

    def _text(self, what: str, error: BaseException | None) -> str:
        if status := status_of(error):
            return f"{what}: the server answers {status}"
        return f"{what}: {reason(error, self._host())}"

    def _host(self) -> str:

        return urlsplit(self._made.api_endpoint).netloc if self._made else "the server"


def _no_bucket(bucket: str) -> StorageError:
    return StorageError(f'bucket "{SCHEME}{bucket}" does not exist', missing=True)


def _described(blob: Any, url: str) -> StoredObject:
    return StoredObject(
        bucket=blob.bucket.name,
        name=blob.name,
        generation=int(blob.generation or 0),
        url=url,
        size_bytes=int(blob.size or 0),
        md5=blob.md5_hash or "",
        crc32c=blob.crc32c or "",
        gzip_encoded=(blob.content_encoding or "").lower() == "gzip",
    )


_BROKEN = 500
_KEPT = re.compile(r"bytes=0-(\d+)")
_ASKED = re.compile(r"bytes=(\d+)-")


class Skipping(Protocol):
    """The target of a download, which drops bytes that arrived before."""

    def skip(self, count: int) -> None:
        """Drop the next ``count`` bytes."""
        ...


class AnswerReader(HTTPAdapter):
    """Sends the client's requests, and corrects each answer before the client reads it.

    Transfers are bound to their threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._transfer = threading.local()

    @contextmanager
    def uploading(self, content: Content) -> Iterator[None]:
        """Use ``content`` for this thread's uploads until the end of the block."""
        self._transfer.content = content
        self._transfer.in_doubt = False
        try:
            yield
        finally:
            self._transfer.content = None

    @contextmanager
    def downloading(self, into: Skipping) -> Iterator[None]:
        """Write this thread's downloads to ``into`` until the end of the block."""
        self._transfer.into = into
        try:
            yield
        finally:
            self._transfer.into = None

    def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """See `HTTPAdapter.send`."""
        answer = self._sent(request, *arguments, **options)
        self.look(answer)
        return answer

    def _sent(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """Send a request. If a piece that may have arrived is refused, query the upload's state."""
        if getattr(self._transfer, "content", None) is None or request.method != "PUT":
            return super().send(request, *arguments, **options)
        again, self._transfer.in_doubt = self._transfer.in_doubt, True
        answer = super().send(request, *arguments, **options)
        if again and answer.status_code in OUT_OF_STEP:
            kept = super().send(_question_about(request), *arguments, **options)
            answer = kept if kept.status_code in (_OK, _RESUME_INCOMPLETE) else answer
        self._transfer.in_doubt = answer.status_code >= _BROKEN
        return answer

    def look(self, response: Any) -> None:
        """Correct the address in an answer, and the position of the transfer."""
        location = response.headers.get("Location")
        if location:
            response.headers["Location"] = _place(response.url, location)
        content = getattr(self._transfer, "content", None)
        if content is not None and response.status_code == _RESUME_INCOMPLETE:
            _go_on_with(content, response)
        into = getattr(self._transfer, "into", None)
        requested = _ASKED.match(response.request.headers.get("Range") or "")
        if into is not None and response.status_code == _OK and requested:
            into.skip(int(requested[1]))


def _place(requested: str, location: str) -> str:
    """Return the address of a redirect. https is kept: a server behind a proxy may name http."""
    place, base = urlsplit(urljoin(requested, location)), urlsplit(requested)
    if place.netloc == base.netloc and base.scheme == "https":
        place = place._replace(scheme="https")
    return place.geturl()


def _question_about(piece: Any) -> Any:
    """Return a request for the number of bytes of an upload that the server has.

    Source: Cloud Storage's resumable uploads: an empty PUT with ``Content-Range: bytes */SIZE``.
    """
    question = piece.copy()
    question.body = None
    question.headers["Content-Length"] = "0"
    size = piece.headers["Content-Range"].rpartition("/")[2]
    question.headers["Content-Range"] = f"bytes */{size}"
    return question


def _go_on_with(content: Content, response: Any) -> None:
    """Continue the upload after the stored bytes.

    Source: Cloud Storage names no range if it has stored nothing yet.

    Raises:
        requests.ConnectionError: nothing of the first piece was stored: it must be sent again.
    """
    kept = _KEPT.fullmatch(response.headers.get("Range", ""))
    sent = response.request.headers.get("Content-Range") or ""
    if kept:
        content.seek(int(kept[1]) + 1)
    elif "Range" not in response.headers and sent.startswith("bytes 0-"):
        import requests

        response.close()
        raise requests.ConnectionError("the server has kept nothing of what it was sent")


_RETRY_S = 45.0
_UNREACHABLE_S = 12.0  # for a server that has never answered, and may not exist


class RetryPolicy:
    """The retries of calls to one server, which last longer once it has answered. Thread-safe."""

    def __init__(self) -> None:
        self._limit_s = _UNREACHABLE_S

    @property
    def is_lost(self) -> bool:
        """Return whether the server was given up before it has ever answered."""
        return not self._limit_s

    def answered(self) -> None:
        """Record that the server has answered."""
        self._limit_s = _RETRY_S

    def retry(self, tell: Callable[[Exception], None]) -> Any:
        """Return the retry of one call: long, but short for a server that never answered.

        Waits that a busy server requests do not count, up to a minute.

        Args:
            tell: called with each error that will be retried.
        """
        from google.cloud.storage.retry import DEFAULT_RETRY

        begun, waited_s = time.monotonic(), 0.0
        until = begun + self._limit_s

        def between_tries(error: Exception) -> None:
            nonlocal waited_s
            if is_untrusted(error):
                raise error
            if status_of(error):
                self.answered()
            elif self._limit_s < _RETRY_S and time.monotonic() >= until:
                self._limit_s = 0.0  # later calls are tried once
                raise error
            asked_s = wait_asked_for(error)
            waited_s += asked_s
            if waited_s > LONGEST_WAIT_S or time.monotonic() - begun > _RETRY_S + waited_s:
                raise error
            tell(error)
            time.sleep(asked_s)

        tries = DEFAULT_RETRY.with_delay(initial=0.5, maximum=8.0, multiplier=2.0)
        tries = tries.with_timeout(_RETRY_S + LONGEST_WAIT_S)
        return lambda call: tries(call, on_error=between_tries)


_PIECE_BYTES = 256 * 1024
_PIECES_AHEAD = 16
_LOOK_S = 0.25


class Abandoned(Exception):
    """Raised in the writer of a pipe whose reader has stopped."""


class Pipe:
    """A pipe of a few MiB from the client's thread to the thread of the reader."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_PIECES_AHEAD)
        self._buffer = bytearray()
        self._skip = 0
        self._abandoned = threading.Event()

    def skip(self, count: int) -> None:
        """Drop the next ``count`` bytes."""
        self._skip = count

    def write(self, data: bytes) -> int:
        """Write bytes. Blocks while the reader is slow."""
        left_out = min(self._skip, len(data))
        self._skip -= left_out
        self._buffer += data[left_out:]
        if len(self._buffer) >= _PIECE_BYTES:
            self._hand_over()
        return len(data)

    def finish(self, error: BaseException | None) -> None:
        """End the pipe, with ``error`` if there is one."""
        try:
            self._hand_over()
            self._put(error)
        except Abandoned:
            pass

    def pieces(self, cancel: threading.Event) -> Iterator[bytes]:
        """Yield the written pieces as they arrive."""
        while True:
            try:
                piece = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                piece = b""
            if cancel.is_set():
                raise StorageError("the transfer was stopped")
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            if piece:
                yield piece

    def abandon(self) -> None:
        """Let the writer fail at its next write."""
        self._abandoned.set()

    def _hand_over(self) -> None:
        if self._buffer:
            self._put(bytes(self._buffer))
            self._buffer.clear()

    def _put(self, piece: bytes | BaseException | None) -> None:
        while not self._abandoned.is_set():
            try:
                self._queue.put(piece, timeout=_LOOK_S)
            except queue.Full:
                continue
            return
        raise Abandoned


def status_of(error: BaseException | None) -> int:
    """Return the HTTP status of an error of the client; 0 for none."""
    response = getattr(error, "response", None)
    return int(getattr(error, "code", None) or getattr(response, "status_code", None) or 0)


def wait_asked_for(error: BaseException | None) -> float:
    """Return the wait before a retry that the server requests, in seconds; 0 for none."""
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or {}
    return asked_wait_s(headers.items())


def why_upload_lost(error: BaseException) -> str:
    """Return why a server can't continue an upload; empty for another error.

    The server has lost the upload, or refuses a repeated piece. A 404 to the request that begins
    an upload is about the bucket, and does not count.
    """
    request = getattr(getattr(error, "response", None), "request", None)
    status = status_of(error)
    if status not in _FORGOTTEN + OUT_OF_STEP or getattr(request, "method", "") != "PUT":
        return ""
    if status in _FORGOTTEN:
        return "the server has lost the upload"
    return f"the server answers {status}: {sentence(getattr(error, 'message', error))}"


def sentence(error: object) -> str:
    """Return the first line of an error, without the request's address, which the caller has."""
    arguments = error.args if isinstance(error, BaseException) else ()
    first = arguments[0] if arguments and isinstance(arguments[0], str) else str(error)
    body = _OF_THE_CLIENT.sub("", _METHOD.sub("", first.strip(), count=1))
    lines = _said_in(body).splitlines()
    nothing = type(error).__name__ if isinstance(error, BaseException) else _NO_REASON
    text = lines[0].rstrip(".") if lines else nothing
    return text[:300]


def _said_in(body: str) -> str:
    """Return the message in an answer's body: JSON, XML, or plain text."""
    if body.startswith("<"):  # without a message: an HTML page, mostly of a proxy
        found = _XML_MESSAGE.search(body)
        return unescape(found[1]).strip() if found else _NO_REASON
    try:
        return str(json.loads(body)["error"]["message"]).strip()
    except (ValueError, RecursionError, LookupError, TypeError):
        return body


def is_untrusted(error: BaseException | None) -> bool:
    """Return whether an error means that the server's certificate is not trusted."""
    import ssl

    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: BaseException | None, host: str) -> str:
    """Return why there was no answer: the system's message, below the libraries' wrappers."""
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
    """Return the error about ``what`` for an unsuccessful answer.

    Args:
        what: the object or bucket.
        status: status of the answer.
        message: its message.
        error: the client's error.
        anonymous: whether no credentials are used.
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
    if status == _RESUME_INCOMPLETE:  # in answer to the whole content: the server has lost it
        return StorageError(f"{what}: the server has lost a part of it", corrupt=True)
    return StorageError(
        f"{what}: the server answers {status}: {said}",
        transient=status in (408, 429) or status >= 500,
        retry_after_s=wait_asked_for(error),
    )
