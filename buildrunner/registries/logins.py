"""Logins in an untrusted Docker config, which the steps of a build wrote."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterable, Mapping

import msgspec

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.errors import PackageError

_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io")


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = msgspec.field(name="identitytoken", default="")


class _Config(msgspec.Struct):
    auths: dict[str, _Entry | None] | None = None  # null means none, as in Go
    store: str | None = msgspec.field(name="credsStore", default=None)
    helpers: dict[str, str] | None = msgspec.field(name="credHelpers", default=None)


class DockerLogins:
    """The logins of one config, by registry. Empty without arguments.

    Args:
        logins: registry (``docker.io``, ``host:port``) -> login.
        helpers: registry -> name of a credential helper.
        store: name of the credential helper for all other registries; empty for none.
        fault: why the config can't be used; empty if it can.
    """

    def __init__(
        self,
        logins: dict[str, RegistryLogin] | None = None,
        helpers: dict[str, str] | None = None,
        store: str = "",
        fault: str = "",
    ) -> None:
        self._logins = logins or {}
        self._helpers = helpers or {}
        self._store = store
        self._fault = fault

    def login_for(self, image: str) -> RegistryLogin | None:
        """Return the login for the registry of ``image``, or None."""
        return self._logins.get(ImageName.parse(image).registry)

    def warnings_for(self, images: Iterable[str]) -> list[str]:
        """Return the parts of the config that can't be honoured for pushing ``images``."""
        if self._fault:
            return [f"the steps' ~/.docker/config.json is not used: {self._fault}"]
        registries = dict.fromkeys(ImageName.parse(image).registry for image in images)
        return [
            f"the steps' ~/.docker/config.json names the credential helper {helper} for "
            f"{registry}, which runs in steps only: the push uses your own login"
            for registry in registries
            if registry not in self._logins and (helper := self._helper(registry))
        ]

    def _helper(self, registry: str) -> str:
        helper = self._helpers.get(registry) or self._store
        return f"docker-credential-{helper}" if helper else ""


def parse_docker_config(data: bytes) -> DockerLogins:
    """Return the logins in a ``config.json``. Invalid content yields no logins, and a warning."""
    try:
        config = msgspec.json.decode(data, type=_Config)
        logins = {
            _registry(name): _login(entry)
            for name, entry in (config.auths or {}).items()
            if entry and (entry.auth or entry.username or entry.identity_token)
        }
    except (msgspec.DecodeError, RecursionError, binascii.Error, UnicodeDecodeError):
        # The error may quote the undecodable text, and so a password.
        return DockerLogins(fault="it is no valid Docker config")
    helpers = {_registry(name): helper for name, helper in (config.helpers or {}).items()}
    return DockerLogins(logins, helpers, config.store or "")


def _login(entry: _Entry) -> RegistryLogin:
    if entry.identity_token:
        return RegistryLogin(identity_token=entry.identity_token)
    if not entry.auth:
        return RegistryLogin(username=entry.username, password=entry.password)
    auth = "".join(entry.auth.split())  # `base64` breaks lines
    username, _, password = b64decode(auth, validate=True).decode().partition(":")
    return RegistryLogin(username=username, password=password.rstrip("\0"))


def _registry(name: str) -> str:
    """Return the registry of an entry, which may be a URL with scheme and path."""
    host = name.partition("://")[2] or name
    host = host.partition("/")[0]
    return "docker.io" if host in _DOCKER_HUB else host


_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def trusted_authorities(environ: Mapping[str, str]) -> bytes:
    """Return the bundle of ``SSL_CERT_FILE``, else the system's; empty if there is none.

    Raises:
        PackageError: the named file can't be read.
    """
    named = environ.get("SSL_CERT_FILE", "")
    for path in (named, *_BUNDLES):
        if not path:
            continue
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            if path == named:
                raise PackageError(
                    f"{path} can't be read: {error.strerror or error}",
                    hint="SSL_CERT_FILE names it: correct or unset that",
                ) from error
    return b""
