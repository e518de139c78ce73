"""How container engines that speak Docker's API differ from each other.

Everything that buildrunner does in two ways is decided here, once per engine, by what the engine
answers to its first request. Code elsewhere reads a field and never the engine's name.
"""

from __future__ import annotations

import msgspec


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of engine can do, and its own words for some things.

    Attributes:
        product: ``docker`` or ``podman``.
        death_events: ``/events`` reports the end of a container as soon as its process has ended.
        asks_registries: ``/distribution`` returns what a registry has under a name.
        trust_plain_http: how to make the engine use a registry that speaks plain HTTP; ``{}`` is
            the registry.
    """

    product: str
    death_events: bool
    asks_registries: bool
    trust_plain_http: str


DOCKER = Capabilities(
    product="docker",
    death_events=True,
    asks_registries=True,
    trust_plain_http='Add "{}" to insecure-registries in daemon.json of the engine.',
)

PODMAN = Capabilities(
    product="podman",
    death_events=False,
    asks_registries=False,
    trust_plain_http='Add a [[registry]] with location = "{}" and insecure = true to '
    "/etc/containers/registries.conf on the engine's machine.",
)


def capabilities_of(headers: dict[str, str]) -> Capabilities:
    """Return the capabilities of the engine that sent these headers in answer to ``/_ping``."""
    return PODMAN if "libpod-api-version" in headers else DOCKER
