"""The only place that names concrete adapters: which engine, which store, which workspace.

Everything is made on demand, and imported then: a command pays for what it uses.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner.errors import BuildrunnerError, UsageError
from buildrunner.settings import lock_folder

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from buildrunner.builders.image_factory import ImageFactory
    from buildrunner.containers.docker import DockerEngine
    from buildrunner.containers.engine_protocol import AddressRange, ContainerEngine
    from buildrunner.containers.guardian import Guardian
    from buildrunner.engine.object_upload import ObjectUploader
    from buildrunner.engine.package_publishing import PackagePublisher
    from buildrunner.engine.secret_resolver import SecretResolver
    from buildrunner.engine.workspace_protocol import Workspace
    from buildrunner.metadata.google_credentials import GoogleCredentials
    from buildrunner.metadata.server import MetadataServer, ProjectFacts
    from buildrunner.plan.build_plan import BuildPlan, SecretReference
    from buildrunner.secrets.google_api import GoogleApi
    from buildrunner.secrets.local_store import LocalSecretStore
    from buildrunner.secrets.provider import SecretProvider
    from buildrunner.settings import Settings
    from buildrunner.sources.git_command import Progress
    from buildrunner.sources.git_mirror import GitMirror
    from buildrunner.sources.git_source import GitCheckout, GitPlace, GitRequest
    from buildrunner.sources.source_policy import SourcePolicy
    from buildrunner.spec.model import Build
    from buildrunner.spec.model_results import HashType
    from buildrunner.spec.model_source import Source
    from buildrunner.storage.stores import Stores
    from buildrunner.store.build_store import BuildStore
    from buildrunner.store.server_store import ServerStore
    from buildrunner.store.sql_backup import BackupFacts
    from buildrunner.worker.sandbox import Sandbox, SandboxLimits
    from buildrunner.worker.sandbox_nested import NestedSandbox

NETWORK = "cloudbuild"

_GOOGLE_OFF = "Google is not asked without --google-secrets"


def container_engine() -> DockerEngine:
    """The engine that the ``docker`` command would use. Opens no connection yet."""
    from buildrunner.containers.docker import DockerEngine

    return DockerEngine(environ=os.environ)


def image_factory() -> ImageFactory:
    """What makes builder images, on the engine that the ``docker`` command would use."""
    from buildrunner.containers.docker_factory import DockerImageFactory

    return DockerImageFactory(container_engine(), os.environ)


def guardian(
    engine: DockerEngine, build_id: str, *, address_range: AddressRange | None = None
) -> Guardian:
    """The process that cleans up after a build however this one ends; holds the network for it.

    The network itself is asked for at once, in a thread: making it takes the engine 70 ms, in which
    this process can do other things.

    Raises:
        EngineError: it can't be started.
    """
    from buildrunner.containers.guardian import Guardian

    started = Guardian.start(build_id, engine.endpoint, lock_folder())
    labels = build_labels(build_id)

    def ask_for_network() -> None:
        started.hold_network()
        with suppress(BuildrunnerError):  # the build asks again, and reports what is wrong
            engine.ensure_network(NETWORK, labels, address_range=address_range)

    started.run_ahead(ask_for_network)
    return started


def nested_guardian(engine: DockerEngine, build_id: str, folder: str) -> Guardian:
    """The process that removes a build's nested sandbox however this one ends.

    Args:
        engine: the engine that it is nested in.
        build_id: the build.
        folder: the ``data_folder`` of `sandbox`.

    Raises:
        EngineError: it can't be started.
    """
    from buildrunner.containers.guardian import Guardian

    started = Guardian.start(build_id, engine.endpoint, lock_folder())
    started.note_directory(os.path.join(folder, "run", build_id))
    started.note_sandbox(_nested_lock())
    return started


def _nested_lock() -> str:
    return os.path.join(lock_folder(), "nested.lock")


def metadata_addresses() -> AddressRange:
    """Addresses of the network with which steps find the metadata server.

    Raises:
        UsageError: on a Compute Engine machine, whose own server is at that address.
    """
    from buildrunner.containers.engine_protocol import AddressRange
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


def build_labels(build_id: str) -> dict[str, str]:
    """Labels of everything that is made for a build: whose it is, and which process owns it."""
    from buildrunner.containers.cleanup import owner_label
    from buildrunner.containers.engine_protocol import LABEL_BUILD, LABEL_OWNER
    from buildrunner.store.process_owner import this_process

    return {LABEL_BUILD: build_id, LABEL_OWNER: owner_label(this_process())}


def pause_image(engine: ContainerEngine) -> str | None:
    """Image for holding network namespaces, made when missing; None where there is none.

    Raises:
        EngineError: the engine does not answer, or refused.
    """
    from buildrunner.containers.pause_image import ensure_pause_image

    return ensure_pause_image(engine)


def workspace(folder: str | None, *, ignore_file: str = "") -> Workspace:
    """A workspace that begins with ``folder``; empty when None.

    Raises:
        UsageError: no such folder, or no such ignore file.
        SourceError: ignore rules that can't be read.
    """
    from buildrunner.engine.workspace import EmptyWorkspace, FolderWorkspace

    if folder is None:
        return EmptyWorkspace()
    from buildrunner.sources.local_folder import LocalFolder

    return FolderWorkspace(LocalFolder(folder, ignore_file=ignore_file))


def archive_workspace(path: str, hashes: Sequence[HashType] = ()) -> Workspace:
    """A workspace that begins with an archive of this machine; ``hashes`` of it are recorded."""
    from buildrunner.engine.workspace_fetched import FetchedWorkspace
    from buildrunner.sources.local_archive import LocalArchive

    return FetchedWorkspace(LocalArchive(path, hashes))


def storage_workspace(build: Build, stores: Stores) -> Workspace | None:
    """A workspace that begins with the build's archive or manifest in a bucket; None without."""
    source = build.source
    hashes = build.options.source_provenance_hash if build.options else ()
    if source is None:
        return None
    if source.storage_source:
        from buildrunner.engine.workspace_fetched import FetchedWorkspace
        from buildrunner.sources.gcs_source import StorageArchive

        where = source.storage_source
        store = stores.store_of(where.bucket, where.object)
        return FetchedWorkspace(StorageArchive(where, store, hashes=hashes))
    if source.storage_source_manifest:
        from buildrunner.engine.workspace_fetched import FetchedWorkspace
        from buildrunner.sources.gcs_manifest import StorageManifest

        manifest = StorageManifest(source.storage_source_manifest, stores, hashes=hashes)
        return FetchedWorkspace(manifest)
    return None


def git_mirror(settings: Settings) -> GitMirror:
    """The cache of Git repositories that the settings name."""
    from buildrunner.settings import cache_folder
    from buildrunner.sources.git_mirror import GitMirror

    folder = settings.git.cache or os.path.join(cache_folder(), "git")
    return GitMirror(folder, quota_bytes=settings.git.cache_gib * 2**30)


def git_place(
    settings: Settings, *, folder: str = "", policy: SourcePolicy | None = None
) -> GitPlace:
    """Where the fetches of one build may come from, and where they go.

    Args:
        settings: name the cache.
        folder: in place of the cache; whoever made it removes it.
        policy: what may be fetched from; None: anything.
    """
    from buildrunner.sources.git_source import GitPlace

    mirror = None if folder else git_mirror(settings)
    if policy is None:
        return GitPlace(mirror=mirror, temporary=folder or None)
    from buildrunner.sources.source_gate import SourceGate

    gate = SourceGate(policy)
    return GitPlace(mirror=mirror, temporary=folder or None, allow_host=gate.allows, pin=gate.pin)


def git_request(source: Source, settings: Settings) -> GitRequest:
    """What a Git source asks for, with what the settings say about it.

    Raises:
        SourceError: nobody says where the repository is, or a token is not to be had.
    """
    from buildrunner.sources.git_checkout import GitOptions
    from buildrunner.sources.git_source import request_of

    request = request_of(
        source, project_id=settings.project_id, repositories=settings.git.repositories
    )
    options = GitOptions(submodules=settings.git.submodules, lfs=settings.git.lfs)
    return _with_credentials(replace(request, options=options), settings)


def _with_credentials(request: GitRequest, settings: Settings) -> GitRequest:
    from buildrunner.sources.git_access import GitAccess, credentials_for
    from buildrunner.sources.git_url import parse_git_url

    git = settings.git
    access = GitAccess(
        tokens=git.tokens,
        ssh_keys=git.ssh_keys,
        known_hosts=git.known_hosts,
        host_keys=git.host_keys,
    )
    url = parse_git_url(request.url)
    if url.password:  # what the URL itself says wins
        return request
    return replace(request, credentials=credentials_for(url, access, os.environ))


def fetch_git_source(
    source: Source,
    settings: Settings,
    place: GitPlace,
    *,
    cancel: threading.Event,
    progress: Progress | None = None,
) -> GitCheckout:
    """Fetch a Git source with what the settings say about it, in the calling thread.

    Raises:
        SourceError: it can't be had; nothing is left behind.
    """
    from buildrunner.sources.git_source import fetch_git

    return fetch_git(
        git_request(source, settings),
        mirror=place.mirror,
        cancel=cancel,
        progress=progress,
        allow_host=place.allow_host,
        pin=place.pin,
        temporary=place.temporary,
    )


class GitRemotes:
    """Asks Git servers, with what the settings say about them and within a policy. Thread-safe.

    Args:
        settings: credentials.
        policy: what may be asked; None: anything.
    """

    def __init__(self, settings: Settings, policy: SourcePolicy | None) -> None:
        self._settings = settings
        self._policy = policy

    def list_refs(self, url: str, cancel: threading.Event) -> dict[str, str]:
        """See `sources.git_remote.list_refs`."""
        from buildrunner.sources.git_remote import list_refs

        return list_refs(self._request(url), self._place(), cancel)

    def message(self, url: str, commit: str, cancel: threading.Event) -> str:
        """See `sources.git_remote.commit_message`."""
        from buildrunner.sources.git_remote import commit_message

        return commit_message(self._request(url), commit, place=self._place(), cancel=cancel)

    def changed_files(
        self, url: str, old: str, new: str, from_merge_base: bool, cancel: threading.Event
    ) -> tuple[str, ...]:
        """See `sources.git_remote.changed_files`."""
        from buildrunner.sources.git_remote import changed_files

        return changed_files(
            self._request(url),
            old,
            new,
            from_merge_base=from_merge_base,
            place=self._place(),
            cancel=cancel,
        )

    def _request(self, url: str) -> GitRequest:
        from buildrunner.sources.git_source import GitRequest

        return _with_credentials(GitRequest(url=url), self._settings)

    def _place(self) -> GitPlace:
        return git_place(self._settings, policy=self._policy)


def git_workspace(checkout: GitCheckout) -> Workspace:
    """A workspace that begins with a fetched commit, and gives it back."""
    from buildrunner.engine.workspace import FolderWorkspace
    from buildrunner.sources.git_workspace import GitWorkspace

    return GitWorkspace(checkout, FolderWorkspace)


def with_dependencies(
    workspace: Workspace,
    build: Build,
    settings: Settings,
    place: GitPlace,
) -> Workspace:
    """The workspace, with the build's ``dependencies`` beside the source in it.

    Raises:
        SourceError: a dependency can't be fetched as it is written.
    """
    wanted = [one.git_source for one in build.dependencies if one.git_source is not None]
    if not wanted:
        return workspace
    from buildrunner.engine.workspace_dependencies import DependentWorkspace
    from buildrunner.sources.git_dependency import GitDependency, dependency_request

    dependencies = [
        GitDependency(
            _with_credentials(dependency_request(one), settings),
            one.dest_path,
            place,
        )
        for one in wanted
    ]
    return DependentWorkspace(workspace, dependencies)


def stores(settings: Settings) -> Stores:
    """Which store has which bucket.

    Raises:
        UsageError: a folder that stands for a bucket is not written as it must be.
    """
    from buildrunner.storage.stores import Stores

    return Stores(settings.storage_folders)


def uploader(plan: BuildPlan, stores: Stores) -> ObjectUploader | None:
    """Uploads the plan's ``artifacts.objects``; None for a plan without any."""
    if not plan.object_paths:
        return None
    from buildrunner.artifacts.objects import GcsUploader

    return GcsUploader(stores)


def publisher(
    plan: BuildPlan, settings: Settings, engine: ContainerEngine
) -> PackagePublisher | None:
    """Publishes the plan's packages; None for a plan without any.

    Raises:
        ConfigError: one of them can't be published from here.
        EngineError: the engine does not tell what images it has.
    """
    if not plan.packages:
        return None
    from buildrunner.artifacts.packages import ContainerPublisher
    from buildrunner.registries.authorities import trusted_authorities
    from buildrunner.registries.package_logins import PackageLogins

    made = ContainerPublisher(
        engine,
        build_labels(plan.build_id),
        settings.package_repositories,
        PackageLogins(os.environ, google_token()),
        trusted_authorities(os.environ),
    )
    made.check(plan.packages)
    return made


def home_files(plan: BuildPlan, settings: Settings) -> dict[str, bytes]:
    """Files for ``/builder/home``: registry logins for steps, if the user lets them have any."""
    if not settings.share_registry_logins:
        return {}
    from buildrunner.containers.step_credentials import step_docker_config

    images = {*plan.images, *(step.image for step in plan.steps)}
    config = step_docker_config(os.environ, images)
    return {} if config is None else {".docker/config.json": config}


def secret_resolver(settings: Settings) -> SecretResolver:
    """Whoever knows secrets. Most builds have none: nothing is imported before one is asked for."""
    return _SecretsOnDemand(settings)


class _SecretsOnDemand:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._providers: SecretResolver | None = None

    def resolve(self, reference: SecretReference) -> str:
        if self._providers is None:
            self._providers = _secret_providers(self._settings)
        return self._providers.resolve(reference)


def _secret_providers(settings: Settings) -> SecretResolver:
    """In this order: mapping, local store, decrypt command, Google."""
    from buildrunner.secrets.mapped import MappedSecrets
    from buildrunner.secrets.provider import NotAsked, ProviderChain
    from buildrunner.secrets.stored import StoredSecrets

    providers: list[SecretProvider] = [
        MappedSecrets(settings.secrets, os.environ),
        StoredSecrets(secret_store(settings)),
    ]
    if settings.kms_command:
        from buildrunner.secrets.decrypt_command import CommandSecrets

        providers.append(CommandSecrets(settings.kms_command))
    providers.extend(_google_secrets() if settings.google_secrets else [NotAsked(_GOOGLE_OFF)])
    return ProviderChain(providers)


def secret_store(settings: Settings) -> LocalSecretStore:
    """The user's own encrypted secrets. Nothing is read or made yet."""
    from buildrunner.secrets.local_store import KEY_NAME, LocalSecretStore
    from buildrunner.secrets.store_key import KeyFile, KeyringKey
    from buildrunner.settings import secrets_folder

    folder = secrets_folder()
    if settings.secrets_key == "keyring":
        return LocalSecretStore(folder, KeyringKey(folder))
    return LocalSecretStore(folder, KeyFile(os.path.join(folder, KEY_NAME)))


def _google_secrets() -> list[SecretProvider]:
    import time

    from buildrunner.secrets.google_api import GoogleApi
    from buildrunner.secrets.google_secrets import (
        KmsSecrets,
        SecretManagerSecrets,
    )
    from buildrunner.settings import google_endpoint

    token = google_token()

    def secret_manager(endpoint: str) -> GoogleApi:
        return GoogleApi(google_endpoint("SECRETMANAGER", endpoint), token, time.sleep)

    def kms(endpoint: str) -> GoogleApi:
        return GoogleApi(google_endpoint("CLOUDKMS", endpoint), token, time.sleep)

    return [SecretManagerSecrets(secret_manager), KmsSecrets(kms)]


def google_token() -> Callable[[], str]:
    """Gives access tokens of the user's own Google credentials; looks for them when called."""
    loaded: list[GoogleCredentials] = []

    def token() -> str:
        from buildrunner.secrets.google_api import SCOPES

        # Credentials are looked for when something needs them: that may ask a metadata server.
        if not loaded:
            from buildrunner.metadata.google_credentials import GoogleCredentials

            loaded.append(GoogleCredentials())
        return loaded[0].access_token(SCOPES).value

    return token


def build_store(folder: str) -> BuildStore:
    """The local store in a folder."""
    from buildrunner.store.local_store import LocalBuildStore

    return LocalBuildStore(folder)


def server_store(address: str) -> ServerStore:
    """The server's database, its tables brought up to date.

    Args:
        address: ``sqlite:////folder/server.db`` or ``postgresql://user:password@host/name``.

    Raises:
        UsageError: the address is of no known form.
        StoreError: the database can't be used, or belongs to a newer version.
    """
    from buildrunner.store.sql_store import open_store

    return open_store(address)


def backup_database(address: str, path: str) -> BackupFacts:
    """Copy a server's database into a new file; see `buildrunner.store.sql_backup.backup`."""
    from buildrunner.store.sql_backup import backup

    return backup(address, path)


def restore_database(path: str, address: str, *, replace: bool) -> BackupFacts:
    """Make a backup the database; see `buildrunner.store.sql_backup.restore`."""
    from buildrunner.store.sql_backup import restore

    return restore(path, address, replace=replace)


def sandbox(
    name: str,
    *,
    data_folder: str,
    labels: Mapping[str, str],
    settings: Settings,  # noqa: ARG001  (none yet)
    limits: SandboxLimits | None = None,
    builds: int = 0,
) -> Sandbox:
    """Where builds live, on the engine that the ``docker`` command would use.

    Args:
        name: ``host`` or ``nested``.
        data_folder: folder for what this machine keeps of sandboxes.
        labels: what everything made on the engine carries, besides the build's own label.
        settings: for what there is to choose.
        limits: of each nested sandbox; None for its share.
        builds: how many builds share the machine; 0 when that is nobody's business.

    Raises:
        UsageError: there is no such sandbox.
    """
    if name == "host":
        from buildrunner.worker.sandbox_host import HostSandbox

        return HostSandbox(container_engine(), labels)
    if name != "nested":
        raise UsageError(f"there is no sandbox {name!r}", hint="there are: host, nested")
    return _nested_sandbox(data_folder, labels, limits, builds)


def _nested_sandbox(
    folder: str, labels: Mapping[str, str], limits: SandboxLimits | None, builds: int
) -> NestedSandbox:
    from buildrunner.containers.docker import DockerEngine
    from buildrunner.containers.endpoint import Endpoint
    from buildrunner.containers.image_copy import copy_image
    from buildrunner.containers.image_events import PulledImages
    from buildrunner.containers.nested_daemon import NestedDaemons
    from buildrunner.engine.workspace_archive import ensure_carrier_image
    from buildrunner.worker.sandbox import fair_share
    from buildrunner.worker.sandbox_nested import NestedSandbox

    host = container_engine()

    def endpoint(socket_path: str) -> Endpoint:
        return Endpoint(address=f"unix://{socket_path}", origin="the build's sandbox")

    def make_images() -> None:
        ensure_carrier_image(host)
        pause_image(host)

    return NestedSandbox(
        host,
        NestedDaemons(host.endpoint),
        folder=folder,
        lock_path=_nested_lock(),
        labels=labels,
        limits=lambda: limits or fair_share(builds, host.info().memory_bytes),
        connect=lambda path: DockerEngine(endpoint(path), environ=os.environ),
        copy=lambda name, path, cancel: copy_image(name, host.endpoint, endpoint(path), cancel),
        pulls=lambda path: PulledImages(endpoint(path)),
        image=lambda: _engine_image(host),
        before=make_images,
    )


def _engine_image(host: DockerEngine) -> str:
    """The image of nested engines; made now where it is missing, which takes some 20 s."""
    from buildrunner.builders.catalog import ENGINE_IMAGE
    from buildrunner.builders.installer import Installer, SilentReporter, is_current, with_parents
    from buildrunner.containers.docker_factory import DockerImageFactory

    factory = DockerImageFactory(host, os.environ)
    try:
        if not is_current(factory, "engine"):
            from buildrunner.builders.host_settings import read_host_settings

            settings = read_host_settings(os.environ)
            installer = Installer(factory, settings, os.environ, SilentReporter())
            installer.install(with_parents(["engine"]))
    finally:
        factory.close()
    return ENGINE_IMAGE
