"""Networks, volumes and the sweep by label, through the Docker Engine API."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import msgspec

from buildrunner.containers.docker import errors as docker_errors
from buildrunner.containers.docker.api import DockerApi, filters, json_body
from buildrunner.containers.docker.http import quoted
from buildrunner.containers.types import AddressRange, FoundContainer, NetworkMember, OwnedResources

_NETWORK_TRIES = 20


class _Network(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    name: str = msgspec.field(name="Name")


class _Volume(msgspec.Struct):
    name: str = msgspec.field(name="Name")
    mountpoint: str = msgspec.field(name="Mountpoint", default="")


class _Volumes(msgspec.Struct):
    volumes: list[_Volume] | None = msgspec.field(name="Volumes", default=None)


class _Listed(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)
    state: str = msgspec.field(name="State", default="")


class _Labelled(msgspec.Struct):
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _LabelledVolumes(msgspec.Struct):
    volumes: list[_Labelled] | None = msgspec.field(name="Volumes", default=None)


class _MemberPlace(msgspec.Struct):
    address: str | None = msgspec.field(name="IPAddress", default=None)


class _MemberNetworks(msgspec.Struct):
    networks: dict[str, _MemberPlace] | None = msgspec.field(name="Networks", default=None)


class _Member(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)
    settings: _MemberNetworks | None = msgspec.field(name="NetworkSettings", default=None)

    def address(self, network: str) -> str:
        """Its IPv4 address on a network; empty if the engine does not tell."""
        networks = (self.settings and self.settings.networks) or {}
        return (networks[network].address or "") if network in networks else ""


class DockerResources:
    """The `Resources` part of a Docker engine. Thread-safe.

    Args:
        api: the engine.
        network_turn: entered by whoever makes a network, one at a time.
    """

    def __init__(
        self,
        api: DockerApi,
        network_turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._api = api
        self._network_turn = network_turn
        self._networks: dict[str, dict[str, str]] = {}  # ensured here: name -> labels
        self._network_lock = threading.Lock()

    def ensure_network(
        self, name: str, labels: Mapping[str, str], *, address_range: AddressRange | None = None
    ) -> None:
        """See `Resources.ensure_network`. Some 70 ms when it has to be made, else under 1 ms."""
        with self._network_lock:
            if not self._has_network(name):
                with self._network_turn():
                    self._make_network(name, labels, address_range)
            self._networks[name] = dict(labels)

    def _make_network(
        self, name: str, labels: Mapping[str, str], address_range: AddressRange | None
    ) -> None:
        """Make it, unless somebody did so since; others that do not take turns may be at it."""
        for _ in range(_NETWORK_TRIES):
            if self._has_network(name) or self._create_network(name, labels, address_range):
                return
            # A random pause, so that two who gave way to each other don't meet again.
            time.sleep(os.urandom(1)[0] / 2000)
        self._thin_out(name)

    def _has_network(self, name: str) -> bool:
        """Whether there is exactly one (two make the engine answer that the name is ambiguous)."""
        status, body = self._api.call("GET", f"/networks/{quoted(name)}")
        if status in (200, 404) or "ambiguous" in docker_errors.message_of(body):
            return status == 200
        raise docker_errors.engine_error(f"the network {name} can't be looked up", status, body)

    def _create_network(
        self, name: str, labels: Mapping[str, str], address_range: AddressRange | None
    ) -> bool:
        """Whether it exists afterwards; False when someone else made one at the same moment.

        Before Docker 25 the check for duplicates is not atomic: two builds that start together can
        both get a network of that name, and then neither can use it. Whoever sees another one
        beside its own takes its own away. (Comparing their ages would not do: the older one may
        become visible later.)
        """
        request: dict[str, object] = {
            "Name": name,
            "Driver": "bridge",
            "CheckDuplicate": True,
            "Labels": dict(labels),
        }
        if address_range:
            addresses = {"Subnet": address_range.subnet, "Gateway": address_range.gateway}
            request["IPAM"] = {"Driver": "default", "Config": [addresses]}
        status, body = self._api.call("POST", "/networks/create", json=request)
        if status == 409:
            return False  # someone else made it meanwhile: look again
        if status != 201:
            raise docker_errors.engine_error(f"the network {name} can't be created", status, body)
        if len(self._networks_called(name)) == 1:
            return True
        self._api.call("DELETE", f"/networks/{json_body(body, _Listed).id}")
        return False

    def _thin_out(self, name: str) -> None:
        """Leave one of several networks of a name: whoever made the others died before it could."""
        for other in sorted(self._networks_called(name), key=lambda one: one.id)[1:]:
            self._api.call("DELETE", f"/networks/{other.id}")

    def _networks_called(self, name: str) -> list[_Network]:
        status, body = self._api.call("GET", f"/networks?{filters(name=[name])}")
        if status != 200:
            raise docker_errors.engine_error("networks can't be listed", status, body)
        return [one for one in json_body(body, list[_Network]) if one.name == name]

    def restore_network(self, message: str) -> bool:
        """Make a network again that was ensured here and that ``message`` says is gone.

        Another build (or ``docker network prune``) may remove it between our ensuring it and a
        container's start. Whether a second try makes sense.
        """
        for name, labels in tuple(self._networks.items()):
            if f"network {name} not found" in message or f"network {name} is ambiguous" in message:
                self.ensure_network(name, labels)
                return True
        return False

    def remove_network(self, name: str) -> bool:
        """See `Resources.remove_network`. Some 180 ms."""
        status, body = self._api.call("DELETE", f"/networks/{quoted(name)}")
        if status in (403, 409) or "is being used" in docker_errors.message_of(body):
            return False  # containers are on it
        if status not in (204, 404):
            raise docker_errors.engine_error(f"the network {name} can't be removed", status, body)
        self._networks.pop(name, None)
        return True

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """See `Resources.network_members`."""
        status, body = self._api.call("GET", f"/containers/json?{filters(network=[name])}")
        if status != 200:
            raise docker_errors.engine_error(f"who is on {name} can't be listed", status, body)
        members = json_body(body, list[_Member])
        return tuple(NetworkMember(one.id, one.labels or {}, one.address(name)) for one in members)

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`."""
        request = {
            "Name": name,
            "Driver": "local",
            "Labels": dict(labels),
            "DriverOpts": dict(options or {}),
        }
        status, body = self._api.call("POST", "/volumes/create", json=request)
        if status not in (200, 201):
            raise docker_errors.engine_error(f"the volume {name} can't be created", status, body)
        return json_body(body, _Volume).mountpoint

    def remove_volume(self, name: str) -> None:
        """See `Resources.remove_volume`. EngineError when a container still uses it."""
        status, body = self._api.call("DELETE", f"/volumes/{quoted(name)}?force=1")
        if status not in (204, 404):
            raise docker_errors.engine_error(f"the volume {name} can't be removed", status, body)

    def list_owned(self, labels: Mapping[str, str]) -> OwnedResources:
        """See `Resources.list_owned`. Containers by id, volumes and networks by name."""
        containers, volumes, networks = self._list_labelled(
            [f"{key}={value}" if value else key for key, value in labels.items()]
        )
        return OwnedResources(
            tuple(one.id for one in json_body(containers, list[_Listed])),
            tuple(one.name for one in json_body(volumes, _Volumes).volumes or ()),
            tuple(one.name for one in json_body(networks, list[_Network])),
        )

    def find_containers(self, labels: Mapping[str, str]) -> tuple[FoundContainer, ...]:
        """See `Resources.find_containers`."""
        query = filters(label=[f"{key}={value}" if value else key for key, value in labels.items()])
        status, body = self._api.call("GET", f"/containers/json?all=1&{query}")
        if status != 200:
            raise docker_errors.engine_error("containers can't be listed", status, body)
        return tuple(
            FoundContainer(
                one.id,
                one.labels or {},
                was_started=one.state != "created",
                has_ended=one.state in ("exited", "dead", "removing"),
            )
            for one in json_body(body, list[_Listed])
        )

    def label_values(self, label: str) -> tuple[str, ...]:
        """See `Resources.label_values`."""
        containers, volumes, networks = self._list_labelled([label])
        found = [
            *json_body(containers, list[_Labelled]),
            *(json_body(volumes, _LabelledVolumes).volumes or ()),
            *json_body(networks, list[_Labelled]),
        ]
        return tuple(sorted({(one.labels or {}).get(label, "") for one in found}))

    def _list_labelled(self, wanted: list[str]) -> tuple[bytes, bytes, bytes]:
        """Containers (stopped ones too), volumes and networks with these labels, as JSON."""
        query = filters(label=wanted)

        def listed(path: str) -> bytes:
            status, body = self._api.call("GET", path)
            if status != 200:
                raise docker_errors.engine_error("what builds own can't be listed", status, body)
            return body

        return (
            listed(f"/containers/json?all=1&{query}"),
            listed(f"/volumes?{query}"),
            listed(f"/networks?{query}"),
        )
