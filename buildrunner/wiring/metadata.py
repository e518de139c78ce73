"""The metadata server of a build."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from buildrunner.containers.protocol import LABEL_BUILD, AddressRange
from buildrunner.errors import EngineError, UsageError
from buildrunner.wiring.engines import NETWORK, build_labels

if TYPE_CHECKING:
    from buildrunner.containers.protocol import ContainerEngine
    from buildrunner.metadata import (
        Credentials,
        GoogleCredentials,
        MetadataServer,
        ProjectFacts,
    )


def metadata_addresses() -> AddressRange:
    """Addresses of the network with which steps find the metadata server.

    Raises:
        UsageError: on a Compute Engine machine, whose own server is at that address.
    """
    from buildrunner.metadata import NETWORK_GATEWAY, NETWORK_SUBNET

    if _machine_vendor() == "Google":
        raise UsageError(
            "this is a Compute Engine machine: steps find its own metadata server already",
            hint="leave out --metadata-server",
        )
    return AddressRange(subnet=NETWORK_SUBNET, gateway=NETWORK_GATEWAY)


def _machine_vendor() -> str:
    try:
        with open("/sys/class/dmi/id/sys_vendor", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""  # not Linux, or a container that must not know


def google_credentials(key_file: str | None) -> GoogleCredentials | None:
    """Return the Google credentials that make tokens for steps.

    Args:
        key_file: a file with credentials, or empty for the application default ones; None for none.

    Raises:
        SecretError: the credentials can't be used.
    """
    from buildrunner.metadata import GoogleCredentials

    return GoogleCredentials(key_file) if key_file is not None else None


def shared_metadata_server(
    engine: ContainerEngine,
    build_id: str,
    facts: ProjectFacts,
    *,
    credentials: Credentials | None,
) -> MetadataServer:
    """Start the metadata server on the network of builds, which one build at a time can have.

    Args:
        engine: where the network is, or is being made.
        build_id: the build.
        facts: the project of the build.
        credentials: make tokens; None for none.

    Raises:
        EngineError: the network or the address can't be had.
    """
    from buildrunner.metadata import MetadataServer, listen_on

    engine.ensure_network(NETWORK, build_labels(build_id), address_range=metadata_addresses())
    may_ask = partial(is_of_build, engine, build_id)
    return MetadataServer(listen_on(), facts, credentials=credentials, may_ask=may_ask)


def is_of_build(engine: ContainerEngine, build_id: str, address: str) -> bool:
    """Whether a client is on the network, and no step of another build.

    Other containers and users of this machine reach the server's address, too, and all builds are
    on one network. A container that a step starts on that network has no labels and is answered:
    the step needs the engine's socket for that.
    """
    from buildrunner.metadata import NETWORK_GATEWAY, NETWORK_SUBNET

    is_there = ip_address(address) in ip_network(NETWORK_SUBNET) and address != NETWORK_GATEWAY
    try:
        return is_there and not any(
            member.address == address and member.labels.get(LABEL_BUILD, build_id) != build_id
            for member in engine.network_members(NETWORK)
        )
    except EngineError:
        return False


def metadata_hosts() -> tuple[str, ...]:
    """The metadata server's names, for the hosts file of every step."""
    from buildrunner.metadata import HOST_NAMES, NETWORK_GATEWAY

    return tuple(f"{name}:{NETWORK_GATEWAY}" for name in HOST_NAMES)
