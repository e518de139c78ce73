"""The engine at hand as the machine that nested engines run on."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from buildrunner.addresses import Egress
from buildrunner.builders.catalog import ENGINE_IMAGE
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.docker.images import PulledImages, copy_image
from buildrunner.containers.process_owner import file_lock
from buildrunner.containers.protocol import ContainerEngine, RegistryLogin
from buildrunner.containers.registry_auth import registry_login
from buildrunner.sandboxes.nested.daemon import NestedDaemons
from buildrunner.sandboxes.nested.image_cache import ImageCache
from buildrunner.sandboxes.protocol import SandboxLimits, fair_share
from buildrunner.workspace.volume import ensure_carrier_image


class SandboxChoices(msgspec.Struct, frozen=True, kw_only=True):
    """Choices that hold for every nested sandbox of a machine.

    Attributes:
        folder: what this machine keeps of sandboxes is there: ``run/BUILD``, and what it found out.
        cache_folder: what it keeps of the images that sandboxes share.
        labels: of everything that is made on the machine's engine.
        network: the network that every build needs in its engine.
        egress: which networks sandboxes reach.
        isolation: one of `ISOLATIONS` that the builds of forks must have; empty demands nothing.
        limits: of each sandbox; None for a fair share of the machine.
        builds: how many builds share the machine; 0 if nobody has decided that.
        disk_gib: how much each sandbox may write to the disk; 0 sets no limit.
        environ: has the settings of the registry logins that builds act with.
        is_common: whether an image of the machine, by name, is for builds of every project. None:
            the builds share all images, and leave theirs to others.
    """

    folder: str
    cache_folder: str
    labels: Mapping[str, str]
    network: str
    egress: Egress = Egress()
    isolation: str = ""
    limits: SandboxLimits | None = None
    builds: int = 0
    disk_gib: int = 0
    environ: Mapping[str, str] = {}
    is_common: Callable[[str], bool] | None = None


class EngineImage(Protocol):
    """The image of nested engines on the machine's engine.

    Attributes:
        is_being_made: it was missing, and is being made by this object.
    """

    is_being_made: bool

    def obtain(self) -> str:
        """Return its id. The image is made now if it is missing, which takes 20 to 60 s."""
        ...


class NestedMachine:
    """The engine at hand, the nested engines on it, and the images that they share.

    Args:
        host: the engine at hand. Closed with the machine.
        image: the image of nested engines.
        choices: those of every sandbox.
    """

    def __init__(self, host: DockerEngine, image: EngineImage, choices: SandboxChoices) -> None:
        self.host = host
        self.image = image
        self.choices = choices
        self.daemons = NestedDaemons(host.endpoint)
        self.cache = ImageCache(self.daemons, host.endpoint, choices.cache_folder, ENGINE_IMAGE)

    def limits(self) -> SandboxLimits:
        """Return what each sandbox may take of the machine."""
        choices = self.choices
        if choices.limits is not None:
            return choices.limits
        return fair_share(choices.builds, self.host.info().memory_bytes, choices.disk_gib)

    def ensure_images(self) -> None:
        """Make sure of the images that every build wants on the machine's engine."""
        self.cache.note_use([ensure_carrier_image(self.host)])

    def prepare(self, engine: ContainerEngine, labels: Mapping[str, str]) -> None:
        """Make what every build needs in a nested engine."""
        engine.ensure_network(self.choices.network, labels)

    def connect(self, socket: str) -> ContainerEngine:
        """Return the nested engine at a socket."""
        return DockerEngine(_endpoint(socket), use_logins=False)

    def pulls(self, socket: str) -> PulledImages:
        """Watch which images the nested engine at a socket pulls."""
        return PulledImages(_endpoint(socket))

    def copy_image(
        self, image: str, socket: str, names: Iterable[str], cancel: threading.Event
    ) -> str:
        """Copy an image, by id, to the nested engine at a socket, under names; its id there."""
        return copy_image(image, names, self.host.endpoint, _endpoint(socket), cancel)

    def pull_turn(self, name: str) -> AbstractContextManager[None]:
        """Wait until no other build pulls an image for itself alone; until the end, none does."""
        folder = os.path.join(self.choices.folder, "pulls")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return file_lock(os.path.join(folder, hashlib.sha256(name.encode()).hexdigest()[:8]))

    def login_for(self, registry: str, cancel: threading.Event) -> RegistryLogin | None:
        """Return the machine's login for a registry; None if there is none."""
        return registry_login(registry, self.choices.environ, cancel)

    def close(self) -> None:
        """Close the connections to the engine at hand."""
        self.host.close()
        self.daemons.close()


def _endpoint(socket: str) -> Endpoint:
    return Endpoint(address=f"unix://{socket}", origin="the build's sandbox", trusted=False)
