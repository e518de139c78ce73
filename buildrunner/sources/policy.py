"""Policy for the hosts from which a build may fetch its source: pure rules, no lookups.

A server fetches URLs from untrusted users. Without rules it would fetch from places that only the
server can reach: its own disk, other services on its machine, the cloud's metadata server.

The policy is checked at three moments:

* for a new build: `refusals` checks the request;
* after the lookup of a host name: `refusal_of_addresses` checks every address;
* for the connection: it must go to a checked address (`pinned` returns the setting for git), since
  a second lookup could give another answer (DNS rebinding). A redirect to another host must not be
  followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from buildrunner.addresses import address_of, first_that_answers, is_public, look_up
from buildrunner.containers.image_name import DOCKER_HUB
from buildrunner.errors import SourceError
from buildrunner.problem import Problem
from buildrunner.sources.git.credentials import SSH_ADDRESSES
from buildrunner.sources.git.errors import GitFailed
from buildrunner.sources.git.url import parse_git_url
from buildrunner.spec.model.build import Build

RULE: Final = "source-policy"
_LOCAL_NAMES: Final = ("localhost", "localhost.localdomain", "metadata.google.internal", "metadata")
_LOCAL_ENDINGS: Final = (".localhost", ".local", ".internal")
_HINT: Final = "the server's administrator can allow it: serve "


class SourcePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The allowed sources.

    Attributes:
        private: allow hosts with private, loopback or link-local addresses, and their names.
        files: allow repositories on the server's own disk (``file://`` and paths).
        hosts: lower-case names of hosts that are allowed at any address; a name that begins with a
            dot matches all names with this suffix.
        largest_bytes: the most bytes that the fetches of one build may write; 0 for any number.
    """

    private: bool = False
    files: bool = False
    hosts: tuple[str, ...] = ()
    largest_bytes: int = 0


def policy_text(policy: SourcePolicy) -> str:
    """Return the policy in one line, for the environment of a build's process."""
    words = [name for name in ("private", "files") if getattr(policy, name)]
    largest = [f"largest:{policy.largest_bytes}"] if policy.largest_bytes else []
    return " ".join([*words, *(f"host:{host}" for host in policy.hosts), *largest])


def policy_from(text: str) -> SourcePolicy:
    """Return the policy from the text of `policy_text`; unknown words allow nothing."""
    words = text.split()
    hosts = tuple(word.removeprefix("host:") for word in words if word.startswith("host:"))
    largest = [word.removeprefix("largest:") for word in words if word.startswith("largest:")]
    return SourcePolicy(
        private="private" in words,
        files="files" in words,
        hosts=hosts,
        largest_bytes=max((int(one) for one in largest if one.isdecimal()), default=0),
    )


def policy_on_machine(policy: SourcePolicy, disk_gib: int) -> SourcePolicy:
    """Return the policy of a server with the smaller of its limit and that of a worker's machine.

    Args:
        policy: the server's policy.
        disk_gib: the most that a build may write to the machine's disk, in GiB; 0 for any number.
    """
    limits = [one for one in (policy.largest_bytes, disk_gib << 30) if one]
    return msgspec.structs.replace(policy, largest_bytes=min(limits, default=0))


def refusals(policy: SourcePolicy, build: Build) -> list[Problem]:
    """Return the refused parts of a build's source and dependencies, one problem each."""
    problems = []
    for path, url in _urls(build):
        reason = refusal_of_url(policy, url)
        if reason:
            problems.append(Problem(reason, path=path, hint=_hint(url), rule=RULE))
    return problems


def _hint(url: str) -> str:
    """Return advice for a refused URL."""
    try:
        host = parse_git_url(url).host
    except SourceError as error:
        return error.hint
    return _HINT + (f"--allow-source-host {host}" if host else "--allow-private-sources")


def _urls(build: Build) -> Iterator[tuple[str, str]]:
    if build.source is not None and build.source.git_source is not None:
        yield "source.gitSource.url", build.source.git_source.url
    for index, dependency in enumerate(build.dependencies):
        git = dependency.git_source
        if git is not None and git.repository is not None and git.repository.url:
            yield f"dependencies[{index}].gitSource.repository.url", git.repository.url


def refusal_of_url(policy: SourcePolicy, url: str) -> str:
    """Return why a repository's URL is not allowed, by the URL alone; empty if it is."""
    try:
        host = parse_git_url(url).host
    except SourceError as error:
        return str(error)
    if not host:
        return "" if policy.files else "repositories on the server's own disk are not allowed"
    return refusal_of_host(policy, host)


def refusal_of_host(policy: SourcePolicy, host: str) -> str:
    """Return why a host is not allowed, by its name alone; empty if it is."""
    host = host.lower().rstrip(".")
    if _is_allowed(policy, host):
        return ""
    literal = address_of(host)
    if literal is not None:
        return refusal_of_addresses(policy, host, [str(literal)])
    if policy.private:
        return ""
    if host in _LOCAL_NAMES or host.endswith(_LOCAL_ENDINGS):
        return f"{host} is a name inside the server's network, which builds may not reach"
    return ""


def depends_on_addresses(policy: SourcePolicy, host: str) -> bool:
    """Return whether a host that passed `refusal_of_url` must still be looked up and checked."""
    return not policy.private and not _is_allowed(policy, host)


def refusal_of_addresses(policy: SourcePolicy, host: str, addresses: Iterable[str]) -> str:
    """Return why a host with these addresses is not allowed; empty if it is.

    One refused address refuses the host, since a client may connect to any.
    """
    if not depends_on_addresses(policy, host):
        return ""
    for text in addresses:
        address = address_of(text)
        if address is None or not is_public(address):
            return f"{host} is at {text}, an address that builds may not fetch from"
    return ""


def pinned(url: str, addresses: Sequence[str]) -> tuple[str, str]:
    """Return the git setting that ties a URL's host to checked addresses (at least one).

    For ssh it is not a setting, but a variable for the program that git starts: `SSH_ADDRESSES`.
    """
    parsed = parse_git_url(url)
    host, port = parsed.host, parsed.port
    shown = [f"[{address}]" if ":" in address else address for address in addresses]
    if parsed.transport == "ssh":
        return SSH_ADDRESSES, f"{host}={addresses[0]}"
    # git:// has no such setting, and no encryption that needs the name
    if parsed.transport == "git":
        place = url.partition("://")[2].partition("/")[0]
        return f"url.git://{shown[0]}:{port}/.insteadOf", f"{url[:3]}://{place}/"
    return "http.curloptResolve", f"{host}:{port}:{','.join(shown)}"


def _is_allowed(policy: SourcePolicy, host: str) -> bool:
    return any(
        host == allowed or (allowed.startswith(".") and host.endswith(allowed))
        for allowed in policy.hosts
    )


class SourceGate:
    """Decides which hosts one fetch may reach. Used by one thread.

    A name is looked up once. Git then connects to the found addresses (``pin``), so the owner of
    the name can't return other addresses later.

    Args:
        policy: the policy.
        addresses_of: looks up a name.
    """

    def __init__(
        self, policy: SourcePolicy, addresses_of: Callable[[str], Sequence[str]] = look_up
    ) -> None:
        self._policy = policy
        self._addresses_of = addresses_of
        self._known: dict[str, Sequence[str]] = {}

    def allows(self, host: str) -> bool:
        """Return whether a host is allowed; empty means this machine's files.

        Raises:
            GitFailed: the lookup of its name fails.
        """
        if not host:
            return self._policy.files
        if refusal_of_host(self._policy, host):
            return False
        if not depends_on_addresses(self._policy, host):
            return True
        return not refusal_of_addresses(self._policy, host, self._addresses(host))

    def pin(self, url: str) -> tuple[str, str] | None:
        """Return the git setting for a URL whose host was allowed: see `pinned`.

        None if the host is allowed at any address.

        Raises:
            SourceError: no address of the host is known.
        """
        parsed = parse_git_url(url)
        host = parsed.host
        if not host or not depends_on_addresses(self._policy, host):
            return None
        addresses = self._known.get(host)
        if not addresses:
            raise SourceError(f"the host {host} has no address", hint="check the URL's host")
        if parsed.transport == "ssh":  # it accepts only one
            addresses = [first_that_answers(addresses, parsed.port)]
        return pinned(url, addresses)

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
    """Return why images of untrusted configs may not come from a registry; empty if they may.

    The policy is that of Git sources. The engine looks up the name again, and connects by https: a
    name that then leads elsewhere fails on the certificate. A name that only the engine can look up
    may lead anywhere, and is refused.

    Args:
        policy: the policy; None allows everything.
        registry: ``host`` or ``host:port``.
    """
    if policy is None:
        return ""
    if registry in DOCKER_HUB:  # public, even if only the engine can look it up
        return ""
    host = urlsplit(f"//{registry}").hostname or ""
    refused = refusal_of_host(policy, host)
    if refused or not depends_on_addresses(policy, host):
        return refused
    try:
        return refusal_of_addresses(policy, host, look_up(host))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", "") or error
        return f"this machine can't look up {host} ({reason}), and so can't tell if it is public"
