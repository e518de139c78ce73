"""HTTP calls to hosts that a gate allows, at the very addresses that it judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from buildrunner.errors import BuildrunnerError
from buildrunner.server.context import ServerSettings
from buildrunner.server.http.tls import tls_context
from buildrunner.sources.policy import (
    SourcePolicy,
    look_up,
    refusal_of_addresses,
    refusal_of_url,
)

if TYPE_CHECKING:
    import httpx


_TIMEOUT_S: Final = 10.0
_MOST_ADDRESSES: Final = 4
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class _Way(NamedTuple):
    """By whom, to which address, and what tells the server its name besides."""

    client: httpx.Client
    url: str
    headers: dict[str, str]
    extensions: dict[str, Any]


class PinnedHttp:
    """Makes calls. Thread-safe; `close` it. Redirects are not followed.

    A host's name is looked up once, judged, and then connected to by address: a second look-up
    could give another one, inside the server's network (DNS rebinding).
    """

    def __init__(self) -> None:
        import httpx

        trust = tls_context()
        self._direct = httpx.Client(timeout=_TIMEOUT_S, verify=trust, trust_env=False)
        self._by_proxy = httpx.Client(timeout=_TIMEOUT_S, verify=trust)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._direct.close()
        self._by_proxy.close()

    def send(
        self,
        gate: TargetGate,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes = b"",
    ) -> httpx.Response:
        """The answer of the first address that is connected to; its content is still to be read.

        The caller closes the answer.

        Args:
            gate: says whether the URL's host may be called.
            method: of HTTP.
            url: where to.
            headers: beside ``Host``.
            content: the body.

        Raises:
            NotDelivered: the host may not be called, or is not found.
            httpx.HTTPError: no address answers.
        """
        import httpx

        error: httpx.TransportError | None = None
        for way in self._ways(gate, url):
            request = way.client.build_request(
                method,
                way.url,
                content=content or None,
                headers={**headers, **way.headers},
                extensions=way.extensions,
            )
            try:
                return way.client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as failed:  # nothing was sent
                error = failed
        assert error is not None  # noqa: S101  (there is at least one way)
        raise error

    def _ways(self, gate: TargetGate, url: str) -> Iterator[_Way]:
        """Ways to an address that was judged, best first.

        Raises:
            NotDelivered: the host may not be called.
        """
        from urllib.request import getproxies, proxy_bypass

        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("https", "http") or not host:
            raise NotDelivered("the address is none: it must be https://HOST/PATH")
        is_proxied = parts.scheme in getproxies() and not proxy_bypass(host)
        if is_proxied and host not in _LOOPBACK:  # the proxy looks the name up itself
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


def is_private_to_us(url: str) -> bool:
    """Whether nobody on the way can read a call: it is encrypted, or stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK


_NOTIFY_FLAG: Final = "--allow-notify-host"
_SOURCE_FLAG: Final = "--allow-source-host"


class NotDelivered(BuildrunnerError):
    """It did not arrive.

    Attributes:
        is_final: it never will.
        wait: how long the receiver wants us to wait; None when it does not say.
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
    """The name of the host has no address now."""


class TargetGate:
    """Says where messages may go. Thread-safe.

    Args:
        policy: what is allowed.
        addresses_of: looks a name up. Raises `OSError`.
        flag: of ``serve``, which allows more.
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
        """The addresses of a host that may be talked to; at least one.

        Raises:
            NotDelivered: it may not be, or can't be found.
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
        """Whether a host may be talked to, as far as its name tells.

        Raises:
            NotDelivered: it may not.
        """
        shown = f"[{host}]" if ":" in host else host
        if refusal_of_url(self._policy, f"https://{shown}/"):
            raise self._refused(host, f"{host} is inside the server's network")

    def _refused(self, host: str, why: str) -> NotDelivered:
        allowed = f"the server's administrator can allow it: serve {self._flag} {host}"
        return NotDelivered(f"{why}; {allowed}")


class Gates(NamedTuple):
    """The gates of a server: for what projects configure, and for the APIs of forges."""

    notifiers: TargetGate
    forges: TargetGate


def gates(settings: ServerSettings) -> Gates:
    """The gates that a server's settings mean."""
    return Gates(TargetGate(settings.notify), TargetGate(settings.sources, flag=_SOURCE_FLAG))
