"""Credentials for registries, from ``docker login`` and the credential helpers.

The Docker SDK reads ``auths``. It would wait for a credential helper without a time limit, so
helpers are run here.
"""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgspec

from buildrunner.containers.docker.endpoint import docker_config_dir
from buildrunner.containers.docker.errors import Stopped
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.errors import CredentialsError

ANONYMOUS = base64.urlsafe_b64encode(b"{}").decode()


class _DockerConfig(msgspec.Struct):
    auths: dict[str, msgspec.Raw] | None = None  # null means none, as in Go
    store: str | None = msgspec.field(name="credsStore", default=None)
    helpers: dict[str, str] | None = msgspec.field(name="credHelpers", default=None)


def registry_auth_header(
    registry: str, environ: Mapping[str, str], cancel: threading.Event | None = None
) -> str:
    """Return the ``X-Registry-Auth`` header for ``registry`` (``docker.io``, ``host:port``, ...).

    Args:
        registry: the registry to log in to.
        environ: names the Docker config.
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
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise CredentialsError(
            f"the Docker config {path} can't be read: {error}", hint="Correct or remove it."
        ) from error
    if not (config.auths or config.store or config.helpers):
        return ANONYMOUS
    helper = (config.helpers or {}).get(registry) or config.store or ""
    return _resolved(path, registry, helper, cancel)


def registry_login(
    registry: str, environ: Mapping[str, str], cancel: threading.Event | None = None
) -> RegistryLogin | None:
    """Return the login for ``registry``; None without one. See `registry_auth_header`."""
    header = registry_auth_header(registry, environ, cancel)
    if header == ANONYMOUS:
        return None
    fields: dict[str, str] = msgspec.json.decode(base64.urlsafe_b64decode(header))
    found = {key.lower(): value for key, value in fields.items()}
    return RegistryLogin(
        username=found.get("username") or "",
        password=found.get("password") or "",
        identity_token=found.get("identitytoken") or "",
    )


def login_header(login: RegistryLogin) -> str:
    """Return the ``X-Registry-Auth`` header for a given login."""
    if login.identity_token:
        found = {"identitytoken": login.identity_token}
    else:
        found = {"username": login.username, "password": login.password}
    return base64.urlsafe_b64encode(msgspec.json.encode(found)).decode()


def user_login(registry: str, environ: Mapping[str, str]) -> RegistryLogin | None:
    """Return the user's own login at a registry; None if the Docker config has none.

    Raises:
        CredentialsError: see `registry_auth_header`.
    """
    header = registry_auth_header(registry, environ)
    if header == ANONYMOUS:
        return None
    found = msgspec.json.decode(base64.urlsafe_b64decode(header), type=dict[str, str])
    facts = {key.lower(): value for key, value in found.items()}
    return RegistryLogin(
        username=facts.get("username", ""),
        password=facts.get("password", ""),
        identity_token=facts.get("identitytoken", ""),
    )


def _resolved(path: str, registry: str, helper: str, cancel: threading.Event | None) -> str:
    from docker import auth
    from docker.errors import DockerException

    if helper:
        found = _ask_helper(path, registry, helper, cancel)
        if found is not None:
            return login_header(found)
    try:
        # Without the helpers, which the library would run by itself.
        entries = auth.AuthConfig({"auths": auth.load_config(config_path=path).auths})
        entry = entries.resolve_authconfig(registry)
        return str(auth.encode_header(entry).decode()) if entry else ANONYMOUS
    except (DockerException, ValueError, LookupError, TypeError, AttributeError):
        # The library does not check the config, so a wrong entry raises errors of any kind.
        raise _unknown(registry, f"an entry of {path} is no login", "") from None


_DOCKER_HUB = "https://index.docker.io/v1/"
_TOKEN = "<token>"  # noqa: S105  (in place of a user's name: the secret is an identity token)
_NOT_FOUND = b"credentials not found in native keychain"
_LIMIT_S = 60.0
_LOOK_S = 0.1


class _HelperAnswer(msgspec.Struct):
    username: str = msgspec.field(name="Username")
    secret: str = msgspec.field(name="Secret")


def _ask_helper(
    path: str, registry: str, helper: str, cancel: threading.Event | None
) -> RegistryLogin | None:
    """Return a credential helper's login for a registry; None if it has none."""
    import shutil

    program = f"docker-credential-{helper}"
    found = shutil.which(program)
    if found is None:
        raise CredentialsError(
            f"{path} names the credential helper {program}, which is not on the PATH",
            hint=f"Install it, or take it out of {path} and run: docker login {registry}",
        )
    server = _DOCKER_HUB if registry == "docker.io" else registry
    code, output = _run_helper(found, helper, server.encode(), cancel)
    if code and output.strip() == _NOT_FOUND:
        return None
    failed = _unknown(registry, f"{program} failed", f"{program} by hand, or ")
    if code:
        raise failed
    try:
        answer = msgspec.json.decode(output, type=_HelperAnswer)
    # without the helper's text, which may hold a secret
    except (msgspec.DecodeError, RecursionError):
        raise failed from None
    if answer.username == _TOKEN:
        return RegistryLogin(identity_token=answer.secret)
    return RegistryLogin(username=answer.username, password=answer.secret)


def _run_helper(
    program: str, helper: str, server: bytes, cancel: threading.Event | None
) -> tuple[int, bytes]:
    """Run a credential helper. Returns its exit code and output."""
    import subprocess

    with subprocess.Popen(
        [program, "get"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        until = time.monotonic() + _LIMIT_S
        waiting: bytes | None = server
        try:
            while True:
                try:
                    output: bytes = process.communicate(waiting, timeout=_LOOK_S)[0]
                except subprocess.TimeoutExpired:
                    waiting = None  # the helper has the input
                else:
                    return process.returncode, output
                _check_time_left(helper, until, cancel)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _check_time_left(helper: str, until: float, cancel: threading.Event | None) -> None:
    """Raise an error if a credential helper has exceeded its time, or ``cancel`` is set."""
    if cancel is not None and cancel.is_set():
        raise Stopped
    if time.monotonic() > until:
        raise CredentialsError(
            f"the credential helper docker-credential-{helper} did not answer in {_LIMIT_S:g} s",
            hint=f"try it by hand: docker-credential-{helper} get",
        )


def _unknown(registry: str, reason: str, first: str) -> CredentialsError:
    return CredentialsError(
        f"the credentials for {registry} can't be had: {reason}",
        hint=f"Try {first}docker login {registry}",
    )


def step_docker_config(environ: Mapping[str, str], images: Iterable[str]) -> bytes | None:
    """Return the ``config.json`` for steps; None if no login of the user fits.

    A config that can't be read, and a failing helper, yield no credentials: the step finds out
    whether it needs any, and our own pulls and pushes report the error by themselves.

    Args:
        environ: names the user's Docker config.
        images: the images that the build names; steps get the logins of their registries.
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
