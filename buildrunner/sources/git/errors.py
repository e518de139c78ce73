"""Converts git's messages to one clear sentence each, and decides whether a retry may help.

Git has one exit code for everything, so only its messages (in the C locale) show the cause.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from buildrunner.errors import SourceError

Kind = Literal[
    "network",
    "auth",
    "missing",
    "host_key",
    "disk",
    "unknown_ref",
    "not_advertised",
    "no_depth",
    "lfs",
    "refused",
    "too_large",
    "stalled",
    "cancelled",
    "other",
]

TRANSIENT: frozenset[Kind] = frozenset({"network", "stalled"})
"""Kinds for which a retry may help."""

REMOTE: frozenset[Kind] = frozenset(
    {"network", "auth", "missing", "host_key", "unknown_ref", "not_advertised", "stalled", "lfs"}
)
"""Kinds that don't concern the local files."""

_TAIL_CHARACTERS = 400
# Lines that git adds after the error of a program that it has started (ssh).
_TRAILERS = (
    "Could not read from remote repository.",
    "Please make sure you have the correct access rights",
    "and the repository exists.",
)
_SUBMODULE = re.compile(r"clone of '([^']+)' into submodule path")

_ASKING = re.compile(r"could not read \w+ for '\w+://(?:[^/@']*@)?([^/']+)")
_FETCHED = re.compile(r"Fetched in submodule path '([^']+)', but it did not contain")


class GitFailed(SourceError):
    """One git command failed.

    Attributes:
        kind: the kind of the failure, for the caller's decision.
    """

    def __init__(self, message: str, *, kind: Kind, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind: Kind = kind


class _Meaning(msgspec.Struct, frozen=True):
    pattern: str
    kind: Kind
    sentence: str
    hint: str = ""


# The first match counts. Specific ones come first, since git ends many failures with
# general words ("Could not read from remote repository").
_MEANINGS: tuple[_Meaning, ...] = (
    _Meaning(
        r"No space left on device|Disk quota exceeded",
        "disk",
        "there is no space left on the disk for {url}",
        "make room, or lower the quota of the Git cache",
    ),
    _Meaning(
        r"invalid path '|fsck error|error: object .*: \w+: |refusing to create",
        "refused",
        "{url} holds names or objects that could harm this machine",
        "look at the commit with `git fsck`",
    ),
    _Meaning(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "host_key",
        "the host key of {host} is not the one that is known: someone may be in between",
        "ask the host's owner; if the key has changed on purpose, remove the old one with "
        "`ssh-keygen -R HOST`",
    ),
    _Meaning(
        r"Host key verification failed|host key is known for|No .* host key is known",
        "host_key",
        "the host key of {host} is not known, and no host is trusted unseen",
        "check its fingerprint with the host's owner, then put it into [git.host_keys] of the "
        "settings, or add the key: `ssh-keyscan {port}{host} >> ~/.ssh/known_hosts`",
    ),
    _Meaning(
        r"UNPROTECTED PRIVATE KEY FILE",
        "auth",
        "ssh does not use the private key for {host}, because others may read its file",
        "`chmod 600` it",
    ),
    _Meaning(
        r"Permission denied \(|Too many authentication failures|Load key .*(?:invalid|denied)",
        "auth",
        "{host} refused our SSH key for {url}",
        "check that the key belongs to an account that may read the repository",
    ),
    _Meaning(
        r"could not read Username|could not read Password",
        "auth",
        "{url} asks for credentials, and there are none that it takes",
        "set up a token, a netrc entry or a Git credential helper for {host}{plain}; some hosts "
        "answer the same for a repository that doesn't exist",
    ),
    _Meaning(
        r"Authentication failed|HTTP Basic: Access denied|returned error: 401",
        "auth",
        "{host} refused our credentials for {url} (401)",
        "check the token or password for {host}",
    ),
    _Meaning(
        r"returned error: 403|remote: .*(?:Forbidden|access denied)",
        "auth",
        "{host} denies access to {url} (403)",
        "check what the token or account may read",
    ),
    _Meaning(
        r"returned error: (?:404|410)|[Rr]epository .*not found|does not appear to be a git "
        r"repository|access denied or repository not exported|not a git repository: |"
        # ssh hosts have their own messages for it
        r"DENIED by |[Pp]roject .*could not be found|[Rr]epository .*does not exist|"
        r"project \S+ not found|Cannot find repository|is not authorized to read",
        "missing",
        "there is no Git repository at {url}, or we may not see it",
        "check the URL, and the credentials when it is private",
    ),
    _Meaning(
        r"transport '[^']*' not allowed",
        "refused",
        "{url} needs a Git protocol that is not allowed",
        "use https, ssh or git URLs, also for submodules",
    ),
    _Meaning(
        r"unable to update url base from redirection|Maximum \(\d+\) redirects|redirects? followed",
        "refused",
        "{url} redirects to another place, which is not followed",
        "give the final URL",
    ),
    _Meaning(
        r"SSL certificate|certificate verif|server verification failed|SSL: no alternative",
        "refused",
        "the TLS certificate of {host} can't be trusted",
        "add the authority's certificate to the system, or set GIT_SSL_CAINFO",
    ),
    _Meaning(
        r"dubious ownership",
        "refused",
        "the repository {url} belongs to another user",
        "allow it with `git config --global --add safe.directory {folder}`",
    ),
    _Meaning(
        r"dumb http transport does not support|does not support shallow",
        "no_depth",
        "{url} can't give out a part of its history",
    ),
    _Meaning(
        r"not our ref|unadvertised object|want \w+ not valid|did not send all "
        r"necessary objects",
        "not_advertised",
        "{url} does not give out the commit",
    ),
    _Meaning(
        r"couldn't find remote ref|Couldn't find remote ref",
        "unknown_ref",
        "{url} has no such revision",
    ),
    _Meaning(
        r"CONNECT tunnel failed, response 40[^8]|from proxy after CONNECT|Proxy CONNECT aborted",
        "refused",
        "the proxy does not let us through to {host} for {url}",
        "check https_proxy and http.proxy of the Git settings, and the login that the proxy wants",
    ),
    _Meaning(
        r"returned error: (?:429|5\d\d)",
        "network",
        "{host} is too busy or broken to give out {url}",
        "try again later, or ask who runs it",
    ),
    _Meaning(
        r"Could not resolve|Connection (?:refused|timed out|reset|"
        r"closed)|unable to connect|Failed to connect|Couldn't connect|early EOF|unexpected "
        r"disconnect|hung up|RPC failed|transfer closed|Operation (?:too slow|timed out)|"
        r"kex_exchange_identification|Network is unreachable|No route to host|Broken pipe|"
        r"Empty reply|invalid index-pack output|timed out|GnuTLS recv|"
        r"unable to look up|expected flush|bad line length|gnutls_handshake|SSL_connect|"
        r"curl \d+|HTTP/2 stream",
        "network",
        "the connection to {host} failed while fetching {url}",
        "check the network and the URL's host",
    ),
    # A plain web server's repository: this message follows the cause, if there is one.
    _Meaning(
        r"Unable to find \w+ under|Cannot obtain needed object",
        "not_advertised",
        "{url} does not give out the commit",
    ),
)


def explain(stderr: str, *, url: str, host: str, secrets: tuple[str, ...] = ()) -> GitFailed:
    """Return the error for git's output.

    Args:
        stderr: git's standard error.
        url: the repository, without credentials.
        host: its host; empty for files.
        secrets: values that must not be shown, even if git repeats them.
    """
    shown = _scrubbed(stderr, secrets)
    submodule = _SUBMODULE.search(shown)
    if submodule:
        url = submodule[1]
        host = re.sub(r"^\w+://|[:/].*", "", url)
    place = host or "this machine"
    if lfs := lfs_failure(shown):
        sentence = lfs.sentence.format(url=url, host=place)
        return GitFailed(f"{sentence} ({lfs.reason})", kind=lfs.kind, hint=lfs.hint)
    for meaning in _MEANINGS:
        if re.search(meaning.pattern, shown):
            sentence = meaning.sentence.format(url=url, host=place)
            if fetched := _FETCHED.search(shown):
                sentence += f" of its submodule {fetched[1]}"
            if meaning.kind in ("network", "refused", "missing"):
                sentence += _reason(shown)
            asking = _ASKING.search(shown)
            if asking and asking[1] not in url:  # a redirect, or the user's ``insteadOf``
                place = asking[1]
                sentence += f" ({place} asks)"
            hint = meaning.hint.format(
                host=place, url=url, port=_port(url), plain=_plain(url), folder=_folder(shown)
            )
            if meaning.kind == "missing" and not host:  # users forget https:// easily
                hint = "check the path; a repository of another machine has a URL, https://..."
            return GitFailed(sentence, kind=meaning.kind, hint=hint)
    return GitFailed(f"git failed on {url}{_reason(shown)}", kind="other")


def _port(url: str) -> str:
    """Return the ``ssh-keyscan`` flag for the URL's port and a space, or an empty string."""
    port = re.match(r"(?:git\+)?ssh(?:\+git)?://[^/]*:(\d+)(?:/|$)", url)
    return f"-p {port[1]} " if port else ""


def _folder(stderr: str) -> str:
    """Return the folder that git does not trust."""
    from shlex import quote

    found = re.search(r"dubious ownership in repository at '(.+)'", stderr)
    return quote(found[1]) if found else "FOLDER"


def _plain(url: str) -> str:
    """Return a hint for a server without TLS: the key of its token must begin with http://."""
    return " (one in [git.tokens] must begin with http://)" * url.startswith("http://")


def _scrubbed(stderr: str, secrets: tuple[str, ...]) -> str:
    from urllib.parse import quote

    for secret in secrets:
        for form in {secret, quote(secret, safe=""), quote(secret)}:
            stderr = stderr.replace(form, "***")
    return re.sub(r"(\w+://)[^/@\s']+@", r"\1", stderr)


def _reason(stderr: str) -> str:
    """Return the line with the cause: "RPC failed", the last "fatal:" or "error:", or the last."""
    stripped = (line.strip().removeprefix("remote:").strip() for line in stderr.splitlines())
    lines = [
        line
        for line in stripped
        if line.strip("=-") and not line.endswith(_TRAILERS) and not _SUBMODULE.search(line)
    ]
    if not lines:
        return ""
    telling = [line for line in lines if line.lower().startswith(("fatal:", "error:"))] or lines
    # After a failed exchange, git only adds that the connection ended.
    telling = [line for line in telling if "RPC failed" in line] or telling
    line = telling[-1]
    if line.endswith("redirection:"):
        line = " ".join([line, *lines[lines.index(line) + 1 :]])
    line = line[:_TAIL_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return f" ({re.sub(r'(?i)^(fatal|error): ', '', line)})"


_SAID = re.compile(
    r"Smudge error: (?:Error downloading (?P<name>.+) \([0-9a-f]{64}\): )?(?P<why>.+)"
)
_FILE = re.compile(r"fatal: (?P<name>.+): smudge filter lfs failed")
_TAIL_CHARACTERS_GIT_LFS_ERRORS = 200


class LfsFailure(msgspec.Struct, frozen=True):
    """The reason why files of Git LFS are missing.

    Attributes:
        kind: see `Kind`.
        sentence: the message, with the placeholders ``{url}`` and ``{host}``.
        hint: advice.
        reason: the file, and the message of Git LFS.
    """

    kind: Kind
    sentence: str
    hint: str
    reason: str


_BUSY = "{host} did not give out the Git LFS files of {url}"
_LATER = "try again later, or fetch without LFS"

# The first match counts.
_MEANINGS_GIT_LFS_ERRORS: tuple[tuple[str, Kind, str, str], ...] = (
    (
        r"no space left on device|disk quota exceeded",
        "disk",
        "there is no space left on the disk for the Git LFS files of {url}",
        "make room, or fetch without LFS",
    ),
    (
        r"authorization error|authentication required|credentials for .* not found|access denied",
        "auth",
        "{host} denies access to the Git LFS files of {url}",
        "check what the token or account may read",
    ),
    (
        r"not found|does not exist",
        "lfs",
        "{url} has files of Git LFS that {host} does not have, or we may not see them",
        "push them with `git lfs push --all`, or fetch without LFS",
    ),
    (
        r"expected oid",
        "network",
        "a Git LFS file of {url} did not arrive as it was committed",
        "push it again with `git lfs push --all`, or fetch without LFS",
    ),
    (r"http (?:429|5\d\d)|server error|batch response: lfs: error", "network", _BUSY, _LATER),
    (
        r"unexpected eof|dial tcp|connection re|timeout|timed out|broken pipe|no such host|reset",
        "network",
        _BUSY,
        "check the network",
    ),
)
_OTHERWISE: tuple[Kind, str, str] = ("lfs", _BUSY, "check the LFS server, or fetch without LFS")


def lfs_failure(stderr: str) -> LfsFailure | None:
    """Return the failure of Git LFS; None if it did not stop git.

    Args:
        stderr: git's standard error.
    """
    file = _FILE.search(stderr)
    if file is None:
        return None
    said = _SAID.search(stderr)
    why = said["why"] if said else "it gives no reason"
    name = (said and said["name"]) or file["name"]
    reason = f"{name}: {_short(why)}".encode("utf-8", "backslashreplace").decode()
    for pattern, kind, sentence, hint in _MEANINGS_GIT_LFS_ERRORS:
        if re.search(pattern, why, re.IGNORECASE):
            return LfsFailure(kind, sentence, hint, reason)
    return LfsFailure(*_OTHERWISE, reason)


def _short(why: str) -> str:
    """Return the end of the message, after names of temporary files and Go's form of a URL."""
    status = re.search(r"from (HTTP \d{3})", why)
    return (status[1] if status else why.rpartition("LFS: ")[2])[:_TAIL_CHARACTERS_GIT_LFS_ERRORS]
