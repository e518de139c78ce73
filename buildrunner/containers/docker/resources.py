"""Networks, volumes and the sweep by label, through the Docker Engine API."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import chain
from typing import Any

from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.errors import Refusal
from buildrunner.containers.protocol import (
    AddressRange,
    FoundContainer,
    NetworkMember,
    OwnedResources,
)

_NETWORK_TRIES = 20

_NETWORK_IS_GONE = (
    "network {} not found",
    "network {} is ambiguous",
    "network with name or ID {}: network not found",  # Podman
)


class DockerResources:
    """The `Resources` part of a Docker engine. Thread-safe.

    Args:
        api: the engine.
        network_lock: returns a lock that is held while a network is created.
    """

    def __init__(
        self,
        api: DockerApi,
        network_lock: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._api = api
        self._network_turn = network_lock
        # Networks ensured here, by name: their labels, and the requested addresses.
        self._networks: dict[str, tuple[dict[str, str], AddressRange | None]] = {}
        self._network_lock = threading.Lock()

    def ensure_network(
        self, name: str, labels: Mapping[str, str], *, address_range: AddressRange | None = None
    ) -> None:
        """See `Resources.ensure_network`. Some 70 ms to create the network, else under 1 ms."""
        with self._network_lock:
            address_range = address_range or self._networks.get(name, ({}, None))[1]
            if not self._has_network(name):
                with self._network_turn():
                    self._make_network(name, labels, address_range)
            self._networks[name] = (dict(labels), address_range)

    def _make_network(
        self, name: str, labels: Mapping[str, str], address_range: AddressRange | None
    ) -> None:
        """Create the network unless it exists by now. Clients without the lock may do so, too."""
        for _ in range(_NETWORK_TRIES):
            if self._has_network(name) or self._create_network(name, labels, address_range):
                return
            # A random pause, so that two clients that both backed off don't collide again.
            time.sleep(os.urandom(1)[0] / 2000)
        self._thin_out(name)

    def _has_network(self, name: str) -> bool:
        """Return whether exactly one network has this name: the engine refuses ambiguous names."""
        try:
            with self._api.client() as client:
                client.inspect_network(name)
        except Refusal as refusal:
            if refusal.status == 404 or "ambiguous" in refusal.message:
                return False
            raise refusal.as_error(f"the network {name} can't be looked up") from refusal
        return True

    def _create_network(
        self, name: str, labels: Mapping[str, str], address_range: AddressRange | None
    ) -> bool:
        """Create a network; return False if another process created one at the same moment.

        Before Docker 25 the check for duplicates is not atomic: two builds that start together can
        both get a network of that name, and then neither can use it. A client that sees another
        network of the name removes its own. (Comparing their ages would not work: the older one may
        become visible later.)
        """
        from docker.types import IPAMConfig, IPAMPool

        addresses = None
        if address_range is not None:
            pool = IPAMPool(subnet=address_range.subnet, gateway=address_range.gateway)
            addresses = IPAMConfig(pool_configs=[pool])
        try:
            with self._api.client() as client:
                made = client.create_network(
                    name, "bridge", ipam=addresses, check_duplicate=True, labels=dict(labels)
                )["Id"]
        except Refusal as refusal:
            if refusal.status == 409:
                return False  # another client made it meanwhile: check again
            raise refusal.as_error(f"the network {name} can't be created") from refusal
        if len(self._networks_called(name)) == 1:
            return True
        self._drop_network(made)
        return False

    def _thin_out(self, name: str) -> None:
        """Remove all but one of several networks of a name, left by clients that died."""
        for other in sorted(self._networks_called(name))[1:]:
            self._drop_network(other)

    def _drop_network(self, network_id: str) -> None:
        with suppress(Refusal), self._api.client() as client:
            client.remove_network(network_id)

    def _networks_called(self, name: str) -> list[str]:
        """Return the ids of the networks of that name."""
        try:
            with self._api.client() as client:
                found = client.networks(filters={"name": [name]})
                return [one["Id"] for one in found if one["Name"] == name]
        except Refusal as refusal:
            raise refusal.as_error("networks can't be listed") from refusal

    def restore_network(self, message: str) -> bool:
        """Create a network again that was ensured here and that ``message`` reports as missing.

        Another build (or ``docker network prune``) may remove it between `ensure_network` and a
        container's creation (Podman) or start (Docker). Returns whether to retry.
        """
        for name, (labels, _) in tuple(self._networks.items()):
            if any(form.format(name) in message for form in _NETWORK_IS_GONE):
                self.ensure_network(name, labels)  # with the same addresses as before
                return True
        return False

    def remove_network(self, name: str) -> bool:
        """See `Resources.remove_network`. Some 180 ms."""
        try:
            with self._api.client() as client:
                client.remove_network(name)
        except Refusal as refusal:
            if refusal.status in (403, 409) or "is being used" in refusal.message:
                return False  # containers are on it
            if refusal.status != 404:
                raise refusal.as_error(f"the network {name} can't be removed") from refusal
        self._networks.pop(name, None)
        return True

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """See `Resources.network_members`."""
        try:
            with self._api.client() as client:
                return tuple(
                    NetworkMember(one["Id"], one.get("Labels") or {}, _address(one, name))
                    for one in client.containers(filters={"network": [name]})
                )
        except Refusal as refusal:
            raise refusal.as_error(f"who is on {name} can't be listed") from refusal

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`."""
        try:
            with self._api.client() as client:
                made = client.create_volume(name, "local", dict(options or {}), dict(labels))
                return str(made.get("Mountpoint", ""))
        except Refusal as refusal:
            raise refusal.as_error(f"the volume {name} can't be created") from refusal

    def remove_volume(self, name: str) -> None:
        """See `Resources.remove_volume`. EngineError if a container still uses it."""
        try:
            with self._api.client() as client:
                client.remove_volume(name, force=True)
        except Refusal as refusal:
            if refusal.status != 404:
                raise refusal.as_error(f"the volume {name} can't be removed") from refusal

    def list_owned(self, labels: Mapping[str, str]) -> OwnedResources:
        """See `Resources.list_owned`. Containers by id, volumes and networks by name."""
        return OwnedResources(
            *self._labelled(
                labels,
                lambda container: str(container["Id"]),
                lambda volume: str(volume["Name"]),
                lambda network: str(network["Name"]),
            )
        )

    def find_containers(self, labels: Mapping[str, str]) -> tuple[FoundContainer, ...]:
        """See `Resources.find_containers`."""
        try:
            with self._api.client() as client:
                return tuple(
                    FoundContainer(
                        one["Id"],
                        one.get("Labels") or {},
                        was_started=one["State"] not in ("created", "initialized"),
                        has_ended=one["State"] in ("exited", "dead", "removing"),
                    )
                    for one in client.containers(all=True, filters=_with_labels(labels))
                )
        except Refusal as refusal:
            raise refusal.as_error("containers can't be listed") from refusal

    def label_values(self, label: str) -> tuple[str, ...]:
        """See `Resources.label_values`."""

        def value(found: Mapping[str, Any]) -> str:
            return str((found.get("Labels") or {}).get(label, ""))

        return tuple(sorted({*chain(*self._labelled({label: ""}, value, value, value))}))

    def _labelled(
        self,
        labels: Mapping[str, str],
        of_container: Callable[[Mapping[str, Any]], str],
        of_volume: Callable[[Mapping[str, Any]], str],
        of_network: Callable[[Mapping[str, Any]], str],
    ) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return a value of each container (even stopped), volume and network with the labels."""
        chosen = _with_labels(labels)
        try:
            with self._api.client() as client:
                return (
                    tuple(map(of_container, client.containers(all=True, filters=chosen))),
                    tuple(map(of_volume, client.volumes(filters=chosen)["Volumes"] or ())),
                    tuple(map(of_network, client.networks(filters=chosen))),
                )
        except Refusal as refusal:
            raise refusal.as_error("what builds own can't be listed") from refusal


def _with_labels(labels: Mapping[str, str]) -> dict[str, list[str]]:
    return {"label": [f"{key}={value}" if value else key for key, value in labels.items()]}


def _address(container: Mapping[str, Any], network: str) -> str:
    """Return a container's IPv4 address on a network; empty if the engine does not report it."""
    networks = (container.get("NetworkSettings") or {}).get("Networks") or {}
    return str((networks.get(network) or {}).get("IPAddress") or "")
