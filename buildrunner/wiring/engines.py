"""The places where builds run: engine, sandboxes, metadata server, and the cluster of pools."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from buildrunner.addresses import NO_WALL, Egress
from buildrunner.containers.protocol import LABEL_BUILD, AddressRange
from buildrunner.errors import BuildrunnerError, EngineError, UsageError
from buildrunner.settings import Settings, lock_folder

if TYPE_CHECKING:
    from buildrunner.builders.image_factory import ImageFactory
    from buildrunner.builders.installer import Reporter
    from buildrunner.containers.docker.engine import DockerEngine
    from buildrunner.containers.docker.factory import DockerImageFactory
    from buildrunner.containers.protocol import ContainerEngine
    from buildrunner.engine.image_pulls import PublicImages
    from buildrunner.kubernetes.api import KubernetesApi
    from buildrunner.kubernetes.pod_tokens import PodTokens
    from buildrunner.metadata import (
        Credentials,
        GoogleCredentials,
        MetadataServer,
        ProjectFacts,
    )
    from buildrunner.sandboxes.guardian import Guardian
    from buildrunner.sandboxes.protocol import Sandbox, SandboxLimits
    from buildrunner.store.sql.store import ServerStore

NETWORK = "cloudbuild"


def container_engine(logins: Mapping[str, str] = os.environ) -> DockerEngine:
    """Return the engine that the ``docker`` command would use. It is not connected yet.

    Args:
        logins: variables that name the files with logins of registries.
    """
    from buildrunner.containers.docker.endpoint import find_endpoint
    from buildrunner.containers.docker.engine import DockerEngine

    endpoint = find_endpoint(os.environ)
    return DockerEngine(endpoint, environ=logins, network_lock=_network_turn)


def pod_engine() -> DockerEngine:
    """Return the engine of this Pod. It gets no logins, since steps can replace it."""
    from msgspec.structs import replace

    from buildrunner.containers.docker.endpoint import find_endpoint
    from buildrunner.containers.docker.engine import DockerEngine

    endpoint = replace(find_endpoint(os.environ), trusted=False)
    return DockerEngine(endpoint, use_logins=False, network_lock=_network_turn)


def _network_turn(address: str) -> AbstractContextManager[None]:
    from buildrunner.containers.cleanup import network_lock

    return network_lock(lock_folder(), address)


def image_factory() -> ImageFactory:
    """Return the factory of builder images, on the engine that the ``docker`` command would use."""
    from buildrunner.containers.docker.factory import DockerImageFactory

    return DockerImageFactory(container_engine(), os.environ)


def build_labels(build_id: str) -> dict[str, str]:
    """Return the labels of all resources of a build: the build, and the process that owns it."""
    from buildrunner.containers.cleanup import owner_label
    from buildrunner.containers.process_owner import this_process
    from buildrunner.containers.protocol import LABEL_OWNER

    return {LABEL_BUILD: build_id, LABEL_OWNER: owner_label(this_process())}


def guardian(
    engine: DockerEngine, build_id: str, *, address_range: AddressRange | None = None
) -> Guardian:
    """Start the process that cleans up after a build, however this process ends.

    It also holds the network for the build. The network is created at once, in a thread: this takes
    the engine 70 ms, in which this process can do other work.

    Raises:
        EngineError: the process can't be started.
    """
    # Imported here, not in the thread: two threads that import block each other, which would delay
    # the request for the network.
    import buildrunner.containers.docker.transport  # noqa: F401
    from buildrunner.sandboxes.guardian import Guardian

    started = Guardian.start(build_id, engine.endpoint, lock_folder())
    labels = build_labels(build_id)

    def ask_for_network() -> None:
        started.hold_network()
        with suppress(BuildrunnerError):  # the build retries, and reports the error
            engine.ensure_network(NETWORK, labels, address_range=address_range)

    started.run_ahead(ask_for_network)
    return started


def nested_guardian(engine: DockerEngine, build_id: str, folder: str) -> Guardian:
    """Start the process that removes a build's nested sandbox, however this process ends.

    Args:
        engine: the engine that runs the sandbox.
        build_id: the build.
        folder: the ``data_folder`` of `sandbox`.

    Raises:
        EngineError: the process can't be started.
    """
    from buildrunner.builders.catalog import ENGINE_IMAGE
    from buildrunner.sandboxes.guardian import Guardian

    started = Guardian.start(build_id, engine.endpoint, lock_folder())
    started.note_directory(os.path.join(folder, "run", build_id))
    started.note_image_cache(image_cache_folder(engine.endpoint.address), ENGINE_IMAGE, folder)
    return started


def image_cache_folder(address: str) -> str:
    """Return this user's folder for the image cache of the engine at an address."""
    name = "".join(letter if letter.isalnum() else "_" for letter in address)
    return os.path.join(lock_folder(), f"images-{name}")


def sandbox(
    name: str,
    *,
    data_folder: str,
    labels: Mapping[str, str],
    settings: Settings,
    limits: SandboxLimits | None = None,
    builds: int = 0,
    isolation: str = "",
    pod_egress: Egress = NO_WALL,
    disk_gib: int = 0,
    reporter: Reporter | None = None,
) -> Sandbox:
    """Return the sandboxes of builds, on the engine that the ``docker`` command would use.

    Args:
        name: ``host``, ``nested``, ``pod`` or ``none``.
        data_folder: folder for data of sandboxes on this machine.
        labels: labels of all resources on the engine, besides the build's own label.
        settings: settings with the networks that nested sandboxes reach, and the logins.
        limits: limits of each nested sandbox; None for its share of the machine.
        builds: number of builds that share the machine; 0 if unknown.
        isolation: required isolation of builds of forks; see `sandboxes.protocol.ISOLATIONS`. For
            ``pod``, the isolation of the Pod.
        pod_egress: networks that the engine of the Pod can't reach.
        disk_gib: disk limit of each nested sandbox; 0 sets no limit.
        reporter: shows the progress of making the image of nested engines; None logs it.

    Raises:
        UsageError: no sandbox has this name.
    """
    if name == "none":
        from buildrunner.sandboxes.protocol import NoSandbox

        return NoSandbox()
    logins = settings.logins_environ(os.environ)
    if name == "host":
        from buildrunner.sandboxes.host import HostSandbox

        return HostSandbox(container_engine(logins), labels)
    if name == "pod":
        from buildrunner.sandboxes.pod import PodSandbox
        from buildrunner.sandboxes.pod_engine import PodEngine, PodRelay, shared_folder

        engine = pod_engine()
        folder = shared_folder(engine.endpoint.socket_path)
        relay = PodRelay(os.environ)
        return PodSandbox(
            PodEngine(engine, folder, logins, settings.egress, relay),
            labels,
            isolation,
            egress=pod_egress,
            network=NETWORK,
        )
    if name != "nested":
        raise UsageError(f"there is no sandbox {name!r}", hint="there are: host, nested, none")
    # Imported here: most commands do not need it, and it imports httpx.
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
    """Return the images of the machine that builds of all projects can use."""
    from buildrunner.builders.catalog import BUILDERS
    from buildrunner.engine.image_pulls import PublicImages
    from buildrunner.workspace.volume import EMPTY_IMAGE

    builders = (builder.image for builder in BUILDERS)
    aliases = settings.image_aliases.values()
    common = (*settings.untrusted_images, *aliases, *builders, EMPTY_IMAGE)
    return PublicImages(common, lambda _: "")


def has_engine_image(host: DockerEngine) -> bool:
    """Return whether the engine has an up-to-date image of nested engines.

    Raises:
        EngineUnavailable: the engine does not answer.
    """
    from buildrunner.builders.installer import current_image
    from buildrunner.containers.docker.factory import DockerImageFactory

    factory = DockerImageFactory(host, os.environ)
    try:
        return current_image(factory, "engine") is not None
    finally:
        factory.close()


class _EngineImage:
    """The image of nested engines on an engine.

    Attributes:
        is_being_made: the image was missing, and this object is making it.
    """

    def __init__(self, host: DockerEngine, reporter: Reporter | None) -> None:
        self.is_being_made = False
        self._host = host
        self._reporter = reporter

    def obtain(self) -> str:
        """Return the id of the image. A missing image is made now, which takes 20 to 60 s."""
        from buildrunner.builders.catalog import ENGINE_IMAGE
        from buildrunner.builders.installer import current_image
        from buildrunner.containers.docker.factory import DockerImageFactory
        from buildrunner.containers.process_owner import file_lock

        factory = DockerImageFactory(self._host, os.environ)
        try:
            with file_lock(os.path.join(lock_folder(), "engine-image.lock")):
                found = current_image(factory, "engine")
                if found is None:
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


def kubernetes_api() -> KubernetesApi:
    """Return the API of the cluster that the environment names. It is not connected yet.

    Raises:
        KubernetesError: no cluster is configured, or packages are missing.
    """
    from buildrunner.kubernetes.api import KubernetesApi

    return KubernetesApi()


def pod_tokens(api: KubernetesApi, settings: Settings, store: ServerStore) -> PodTokens:
    """Return the verifier of the tokens of the Pods of the server's builds."""
    from buildrunner.errors import NotFound
    from buildrunner.kubernetes.pod_tokens import PodTokens

    def pool_of(build_id: str) -> str:
        try:
            return store.builds.find(build_id).pool
        except NotFound:
            return ""

    return PodTokens(api.account_keys, settings.pools, pool_of, store.queue.spare_claim)


def metadata_addresses() -> AddressRange:
    """Return the addresses of the network with which steps find the metadata server.

    Raises:
        UsageError: this is a Compute Engine machine, whose own server has that address.
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
        return ""  # not Linux, or a container without access


def google_credentials(key_file: str | None) -> GoogleCredentials | None:
    """Return the Google credentials that make tokens for steps.

    Args:
        key_file: file with credentials; empty for the application default ones; None for none.

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
    """Start the metadata server on the network of builds, for one build at a time.

    Args:
        engine: the engine with the network, which may still be created.
        build_id: the build.
        facts: facts about the project of the build.
        credentials: source of the tokens; None for no tokens.

    Raises:
        EngineError: the network or the address is not available.
    """
    from buildrunner.metadata import MetadataServer, listen_on

    engine.ensure_network(NETWORK, build_labels(build_id), address_range=metadata_addresses())
    may_ask = partial(is_of_build, engine, build_id)
    return MetadataServer(listen_on(), facts, credentials=credentials, may_ask=may_ask)


def is_of_build(engine: ContainerEngine, build_id: str, address: str) -> bool:
    """Return whether a client is on the network and is no step of another build.

    Other containers and users of this machine also reach the server's address, and all builds are
    on one network. A container that a step starts on that network has no labels and is allowed:
    starting it requires the engine's socket.
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
    """Return the metadata server's names, for the hosts file of every step."""
    from buildrunner.metadata import HOST_NAMES, NETWORK_GATEWAY

    return tuple(f"{name}:{NETWORK_GATEWAY}" for name in HOST_NAMES)
