"""Rights of a build's steps on the container engine: the only place that decides them.

The place where a build runs grants rights. A config requests rights with ``options.dockerDaemon``.
The build gets what both allow, so a config can lower its privilege and never raise it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from buildrunner.spec.model.build import DockerDaemon


class Privilege(msgspec.Struct, frozen=True, kw_only=True):
    """Rights of the steps of one build.

    Attributes:
        docker_socket: steps find the engine's socket at ``/var/run/docker.sock``.
        privileged: steps run in privileged containers.
    """

    docker_socket: bool = False
    privileged: bool = False

    def within(self, limit: Privilege) -> Privilege:
        """Return the rights that both have."""
        return Privilege(
            docker_socket=self.docker_socket and limit.docker_socket,
            privileged=self.privileged and limit.privileged,
        )


NO_PRIVILEGE: Final = Privilege()
# Source: `BuildOptions.DockerDaemon`. A config without the field gets the rights of the place.
_ASKED: Final = {
    DockerDaemon.DOCKER_DAEMON_UNSPECIFIED: Privilege(docker_socket=True, privileged=True),
    DockerDaemon.NO_DOCKER: NO_PRIVILEGE,
    DockerDaemon.NON_PRIVILEGED: Privilege(docker_socket=True),
    DockerDaemon.PRIVILEGED: Privilege(docker_socket=True, privileged=True),
}


def granted(
    *,
    docker_socket: bool,
    privileged: bool | None,
    privileged_place: bool = False,
    trusted: bool = True,
) -> Privilege:
    """Return the rights that the place of a build grants to its steps.

    Args:
        docker_socket: the settings and flags let steps have the socket.
        privileged: the settings and flags let steps be privileged; None leaves it to the place.
        privileged_place: the place makes steps privileged unless the settings say otherwise.
        trusted: the build may use the rights of its project. An untrusted build gets none.
    """
    if not trusted:
        return NO_PRIVILEGE
    return Privilege(
        docker_socket=docker_socket,
        privileged=privileged_place if privileged is None else privileged,
    )


def lowered(grant: Privilege, daemon: DockerDaemon) -> Privilege:
    """Return the rights of a build whose config says ``daemon``, within what its place grants."""
    return _ASKED[daemon].within(grant)


def refusal(grant: Privilege, daemon: DockerDaemon) -> str:
    """Return a sentence if the config requests rights that are denied; else an empty string."""
    if daemon is DockerDaemon.PRIVILEGED and not grant.privileged:
        return "options.dockerDaemon: PRIVILEGED has no effect: steps are not privileged here"
    return ""
