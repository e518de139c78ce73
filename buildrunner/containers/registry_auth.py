"""Credentials for registries: what ``docker login`` and the credential helpers know.

docker-py does the reading (auths, credsStore, credHelpers, identity tokens), and is imported only
when the Docker config has any of these: most machines of public images have none.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from docker.credentials import Store
from docker.credentials.errors import process_store_error

from buildrunner.containers.docker.endpoint import docker_config_dir
from buildrunner.containers.docker.http import Stopped
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.types import RegistryLogin
from buildrunner.errors import CredentialsError

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


_LIMIT_S = 60.0
_LOOK_S = 0.1


class PatientStore(Store):
    """docker-py's helper, which docker-py itself would wait for without end.

    Args:
        program: the helper's name.
        cancel: ends the helper when set, with `Stopped`.
    """

    def __init__(self, program: str, cancel: threading.Event | None) -> None:
        super().__init__(program)
        self._cancel = cancel

    def _execute(self, subcmd: str, data_input: bytes) -> bytes:
        """See `docker.credentials.Store`: what the helper prints."""
        argv = [str(self.exe), subcmd]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            try:
                output = self._output(process, data_input)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode:
            error = subprocess.CalledProcessError(process.returncode, argv, output)
            raise process_store_error(error, self.program)
        return output

    def _output(self, process: Any, data_input: bytes) -> bytes:
        until = time.monotonic() + _LIMIT_S
        waiting: bytes | None = data_input
        while True:
            try:
                output: bytes = process.communicate(waiting, timeout=_LOOK_S)[0]
            except subprocess.TimeoutExpired:
                waiting = None  # it is on its way
            else:
                return output
            if self._cancel is not None and self._cancel.is_set():
                raise Stopped
            if time.monotonic() > until:
                raise CredentialsError(
                    f"the credential helper {self.program} did not answer in {_LIMIT_S:g} s",
                    hint=f"try it by hand: {self.program} get",
                )


_DOCKER_HUB = "https://index.docker.io/v1/"


def step_docker_config(environ: Mapping[str, str], images: Iterable[str]) -> bytes | None:
    """The ``config.json`` that steps get; None when the user has no login that fits.

    A config that can't be read, and a helper that fails, give no credentials: whether any are
    needed is for the step to find out, and pulls and pushes of ours report it by themselves.

    Args:
        environ: where the user's Docker config is.
        images: the images that the build names; the logins of their registries are given.
    """
    auths = {}
    for registry in sorted({ImageName.parse(image).registry for image in images}):
        try:
            header = registry_auth_header(registry, environ)
        except CredentialsError:
            continue
        if header != ANONYMOUS:
            name = _DOCKER_HUB if registry == "docker.io" else registry
            auths[name] = _entry(msgspec.json.decode(base64.urlsafe_b64decode(header)))
    return msgspec.json.encode({"auths": auths}) if auths else None


def _entry(header: Mapping[str, str]) -> dict[str, str]:
    found = {key.lower(): value for key, value in header.items()}
    if token := found.get("identitytoken"):
        return {"identitytoken": token}
    pair = f"{found.get('username', '')}:{found.get('password', '')}"
    return {"auth": base64.b64encode(pair.encode()).decode()}
