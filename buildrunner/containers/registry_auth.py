"""Credentials for registries: what ``docker login`` and the credential helpers know.

docker-py does the reading (auths, credsStore, credHelpers, identity tokens), and is imported only
when the Docker config has any of these: most machines of public images have none.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.containers.endpoint import docker_config_dir
from buildrunner.errors import CredentialsError

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from buildrunner.containers.engine_types import RegistryLogin

ANONYMOUS = base64.urlsafe_b64encode(b"{}").decode()


class _DockerConfig(msgspec.Struct):
    auths: dict[str, msgspec.Raw] | None = None  # as in Go, null is none
    store: str | None = msgspec.field(name="credsStore", default=None)
    helpers: dict[str, str] | None = msgspec.field(name="credHelpers", default=None)


def registry_auth_header(
    registry: str, environ: Mapping[str, str], cancel: threading.Event | None = None
) -> str:
    """The ``X-Registry-Auth`` header for ``registry`` (``docker.io``, ``host:port``, ...).

    Args:
        registry: whose login is wanted.
        environ: where the Docker config is.
        cancel: ends a credential helper when set.

    Raises:
        Stopped: ``cancel`` was set meanwhile.
        CredentialsError: the Docker config is broken, or a credential helper failed. No secret is
            in the message.
    """
    path = os.path.join(docker_config_dir(environ), "config.json")
    try:
        with open(path, "rb") as file:
            config = msgspec.json.decode(file.read(), type=_DockerConfig)
    except FileNotFoundError:
        return ANONYMOUS
    except (OSError, msgspec.DecodeError) as error:
        raise CredentialsError(
            f"the Docker config {path} can't be read: {error}", hint="Correct or remove it."
        ) from error
    if not (config.auths or config.store or config.helpers):
        return ANONYMOUS
    helper = (config.helpers or {}).get(registry) or config.store or ""
    return _resolved(path, registry, helper, cancel)


def login_header(login: RegistryLogin) -> str:
    """The ``X-Registry-Auth`` header for a login that is at hand."""
    if login.identity_token:
        found = {"identitytoken": login.identity_token}
    else:
        found = {"username": login.username, "password": login.password}
    return base64.urlsafe_b64encode(msgspec.json.encode(found)).decode()


def _resolved(path: str, registry: str, helper: str, cancel: threading.Event | None) -> str:
    import shutil

    from docker import auth
    from docker.errors import DockerException

    program = f"docker-credential-{helper}"
    if helper and shutil.which(program) is None:
        raise CredentialsError(
            f"{path} names the credential helper {program}, which is not on the PATH",
            hint=f"Install it, or take it out of {path} and run: docker login {registry}",
        )
    try:
        config: Any = auth.load_config(config_path=path)
        if helper:
            from buildrunner.containers.credential_helper import PatientStore

            # Where the library keeps those that it has asked before; there is no other way in.
            config._stores[helper] = PatientStore(helper, cancel)  # noqa: SLF001
        found = config.resolve_authconfig(registry)
    except (DockerException, ValueError, LookupError, TypeError, AttributeError):
        # The error's text may hold what the helper wrote, and so a secret. What is in the config
        # is not checked by the library: it stumbles over it.
        reason = f"{program} failed" if helper else f"an entry of {path} is no login"
        raise CredentialsError(
            f"the credentials for {registry} can't be had: {reason}",
            hint=f"Try {helper and program + ' by hand, or '}docker login {registry}",
        ) from None
    if not found:
        return ANONYMOUS
    return str(auth.encode_header(found).decode())
