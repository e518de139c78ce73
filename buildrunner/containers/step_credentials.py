"""Registry credentials for steps: a Docker config for ``/builder/home/.docker``.

On the hosted service ``docker push`` in a step just works, since its home holds credentials. Here
those of the user can do the same job, when the user says so: for the registries that the build
names, and no others. They are written out plainly (steps have no credential helpers), into a volume
that goes with the build.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.registry_auth import ANONYMOUS, registry_auth_header
from buildrunner.errors import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
