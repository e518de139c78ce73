"""Differences between the container engines that speak Docker's API.

Everything that buildrunner does in two ways is decided here, once per engine, by what the engine
answers to its first request. Code elsewhere reads a field and never the engine's name.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from buildrunner.errors import EngineUnavailable

OLDEST_PODMAN = 5
"""Older ones ignore the tag of an imported image, among other things."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """Capabilities of one kind of engine, and its own terms.

    Attributes:
        product: ``docker`` or ``podman``.
        death_events: ``/events`` reports the end of a container as soon as its process has ended.
        asks_registries: ``/distribution`` returns what a registry has under a name.
        stable_id: the id in ``/info`` is the same at every request.
        names_its_socket: ``/libpod/info`` returns the address that the engine listens on.
        log_driver: what keeps a container's output so that another process can read it.
        follows_logs_to_the_end: a log that is followed lacks no line of a container that has ended.
        attach_is_passive: a container can be attached to long before its start. Podman sets the
            container up then, and reports what a start would report.
        removes_joined: a container can be removed while others share its network namespace.
            Podman has to be told to remove those, too.
        mounts_unstarted: the volumes of a container that never starts are mounted while files are
            copied out of it.
        names_folder_itself: the names in an archive of ``FOLDER/.`` begin with ``./``.
        has_buildkit: ``docker buildx build`` and ``DOCKER_BUILDKIT=1`` work.
        unpacks_into_mounts: an archive that is unpacked at the root reaches a container's mounts.
        inline_seccomp: a request holds a seccomp profile; otherwise, the path of one.
        local_prefix: begins the names of images that are of no registry; empty where nothing does.
        trust_plain_http: how to make the engine use a registry that speaks plain HTTP; ``{}`` is
            the registry.
    """

    product: str
    death_events: bool
    asks_registries: bool
    stable_id: bool
    names_its_socket: bool
    log_driver: str
    follows_logs_to_the_end: bool
    attach_is_passive: bool
    removes_joined: bool
    mounts_unstarted: bool
    names_folder_itself: bool
    has_buildkit: bool
    unpacks_into_mounts: bool
    inline_seccomp: bool
    local_prefix: str
    trust_plain_http: str


DOCKER = Capabilities(
    product="docker",
    death_events=True,
    asks_registries=True,
    stable_id=True,
    names_its_socket=False,
    log_driver="local",
    follows_logs_to_the_end=True,
    attach_is_passive=True,
    removes_joined=True,
    mounts_unstarted=True,
    names_folder_itself=True,
    has_buildkit=True,
    unpacks_into_mounts=True,
    inline_seccomp=True,
    local_prefix="",
    trust_plain_http='Add "{}" to insecure-registries in daemon.json of the engine.',
)

PODMAN = Capabilities(
    product="podman",
    death_events=False,
    asks_registries=False,
    stable_id=False,
    names_its_socket=True,
    log_driver="k8s-file",
    follows_logs_to_the_end=False,
    attach_is_passive=False,
    removes_joined=False,
    mounts_unstarted=False,
    names_folder_itself=False,
    has_buildkit=False,
    unpacks_into_mounts=False,
    inline_seccomp=False,
    local_prefix="localhost/",
    trust_plain_http='Add a [[registry]] with location = "{}" and insecure = true to '
    "/etc/containers/registries.conf on the engine's machine.",
)


def capabilities_of(headers: Mapping[str, str]) -> Capabilities:
    """Return the capabilities of the engine that sent these headers in answer to ``/_ping``.

    Raises:
        EngineUnavailable: buildrunner does not work with that engine.
    """
    version = headers.get("libpod-api-version", "")
    if not version:
        return DOCKER
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < OLDEST_PODMAN:
        raise EngineUnavailable(
            f"the engine is Podman {version}; buildrunner needs Podman {OLDEST_PODMAN} or newer",
            hint="Update Podman (Debian 13, Ubuntu 25.04 and Fedora 40 have Podman 5), or point "
            "DOCKER_HOST at a Docker engine.",
        )
    return PODMAN
