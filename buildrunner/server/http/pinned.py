"""HTTP calls to hosts that a gate allows, only at the addresses that it checked."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from buildrunner.addresses import is_loopback_host, look_up
from buildrunner.deadline import Deadline
from buildrunner.errors import BuildrunnerError
from buildrunner.server.context import ServerSettings
from buildrunner.sources.policy import (
    SourcePolicy,
    refusal_of_addresses,
    refusal_of_host,
)

if TYPE_CHECKING:
    import httpx


LONGEST_CALL_S: Final = 30.0
_TIMEOUT_S: Final = 10.0
_MOST_ADDRESSES: Final = 4


class _Way(NamedTuple):
    """One way to a host: the client, the URL with the address, and the host's name."""

    client: httpx.Client
    url: str
    headers: dict[str, str]
    extensions: dict[str, Any]


class HttpAnswer(NamedTuple):
    """The answer to an HTTP call.

    Attributes:
        status_code: the HTTP status.
        headers: the headers, with names in lower case.
        content: the body, or its beginning. It is not decompressed: see `PinnedHttp.call`.
        is_cut: whether the body continues after ``content``.
    """

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    is_cut: bool


class PinnedHttp:
    """Makes calls. Thread-safe; `close` it. Redirects are not followed.

    A host's name is looked up once, checked, and then connected to by address: a second lookup
    could give another one, inside the server's network (DNS rebinding). Each call has its own
    connection, so that none uses a connection that was made for another name.
    """

    def __init__(self) -> None:
        import httpx

        given: dict[str, Any] = {
            "timeout": _TIMEOUT_S,
            "verify": tls_context(),
            "limits": httpx.Limits(max_keepalive_connections=0),
        }
        self._direct = httpx.Client(**given, trust_env=False)
        self._by_proxy = httpx.Client(**given)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._direct.close()
        self._by_proxy.close()

    def call(
        self,
        gate: TargetGate,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes = b"",
        *,
        most_bytes: int,
    ) -> HttpAnswer:
        """Make a call, within `LONGEST_CALL_S` from first to last byte.

        Answers are requested uncompressed and never decompressed, so that few bytes can't expand.

        Args:
            gate: decides whether the URL's host may be called.
            method: the HTTP method.
            url: the URL to call.
            headers: headers besides ``Host``.
            content: the body.
            most_bytes: the most bytes of the answer's body that are read.

        Raises:
            NotDelivered: the host may not be called, or is not found.
            httpx.HTTPError: no address answers in time.
        """
        import httpx

        error: httpx.TransportError | None = None
        with Deadline(LONGEST_CALL_S) as deadline:
            for way in self._ways(gate, url):
                request = way.client.build_request(
                    method,
                    way.url,
                    content=content or None,
                    headers={"Accept-Encoding": "identity", **headers, **way.headers},
                    extensions={**way.extensions, "trace": deadline.trace},
                )
                try:
                    return _answer(way.client.send(request, stream=True), most_bytes)
                except httpx.TransportError as failed:
                    if deadline.is_over:
                        text = f"it takes more than {LONGEST_CALL_S:g} s"
                        raise httpx.TransportError(text) from failed
                    if not isinstance(failed, httpx.ConnectError | httpx.ConnectTimeout):
                        raise
                    error = failed  # nothing was sent yet: the next address may answer
        assert error is not None  # noqa: S101  (there is at least one way)
        raise error

    def _ways(self, gate: TargetGate, url: str) -> Iterator[_Way]:
        """Yield ways to the checked addresses of a host, best first.

        Raises:
            NotDelivered: the host may not be called.
        """
        from urllib.request import getproxies, proxy_bypass

        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("https", "http") or not host:
            raise NotDelivered("the address is none: it must be https://HOST/PATH")
        is_proxied = parts.scheme in getproxies() and not proxy_bypass(host)
        if is_proxied and not is_loopback_host(host):  # the proxy looks up the name itself
            gate.check_name(host)
            yield _Way(self._by_proxy, url, {}, {})
            return
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        port = f":{parts.port}" if parts.port else ""
        name = {"Host": parts.netloc.rpartition("@")[2]}
        for address in gate.addresses(host)[:_MOST_ADDRESSES]:
            shown = f"[{address}]" if ":" in address else address
            pinned = parts._replace(netloc=f"{login}{shown}{port}").geturl()
            yield _Way(self._direct, pinned, name, {"sni_hostname": host})


def _answer(response: httpx.Response, most_bytes: int) -> HttpAnswer:
    content = b""
    with closing(response):
        for piece in response.iter_raw():
            content += piece
            if len(content) > most_bytes:
                break
    headers = dict(response.headers)
    is_cut = len(content) > most_bytes
    return HttpAnswer(response.status_code, headers, content[:most_bytes], is_cut)


def is_private_to_us(url: str) -> bool:
    """Return whether a call is confidential: it is encrypted, or stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback_host(parts.hostname or "")


_NOTIFY_FLAG: Final = "--allow-notify-host"
_SOURCE_FLAG: Final = "--allow-source-host"


class NotDelivered(BuildrunnerError):
    """Raised if a message did not arrive.

    Attributes:
        is_final: a retry can't succeed.
        wait: the wait that the receiver requests; None if it requests none.
        no_answer: the receiver did not answer at all.
    """

    def __init__(
        self,
        message: str,
        *,
        is_final: bool = False,
        wait: timedelta | None = None,
        no_answer: bool = False,
    ) -> None:
        super().__init__(message)
        self.no_answer = no_answer
        self.is_final = is_final
        self.wait = wait


class HostNotFound(NotDelivered):
    """The host's name has no address now."""


class TargetGate:
    """Decides where messages may go. Thread-safe.

    Args:
        policy: the allowed hosts and addresses.
        addresses_of: looks up a name. Raises `OSError`.
        flag: the flag of ``serve`` that allows more hosts, for error messages.
    """

    def __init__(
        self,
        policy: SourcePolicy,
        addresses_of: Callable[[str], Sequence[str]] = look_up,
        *,
        flag: str = _NOTIFY_FLAG,
    ) -> None:
        self._policy = policy
        self._addresses_of = addresses_of
        self._flag = flag

    def addresses(self, host: str) -> Sequence[str]:
        """Return the permitted addresses of a host; at least one.

        Raises:
            NotDelivered: the host is not permitted, or not found.
        """
        self.check_name(host)
        try:
            found = self._addresses_of(host)
        except (OSError, UnicodeError) as error:
            said = getattr(error, "strerror", "") or error
            raise HostNotFound(f"the host {host} can't be found ({said})") from error
        if not found:
            raise HostNotFound(f"the host {host} can't be found")
        if refusal_of_addresses(self._policy, host, found):
            raise self._refused(host, f"{host} is at {found[0]}, a private address")
        return found

    def check_name(self, host: str) -> None:
        """Check whether a host is permitted, by its name alone.

        Raises:
            NotDelivered: the host is not permitted.
        """
        if refusal_of_host(self._policy, host):
            raise self._refused(host, f"{host} is inside the server's network")

    def _refused(self, host: str, why: str) -> NotDelivered:
        allowed = f"the server's administrator can allow it: serve {self._flag} {host}"
        return NotDelivered(f"{why}; {allowed}")


class Gates(NamedTuple):
    """The gates of a server: for the notifiers of projects, and for the APIs of forges."""

    notifiers: TargetGate
    forges: TargetGate


def gates(settings: ServerSettings) -> Gates:
    """Return the gates for a server's settings."""
    return Gates(TargetGate(settings.notify), TargetGate(settings.sources, flag=_SOURCE_FLAG))


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts the authorities of the system and of browsers.

    A self-hosted forge often has a certificate of a company's own authority, which is in the
    system's store, or in the file that ``SSL_CERT_FILE`` names.
    """
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
