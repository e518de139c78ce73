"""Registry credentials for steps: a Docker config for ``/builder/home/.docker``.

On the hosted service ``docker push`` in a step just works, since its home holds credentials. Here
those of the user do the same job. They are written out plainly (steps have no credential helpers),
into a volume that goes with the build.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.containers.endpoint import docker_config_dir

if TYPE_CHECKING:
    from collections.abc import Mapping


class _DockerConfig(msgspec.Struct):
    auths: dict[str, dict[str, Any]] = {}
    store: str = msgspec.field(name="credsStore", default="")
    helpers: dict[str, str] = msgspec.field(name="credHelpers", default_factory=dict)


def step_docker_config(environ: Mapping[str, str]) -> bytes | None:
    """The ``config.json`` that steps get; None when the user has no credentials.

    A config that can't be read, and a helper that fails, give no credentials: whether any are
    needed is for the step to find out, and pulls and pushes of ours report it by themselves.
    """
    path = os.path.join(docker_config_dir(environ), "config.json")
    try:
        with open(path, "rb") as file:
            config = msgspec.json.decode(file.read(), type=_DockerConfig)
    except (OSError, msgspec.DecodeError):
        return None
    if config.store or config.helpers:
        auths = _from_helpers(path)
    else:
        auths = {name: entry for name, entry in config.auths.items() if entry}
    return msgspec.json.encode({"auths": auths}) if auths else None


def _from_helpers(path: str) -> dict[str, dict[str, Any]]:
    from docker import auth
    from docker.errors import DockerException

    try:
        config: Any = auth.load_config(config_path=path)
        known = config.get_all_credentials()
    except DockerException:
        return {}
    return {name: _entry(found) for name, found in known.items() if found}


def _entry(found: Mapping[str, str]) -> dict[str, Any]:
    if token := found.get("IdentityToken"):
        return {"identitytoken": token}
    pair = f"{found.get('Username', '')}:{found.get('Password', '')}"
    return {"auth": base64.b64encode(pair.encode()).decode()}
