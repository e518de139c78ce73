"""Credentials for Git hosts, and the verification of hosts."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import Final

import msgspec

from buildrunner.errors import SourceError
from buildrunner.sources.git.url import GitUrl

_DEFAULT_USER = "x-access-token"  # with a token, hosts accept any name
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")

# git calls this with "get"; "store" and "erase" are ignored. The values are in the
# environment, so that they are in no argv and no file. The first login whose path fits counts,
# also one without a password: then there is none.
_HELPER = r"""!f() {
  test "$1" = get || return
  path= fits=
  while IFS= read -r line; do
    case $line in path=*) path=${line#path=} ;; esac
  done
  n=0
  while test $n -lt "$BUILDRUNNER_GIT_LOGINS"; do
    eval "below=\$BUILDRUNNER_GIT_PATH_$n"
    case $path in
      "$below" | "$below"/* | "$below".git | "$below".git/*) fits=yes ;;
      *) test -n "$below" || fits=yes ;;
    esac
    if test "$fits"; then
      eval "test \"\$BUILDRUNNER_GIT_PASSWORD_$n\"" || return
      eval "printf 'username=%s\npassword=%s\n' \
        \"\$BUILDRUNNER_GIT_USERNAME_$n\" \"\$BUILDRUNNER_GIT_PASSWORD_$n\""
      return
    fi
    n=$((n + 1))
  done
}; f"""


class GitLogin(msgspec.Struct, frozen=True, kw_only=True):
    """A password for https, and what it counts for.

    Attributes:
        path: the repository, or the folder of repositories, on the host; empty for all.
        username: the user; may be empty with a token.
        password: password or token; empty if it is not known here: then nothing is sent.
    """

    path: str = ""
    username: str = ""
    password: str

    def __repr__(self) -> str:
        return "GitLogin(...)"


class GitCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials for one repository. Without them git uses the user's: netrc, helpers, ssh agent.

    Attributes:
        logins: the logins of the host for https, the longest path first. Submodules and LFS servers
            on the same host get the one for their own path.
        ssh_key: path of a private key; empty: those of the ssh configuration and agent.
        known_hosts: path of a file of host keys, in addition to the user's and the system's.
        host_fingerprints: ``SHA256:...`` of host keys that are trusted, too.
    """

    logins: tuple[GitLogin, ...] = ()
    ssh_key: str = ""
    known_hosts: str = ""
    host_fingerprints: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "GitCredentials(...)"


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials as settings and environment variables of git.

    Attributes:
        config: Git settings; later ones win.
        environment: variables for git.
        secrets: values that must not be shown.
    """

    config: tuple[tuple[str, str], ...]
    environment: dict[str, str]
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        return "Access(...)"


def access_to(url: GitUrl, credentials: GitCredentials | None) -> Access:
    """Return the settings with which git reaches ``url``.

    A password is bound to the URL's scheme, host and port, and to the path of its login: a
    submodule or LFS server elsewhere, or a redirection, never gets it. Nor do the user's own
    credential helpers, which would store it.

    Raises:
        SourceError: a fingerprint is invalid.
    """
    credentials = credentials or GitCredentials()
    config: list[tuple[str, str]] = []
    environment = {"GIT_SSH_COMMAND": _ssh_command(credentials), "GIT_SSH_VARIANT": "ssh"}
    logins = credentials.logins if any(one.password for one in credentials.logins) else ()
    if url.password and not logins:
        logins = (GitLogin(username=url.username, password=url.password),)
    if url.origin and logins:
        config += [
            (f"credential.{url.origin}.helper", ""),  # drop the user's own helpers
            (f"credential.{url.origin}.helper", _HELPER),
            (f"credential.{url.origin}.useHttpPath", "true"),
        ]
        environment["BUILDRUNNER_GIT_LOGINS"] = str(len(logins))
        for number, login in enumerate(logins):
            user = login.username or url.username or _DEFAULT_USER
            environment[f"BUILDRUNNER_GIT_PATH_{number}"] = login.path
            environment[f"BUILDRUNNER_GIT_USERNAME_{number}"] = user
            environment[f"BUILDRUNNER_GIT_PASSWORD_{number}"] = login.password
    elif url.origin and url.username:
        config.append((f"credential.{url.origin}.username", url.username))
    secrets = tuple(({login.password for login in logins} | {url.password}) - {""})
    return Access(config=tuple(config), environment=environment, secrets=secrets)


SSH_ADDRESSES: Final = "BUILDRUNNER_SSH_ADDRESSES"
"""Variable with the hosts that ssh may reach: ``HOST=ADDRESS``, separated by spaces.

``HOST=`` permits a host at any address. Without the variable, all hosts are permitted.
"""

# Git appends options, the host and a command. The host's key is looked up by the host's name.
# If the user's own configuration gives the host another name, ssh connects to that name.
_SSH_SCRIPT = f"""
port=22
for word; do
  [ "$last" != -p ] || port=$word
  host=$last last=$word
done
destination=$host
case $destination in -*) echo "no host is called $destination" >&2; exit 1;; esac
host=$(printf %s "${{host##*@}}" | tr A-Z a-z)
[ -n "${{{SSH_ADDRESSES}+limited}}" ] || exec ssh "$@"
for known in ${SSH_ADDRESSES}; do
  [ "${{known%%=*}}" = "$host" ] || continue
  address=${{known#*=}}
  named=$(ssh -G "$destination" | sed -n "s/^hostname //p" | tr A-Z a-z)
  [ -n "$address" ] && [ "$named" = "$host" ] || exec ssh "$@"
  [ "$port" = 22 ] || host="[$host]:$port"
  exec ssh -o "HostName=$address" -o "HostKeyAlias=$host" "$@"
done
echo "ssh to $host is not allowed: the source names no such host" >&2
exit 1
"""


def _ssh_command(credentials: GitCredentials) -> str:
    """Return an OpenSSH command that never prompts and never trusts unknown hosts."""
    options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "ControlMaster=no",
        "ForwardAgent=no",
        "ForwardX11=no",
        "PermitLocalCommand=no",
        "ConnectTimeout=30",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
    ]
    if credentials.ssh_key:
        options += [f"IdentityFile={_ssh_word(credentials.ssh_key)}", "IdentitiesOnly=yes"]
    if credentials.known_hosts:
        files = ["~/.ssh/known_hosts", "~/.ssh/known_hosts2", _ssh_word(credentials.known_hosts)]
        options.append(f"UserKnownHostsFile={' '.join(files)}")
    if credentials.host_fingerprints:
        options.append(f"KnownHostsCommand={_pin_command(credentials.host_fingerprints)}")
    given = [part for option in options for part in ("-o", option)]
    return shlex.join(["sh", "-c", _SSH_SCRIPT, "ssh", *given])


def _ssh_word(path: str) -> str:
    """Return a path as one word of an ssh option, in which ``%`` starts a token."""
    escaped = path.replace("%", "%%").replace('"', '\\"')
    return f'"{escaped}"'


def _pin_command(fingerprints: tuple[str, ...]) -> str:
    """Return a command by which ssh accepts a host key with a pinned fingerprint."""
    for fingerprint in fingerprints:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise SourceError(
                f"{fingerprint!r} is not the fingerprint of a host key",
                hint="it looks like SHA256:... with 43 characters, as ssh-keygen -lf prints it",
            )
    pinned = " ".join(fingerprint.rstrip("=") for fingerprint in fingerprints)
    script = f'case " {pinned} " in *" $1 "*) echo "$2 $3 $4";; esac'
    return f"/bin/sh -c '{script}' sh %f %H %t %K"


class GitAccess(msgspec.Struct, frozen=True, kw_only=True):
    """The settings for Git hosts.

    Keys name a host, optionally with more: ``git.example.com``, ``git.example.com:8443``,
    ``git.example.com/team`` (all below it), ``ci@git.example.com`` (user name for https). They
    apply to https and ssh; plain http must be explicit: ``http://localhost:8080``. The longest
    match wins. A key with a path counts for that path only, also in submodules.

    Attributes:
        tokens: places of passwords or tokens for https: ``env:NAME`` or ``file:PATH``.
        ssh_keys: paths of private keys.
        known_hosts: path of a file of host keys, in addition to the user's and the system's.
        host_keys: fingerprints of ssh host keys that are trusted, separated by spaces.
    """

    tokens: dict[str, str] = {}
    ssh_keys: dict[str, str] = {}
    known_hosts: str = ""
    host_keys: dict[str, str] = {}


def credentials_for(
    url: GitUrl, access: GitAccess, environ: Mapping[str, str]
) -> GitCredentials | None:
    """Return the credentials for a repository; None lets git use the user's.

    Raises:
        SourceError: a token or key of the settings is missing.
    """
    if url.transport in ("https", "http"):
        key = _best(url, access.tokens)
        if key is None:
            return None
        logins = [_login(key, access.tokens[key], environ)]
        for other in access.tokens.keys() - {key}:
            if _host_of(other) == _host_of(key):
                # Only a submodule may need it, so it may lack its value. It never gets that of a
                # shorter key.
                try:
                    login = _login(other, access.tokens[other], environ)
                except SourceError:
                    login = GitLogin(path=_path_of(other), password="")
                logins.append(login)
        return GitCredentials(
            logins=tuple(sorted(logins, key=lambda one: len(one.path), reverse=True))
        )
    if url.transport == "ssh":
        ssh_key, host_key = _best(url, access.ssh_keys), _best(url, access.host_keys)
        if ssh_key is None and host_key is None and not access.known_hosts:
            return None
        if ssh_key is not None:
            _check_readable(access.ssh_keys[ssh_key], ssh_key)
        return GitCredentials(
            ssh_key=access.ssh_keys[ssh_key] if ssh_key is not None else "",
            known_hosts=access.known_hosts,
            host_fingerprints=tuple(access.host_keys[host_key].split()) if host_key else (),
        )
    return None


def _login(key: str, source: str, environ: Mapping[str, str]) -> GitLogin:
    """Return the login of a key of `GitAccess.tokens`."""
    user = key.partition("://")[2] or key
    username = user.rpartition("@")[0] if "@" in user.partition("/")[0] else ""
    return GitLogin(path=_path_of(key), username=username, password=_value(source, environ, key))


def _path_of(key: str) -> str:
    return _normal(key).rpartition("://")[2].partition("/")[2]


def _check_readable(path: str, key: str) -> None:
    """Check the key file: without it, ssh continues, and the host's refusal is misleading."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise SourceError(
            f"the ssh key for {key} can't be read from {path}: {error.strerror}",
            hint="change [git.ssh_keys] of the settings",
        ) from error


def _best(url: GitUrl, keys: Mapping[str, str]) -> str | None:
    """Return the longest key that matches the repository."""
    target = f"{_place(url)}/{url.path}"
    found = [key for key in keys if _fits(_normal(key), target)]
    return max(found, key=lambda key: len(_normal(key)), default=None)


def _fits(key: str, target: str) -> bool:
    return target == key or target.startswith(f"{key}/") or target == f"{key}.git"


def _normal(key: str) -> str:
    """Return the key without the user and without default schemes."""
    scheme, mark, rest = key.rpartition("://")
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2].lower()
    start = f"{scheme}{mark}" if scheme == "http" else ""
    return f"{start}{host}{slash}{path}".rstrip("/")


def _host_of(key: str) -> str:
    """Return the host of a key, with the scheme for http."""
    scheme, mark, rest = _normal(key).rpartition("://")
    return f"{scheme}{mark}{rest.partition('/')[0]}"


def _place(url: GitUrl) -> str:
    """Return host and port in the form of keys, with the scheme for http."""
    if url.origin:
        return url.origin.removeprefix("https://")
    if "://" not in url.text:
        return url.host
    authority = url.text.partition("://")[2].partition("/")[0]
    return authority.rpartition("@")[2].lower()


def _value(source: str, environ: Mapping[str, str], key: str) -> str:
    kind, _, name = source.partition(":")
    if kind == "env":
        value = environ.get(name, "")
        if not value:
            raise SourceError(
                f"the token for {key} should be in the environment variable {name}, which is empty",
                hint="set it, or change [git.tokens] of the settings",
            )
        return value
    try:
        with open(os.path.expanduser(name), encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SourceError(
            f"the token for {key} can't be read from {name}: {reason}",
            hint="change [git.tokens] of the settings",
        ) from error
