"""Where the containers of a build live."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from buildrunner.builders.installer import Reporter
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.docker.factory import DockerImageFactory
from buildrunner.errors import UsageError
from buildrunner.sandboxes.protocol import Sandbox, SandboxLimits
from buildrunner.settings import Settings, lock_folder
from buildrunner.wiring.engines import NETWORK, container_engine, image_cache_folder

if TYPE_CHECKING:  # most commands need none of it, and it takes httpx along
    from buildrunner.sandboxes.nested.container import Egress
    from buildrunner.sandboxes.nested.sandbox import NestedSandbox


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
    """Where builds live, on the engine that the ``docker`` command would use.

    Args:
        name: ``host`` or ``nested``.
        data_folder: folder for what this machine keeps of sandboxes.
        labels: what everything made on the engine carries, besides the build's own label.
        settings: for which networks nested sandboxes reach.
        limits: of each nested sandbox; None for its share.
        builds: how many builds share the machine; 0 when that is nobody's business.
        isolation: what the builds of forks must have; see `worker.sandbox.ISOLATIONS`.
        disk_gib: what each nested sandbox may take of the disk; 0 sets no limit.
        reporter: shows how the image of nested engines is made; None logs it.

    Raises:
        UsageError: there is no such sandbox.
    """
    if name == "host":
        from buildrunner.sandboxes.host import HostSandbox

        return HostSandbox(container_engine(), labels)
    if name != "nested":
        raise UsageError(f"there is no sandbox {name!r}", hint="there are: host, nested")
    from buildrunner.sandboxes.nested.container import Egress
    from buildrunner.sandboxes.protocol import fair_share

    return _nested_sandbox(
        data_folder,
        labels,
        egress=Egress(
            deny=(*Egress().deny, *settings.egress_deny),
            allow=settings.egress_allow,
        ),
        limits=lambda host: limits or fair_share(builds, host.info().memory_bytes, disk_gib),
        isolation=isolation,
        reporter=reporter,
    )


def _nested_sandbox(
    folder: str,
    labels: Mapping[str, str],
    *,
    egress: Egress,
    limits: Callable[[DockerEngine], SandboxLimits],
    isolation: str,
    reporter: Reporter | None,
) -> NestedSandbox:
    from buildrunner.builders.catalog import ENGINE_IMAGE
    from buildrunner.containers.docker.endpoint import Endpoint
    from buildrunner.containers.docker.engine import DockerEngine
    from buildrunner.containers.docker.images import PulledImages, copy_image
    from buildrunner.containers.registry_auth import registry_login
    from buildrunner.sandboxes.nested.daemon import NestedDaemons
    from buildrunner.sandboxes.nested.image_cache import ImageCache
    from buildrunner.sandboxes.nested.sandbox import NestedSandbox
    from buildrunner.workspace.volume import CARRIER_IMAGE, ensure_carrier_image

    host = container_engine()
    daemons = NestedDaemons(host.endpoint)
    image = _EngineImage(host, reporter)
    cache = ImageCache(
        daemons, host.endpoint, image_cache_folder(host.endpoint.address), ENGINE_IMAGE
    )

    def endpoint(socket_path: str) -> Endpoint:
        return Endpoint(
            address=f"unix://{socket_path}", origin="the build's sandbox", follow_links=False
        )

    def make_images() -> None:
        ensure_carrier_image(host)
        if (image := host.find_image(CARRIER_IMAGE)) is not None:
            cache.note_use([image.id])

    return NestedSandbox(
        host,
        daemons,
        cache,
        folder=folder,
        labels=labels,
        limits=lambda: limits(host),
        connect=lambda path: DockerEngine(endpoint(path), use_logins=False),
        copy=lambda image, path, names, cancel: copy_image(
            image, names, host.endpoint, endpoint(path), cancel
        ),
        pulls=lambda path: PulledImages(endpoint(path)),
        image=image.obtain,
        image_is_being_made=lambda: image.is_being_made,
        before=make_images,
        prepare=lambda engine, its_labels: engine.ensure_network(NETWORK, its_labels),
        egress=egress,
        login_for=lambda registry, cancel: registry_login(registry, os.environ, cancel),
        isolation=isolation,
    )


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
