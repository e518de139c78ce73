"""Policy for the places that a build may fetch its source from: pure rules, no look-ups.

A server fetches what strangers name. Without rules it would fetch from places that only the server
can reach: its own disk, other services on its machine, the cloud's metadata server.

Three moments, three questions:

* when a build comes in: `refusals` judges what the request says;
* when a host name has been looked up: `refusal_of_addresses` judges every address of it;
* when the connection is made: it must go to an address that was judged (`pinned` tells git which),
  else a second look-up could give another answer (DNS rebinding), and redirects must not be
  followed to another host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from buildrunner.addresses import address_of, is_public, look_up
from buildrunner.problem import Problem
from buildrunner.sources.git.credentials import SSH_ADDRESSES
from buildrunner.sources.git.errors import GitFailed
from buildrunner.spec.model.build import Build

RULE: Final = "source-policy"
_SCHEMES: Final = frozenset({"https", "http", "ssh", "git", "git+ssh", "ssh+git"})
_LOCAL_NAMES: Final = ("localhost", "localhost.localdomain", "metadata.google.internal", "metadata")
_LOCAL_ENDINGS: Final = (".localhost", ".local", ".internal")
_SCP_FORM: Final = re.compile(r"(?:[^@/:\s]+@)?(\[[^]/]+\]|[^/:\s]+):(?!//)(.+)", re.DOTALL)
_DEFAULT_PORTS: Final = {"https": 443, "http": 80, "ssh": 22, "git": 9418}
_HINT: Final = "the server's administrator can allow it: serve "


class SourcePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The allowed sources.

    Attributes:
        private: hosts with private, loopback or link-local addresses, and names of such.
        files: repositories on the server's own disk (``file://`` and paths).
        hosts: these hosts are allowed whatever their addresses: names in small letters; one that
            begins with a dot stands for all names that end so.
    """

    private: bool = False
    files: bool = False
    hosts: tuple[str, ...] = ()


def policy_text(policy: SourcePolicy) -> str:
    """The policy in one line, for the environment of a build's process."""
    words = [name for name in ("private", "files") if getattr(policy, name)]
    return " ".join([*words, *(f"host:{host}" for host in policy.hosts)])


def policy_from(text: str) -> SourcePolicy:
    """The policy that `policy_text` wrote; unknown words allow nothing."""
    words = text.split()
    hosts = tuple(word.removeprefix("host:") for word in words if word.startswith("host:"))
    return SourcePolicy(private="private" in words, files="files" in words, hosts=hosts)


def refusals(policy: SourcePolicy, build: Build) -> list[Problem]:
    """Return the refused parts of a build's source and dependencies, one problem each."""
    problems = []
    for path, url in _urls(build):
        reason = refusal_of_url(policy, url)
        if reason:
            problems.append(Problem(reason, path=path, hint=_hint(url), rule=RULE))
    return problems


def _hint(url: str) -> str:
    """Advice for a refused URL."""
    scheme, host, _ = _parts(url)
    if scheme == "file":
        return _HINT + "--allow-private-sources"
    return _HINT + f"--allow-source-host {host}" if scheme in _SCHEMES and host else ""


def _urls(build: Build) -> Iterator[tuple[str, str]]:
    if build.source is not None and build.source.git_source is not None:
        yield "source.gitSource.url", build.source.git_source.url
    for index, dependency in enumerate(build.dependencies):
        git = dependency.git_source
        if git is not None and git.repository is not None and git.repository.url:
            yield f"dependencies[{index}].gitSource.repository.url", git.repository.url


def refusal_of_url(policy: SourcePolicy, url: str) -> str:
    """Why a repository's URL is not allowed, as far as the URL itself tells; empty when it is."""
    scheme, host, _ = _parts(url)
    if scheme == "file":
        return "" if policy.files else "repositories on the server's own disk are not allowed"
    if scheme not in _SCHEMES:
        return f"sources are not fetched by {scheme or 'that'}: use https or ssh"
    if not host:
        return "the URL names no host"
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
    """Whether a host that passed `refusal_of_url` must still be looked up and judged."""
    return not policy.private and not _is_allowed(policy, host)


def refusal_of_addresses(policy: SourcePolicy, host: str, addresses: Iterable[str]) -> str:
    """Why a host is not allowed, now that its addresses are known; empty when it is.

    One bad address spoils them all: whoever connects may take any.
    """
    if not depends_on_addresses(policy, host):
        return ""
    for text in addresses:
        address = address_of(text)
        if address is None or not is_public(address):
            return f"{host} is at {text}, an address that builds may not fetch from"
    return ""


def pinned(url: str, addresses: Sequence[str]) -> tuple[str, str] | None:
    """The setting of git that ties a URL's host to judged addresses; None without any.

    For ssh it is no setting, but a variable for the program that git starts: `SSH_ADDRESSES`.
    """
    scheme, host, port = _parts(url)
    if not addresses:
        return None
    shown = [f"[{address}]" if ":" in address else address for address in addresses]
    if scheme in ("https", "http"):
        return "http.curloptResolve", f"{host}:{port}:{','.join(shown)}"
    if scheme == "git":  # it has no setting for that, and no encryption that would need the name
        place = url.partition("://")[2].partition("/")[0]
        return f"url.git://{shown[0]}:{port}/.insteadOf", f"{url[:3]}://{place}/"
    if scheme in ("ssh", "git+ssh", "ssh+git"):
        return SSH_ADDRESSES, f"{host}={addresses[0]}"
    return None


def host_and_port(url: str) -> tuple[str, int]:
    """Host and port that fetching from a URL connects to; ``("", 0)`` for files."""
    _, host, port = _parts(url)
    return host, port


def _parts(url: str) -> tuple[str, str, int]:
    if "://" in url:
        try:
            split = urlsplit(url)
            scheme = split.scheme.lower()
            port = split.port or _DEFAULT_PORTS.get(scheme, 22)
            return scheme, (split.hostname or "").rstrip("."), port
        except ValueError:
            return "", "", 0
    scp = _SCP_FORM.fullmatch(url)
    if scp and not url.startswith(("/", ".", "~")) and "::" not in url:
        return "ssh", scp.group(1).strip("[]").lower().rstrip("."), 22
    return ("", "", 0) if "::" in url else ("file", "", 0)


def _is_allowed(policy: SourcePolicy, host: str) -> bool:
    return any(
        host == allowed or (allowed.startswith(".") and host.endswith(allowed))
        for allowed in policy.hosts
    )


class SourceGate:
    """Says where one fetch may go. Used by one thread.

    A name is looked up once. Git is told to connect to what was found then (``pin``): whoever owns
    the name can't answer differently a second time.

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

    def pin(self, url: str) -> tuple[str, str] | None:
        """The setting of git for a URL whose host was allowed: see `pinned`."""
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
