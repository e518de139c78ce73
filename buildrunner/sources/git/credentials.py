"""How we say who we are to a Git host, and how the host proves who it is."""

from __future__ import annotations

import re
import shlex

import msgspec

from buildrunner.errors import SourceError
from buildrunner.sources.git.url import GitUrl

_DEFAULT_USER = "x-access-token"  # with a token, hosts take any name
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")

# git asks this with the word "get"; "store" and "erase" are not answered. The values come by the
# environment, so that they are in no argv and in no file.
_HELPER = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
    '"$BUILDRUNNER_GIT_USERNAME" "$BUILDRUNNER_GIT_PASSWORD"; }; f'
)


class GitCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """What was given for one repository. Without it git finds its own: netrc, helpers, ssh agent.

    Attributes:
        username: user for https; may be empty with a token.
        password: password or token for https; empty: none.
        ssh_key: path of a private key; empty: those of the ssh configuration and agent.
        known_hosts: path of a file of host keys, in addition to the user's and the system's.
        host_fingerprints: ``SHA256:...`` of host keys that are trusted, too.
    """

    username: str = ""
    password: str = ""
    ssh_key: str = ""
    known_hosts: str = ""
    host_fingerprints: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "GitCredentials(...)"


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials in the form in which git takes them.

    Attributes:
        config: Git settings, the later ones win.
        environment: variables for git.
        secrets: what must not be shown.
    """

    config: tuple[tuple[str, str], ...]
    environment: dict[str, str]
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        return "Access(...)"


def access_to(url: GitUrl, credentials: GitCredentials | None) -> Access:
    """What git needs to reach ``url``.

    A password is bound to the URL's scheme, host and port: a submodule or LFS server elsewhere, or
    a redirection, never gets it. Nor do the user's own credential helpers, which would store it.

    Raises:
        SourceError: a fingerprint is not one.
    """
    credentials = credentials or GitCredentials()
    config: list[tuple[str, str]] = []
    environment = {"GIT_SSH_COMMAND": _ssh_command(credentials), "GIT_SSH_VARIANT": "ssh"}
    username = credentials.username or url.username
    password = credentials.password or url.password
    if url.origin and password:
        config += [
            (f"credential.{url.origin}.helper", ""),  # forget the user's own
            (f"credential.{url.origin}.helper", _HELPER),
        ]
        environment["BUILDRUNNER_GIT_USERNAME"] = username or _DEFAULT_USER
        environment["BUILDRUNNER_GIT_PASSWORD"] = password
    elif url.origin and username:
        config.append((f"credential.{url.origin}.username", username))
    secrets = tuple({secret for secret in (password, url.password) if secret})
    return Access(config=tuple(config), environment=environment, secrets=secrets)


def _ssh_command(credentials: GitCredentials) -> str:
    """OpenSSH that never asks and never trusts a host it does not know."""
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
    return shlex.join(["ssh", *(part for option in options for part in ("-o", option))])


def _ssh_word(path: str) -> str:
    """A path as one word of an ssh option; ``%`` starts a token there."""
    escaped = path.replace("%", "%%").replace('"', '\\"')
    return f'"{escaped}"'


def _pin_command(fingerprints: tuple[str, ...]) -> str:
    """A command that tells ssh to know the host key it was shown when its fingerprint is pinned."""
    for fingerprint in fingerprints:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise SourceError(
                f"{fingerprint!r} is not the fingerprint of a host key",
                hint="it looks like SHA256:... with 43 characters, as ssh-keygen -lf prints it",
            )
    pinned = " ".join(fingerprint.rstrip("=") for fingerprint in fingerprints)
    script = f'case " {pinned} " in *" $1 "*) echo "$2 $3 $4";; esac'
    return f"/bin/sh -c '{script}' sh %f %H %t %K"
