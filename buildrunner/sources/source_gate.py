"""The source policy at the moment of fetching: names are looked up, judged, and held to."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from buildrunner.sources.git_errors import GitFailed
from buildrunner.sources.source_policy import (
    SourcePolicy,
    depends_on_addresses,
    host_and_port,
    pinned,
    refusal_of_addresses,
    refusal_of_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def look_up(host: str) -> Sequence[str]:
    """Every address of a host, as this machine's resolver knows it.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


class SourceGate:
    """Says where one fetch may go. Used by one thread.

    A name is looked up once. Git is told to connect to what was found then (``pin``): whoever owns
    the name can't answer differently a second time. That holds for http and https; ssh and git
    look it up again.

    Args:
        policy: what is allowed.
        addresses_of: looks a name up.
    """

    def __init__(
        self, policy: SourcePolicy, addresses_of: Callable[[str], Sequence[str]] = look_up
    ) -> None:
        self._policy = policy
        self._addresses_of = addresses_of
        self._known: dict[str, Sequence[str]] = {}

    def allows(self, host: str) -> bool:
        """Whether a host may be talked to; empty means this machine's files.

        Raises:
            GitFailed: its name can't be looked up.
        """
        if not host:
            return self._policy.files
        if refusal_of_url(self._policy, f"https://{_bracketed(host)}/"):
            return False
        if not depends_on_addresses(self._policy, host):
            return True
        return not refusal_of_addresses(self._policy, host, self._addresses(host))

    def pin(self, url: str) -> str:
        """Git's ``http.curloptResolve`` for a URL whose host was allowed; empty for none."""
        host, _ = host_and_port(url)
        return pinned(url, self._known.get(host, ()))

    def _addresses(self, host: str) -> Sequence[str]:
        if host not in self._known:
            try:
                self._known[host] = self._addresses_of(host)
            except OSError as error:
                raise GitFailed(
                    f"the host {host} can't be found ({error.strerror or error})",
                    kind="network",
                    hint="check the URL's host and this machine's DNS",
                ) from error
        return self._known[host]


def registry_refusal(policy: SourcePolicy | None, registry: str) -> str:
    """Return why images of strangers may not come from a registry; empty when they may.

    The policy is that of Git sources. The engine looks the name up once more, and asks by https: a
    name that leads elsewhere then meets a certificate of another name.

    Args:
        policy: what is allowed; None: anything.
        registry: ``host`` or ``host:port``.
    """
    if policy is None:
        return ""
    url = f"https://{registry}/"
    host, _ = host_and_port(url)
    refused = refusal_of_url(policy, url)
    if refused or not depends_on_addresses(policy, host):
        return refused
    try:
        return refusal_of_addresses(policy, host, look_up(host))
    except OSError:  # the engine may know the name, or a mirror of it
        return ""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
