"""The metadata server of a build."""

from __future__ import annotations

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.containers.types import AddressRange
from buildrunner.errors import UsageError
from buildrunner.metadata.server import MetadataServer, ProjectFacts
from buildrunner.wiring.engines import NETWORK, build_labels


def metadata_addresses() -> AddressRange:
    """Addresses of the network with which steps find the metadata server.

    Raises:
        UsageError: on a Compute Engine machine, whose own server is at that address.
    """
    from buildrunner.containers.types import AddressRange
    from buildrunner.metadata.server import NETWORK_GATEWAY, NETWORK_SUBNET

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


def metadata_server(
    engine: ContainerEngine, build_id: str, facts: ProjectFacts, *, key_file: str | None
) -> MetadataServer:
    """Start the metadata server on the build's network.

    Args:
        engine: where the network is, or is being made.
        build_id: the build.
        facts: what steps are told of their project.
        key_file: Google credentials to make tokens with: a file, or empty for the application
            default ones; None gives no tokens.

    Raises:
        EngineError: the network or the address is not to be had.
        SecretError: the credentials are not.
    """
    from buildrunner.metadata.google_credentials import GoogleCredentials
    from buildrunner.metadata.server import MetadataServer

    credentials = GoogleCredentials(key_file) if key_file is not None else None
    engine.ensure_network(NETWORK, build_labels(build_id), address_range=metadata_addresses())
    return MetadataServer(facts, credentials=credentials)


def metadata_hosts() -> tuple[str, ...]:
    """The metadata server's names, for the hosts file of every step."""
    from buildrunner.metadata.server import HOST_NAMES, NETWORK_GATEWAY

    return tuple(f"{name}:{NETWORK_GATEWAY}" for name in HOST_NAMES)
