"""The sandboxes of builds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from buildrunner.errors import UsageError
from buildrunner.settings import Settings, lock_folder
from buildrunner.wiring.engines import NETWORK, container_engine, image_cache_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.builders.installer import Reporter
    from buildrunner.containers.docker.engine import DockerEngine
    from buildrunner.containers.docker.factory import DockerImageFactory
    from buildrunner.engine.image_pulls import PublicImages
    from buildrunner.sandboxes.protocol import Sandbox, SandboxLimits


def sandbox(
    name: str,
    *,
    data_folder: str,
    labels: Mapping[str, str],
    settings: Settings,
    limits: SandboxLimits | None = None,
    builds: int = 0,
    isolation: str = "",
    disk_gib: int = 0,
    reporter: Reporter | None = None,
) -> Sandbox:
    """Return the sandboxes of builds, on the engine that the ``docker`` command would use.

    Args:
        name: ``host``, ``nested``, ``pod`` or ``none``.
        data_folder: folder for what this machine keeps of sandboxes.
        labels: what everything made on the engine carries, besides the build's own label.
        settings: for which networks nested sandboxes reach, and which logins count.
        limits: of each nested sandbox; None for its share.
        builds: how many builds share the machine; 0 when that is nobody's business.
        isolation: what the builds of forks must have; see `sandboxes.protocol.ISOLATIONS`. For
            ``pod``, what the Pod has.
        disk_gib: what each nested sandbox may take of the disk; 0 sets no limit.
        reporter: shows how the image of nested engines is made; None logs it.

    Raises:
        UsageError: there is no such sandbox.
    """
    if name == "none":
        from buildrunner.sandboxes.none import NoSandbox

        return NoSandbox()
    logins = settings.logins_environ(os.environ)
    if name == "host":
        from buildrunner.sandboxes.host import HostSandbox

        return HostSandbox(container_engine(logins), labels)
    if name == "pod":
        from buildrunner.sandboxes.pod import PodSandbox

        return PodSandbox(container_engine(logins), labels, isolation)
    if name != "nested":
        raise UsageError(f"there is no sandbox {name!r}", hint="there are: host, nested, none")
    # Imported here: most commands need none of it, and it takes httpx along.
    from buildrunner.sandboxes.nested.machine import NestedMachine, SandboxChoices
    from buildrunner.sandboxes.nested.sandbox import NestedSandbox

    host = container_engine(logins)
    choices = SandboxChoices(
        folder=data_folder,
        cache_folder=image_cache_folder(host.endpoint.address),
        labels=labels,
        network=NETWORK,
        egress=settings.egress,
        isolation=isolation,
        limits=limits,
        builds=builds,
        disk_gib=disk_gib,
        environ=logins,
        is_common=_common_images(settings).allows if settings.logins_folder else None,
    )
    return NestedSandbox(NestedMachine(host, _EngineImage(host, reporter), choices))


def _common_images(settings: Settings) -> PublicImages:
    """The images of the machine that are for builds of every project."""
    from buildrunner.builders.catalog import BUILDERS
    from buildrunner.engine.image_pulls import PublicImages
    from buildrunner.workspace.volume import CARRIER_IMAGE

    builders = (builder.image for builder in BUILDERS)
    aliases = settings.image_aliases.values()
    common = (*settings.untrusted_images, *aliases, *builders, CARRIER_IMAGE)
    return PublicImages(common, lambda _: "")


def has_engine_image(host: DockerEngine) -> bool:
    """Whether the engine has the image of nested engines, and the image is up to date.

    Raises:
        EngineUnavailable: the engine does not answer.
    """
    from buildrunner.builders.installer import is_current
    from buildrunner.containers.docker.factory import DockerImageFactory

    factory = DockerImageFactory(host, os.environ)
    try:
        return is_current(factory, "engine")
    finally:
        factory.close()


class _EngineImage:
    """The image of nested engines on an engine.

    Attributes:
        is_being_made: it was missing, and is being made by this object.
    """

    def __init__(self, host: DockerEngine, reporter: Reporter | None) -> None:
        self.is_being_made = False
        self._host = host
        self._reporter = reporter

    def obtain(self) -> str:
        """Return its id. The image is made now if it is missing, which takes 20 to 60 s."""
        from buildrunner.builders.catalog import ENGINE_IMAGE
        from buildrunner.builders.installer import is_current
        from buildrunner.containers.docker.factory import DockerImageFactory
        from buildrunner.containers.file_lock import file_lock

        factory = DockerImageFactory(self._host, os.environ)
        try:
            with file_lock(os.path.join(lock_folder(), "engine-image.lock")):
                if not is_current(factory, "engine"):
                    self._make(factory)
                found = factory.find(ENGINE_IMAGE)
        finally:
            factory.close()
        return found.id if found is not None else ENGINE_IMAGE

    def _make(self, factory: DockerImageFactory) -> None:
        from buildrunner.builders.host_settings import read_host_settings
        from buildrunner.builders.installer import Installer, LoggedInstallation, with_parents

        self.is_being_made = True
        try:
            reporter = self._reporter or LoggedInstallation()
            settings = read_host_settings(os.environ)
            Installer(factory, settings, os.environ, reporter).install(with_parents(["engine"]))
        finally:
            self.is_being_made = False
