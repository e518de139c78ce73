"""The only package that chooses concrete adapters: engines, stores, and workspaces.

Adapters are imported and created on demand: a command loads only the adapters it uses. For the
same reason, each module of this package is imported at the first use of one of its names.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildrunner.wiring.databases import (
        backup_database,
        build_store,
        current_server_store,
        restore_database,
        server_store,
    )
    from buildrunner.wiring.engines import (
        NETWORK,
        build_labels,
        container_engine,
        google_credentials,
        guardian,
        has_engine_image,
        image_factory,
        kubernetes_api,
        metadata_addresses,
        metadata_hosts,
        nested_guardian,
        pod_engine,
        pod_tokens,
        sandbox,
        shared_metadata_server,
    )
    from buildrunner.wiring.outputs import (
        attestation,
        attester,
        home_files,
        identity_keys,
        login_files,
        public_key,
        publisher,
        stores,
        uploader,
    )
    from buildrunner.wiring.secrets import (
        ServerSecrets,
        google_token,
        secret_resolver,
        secret_store,
    )
    from buildrunner.wiring.sources import (
        GitRemotes,
        archive_workspace,
        fetch_git_source,
        git_mirror,
        git_place,
        git_workspace,
        storage_workspace,
        with_dependencies,
        workspace,
    )

__all__ = [
    "NETWORK",
    "GitRemotes",
    "ServerSecrets",
    "archive_workspace",
    "attestation",
    "attester",
    "backup_database",
    "build_labels",
    "build_store",
    "container_engine",
    "current_server_store",
    "fetch_git_source",
    "git_mirror",
    "git_place",
    "git_workspace",
    "google_credentials",
    "google_token",
    "guardian",
    "has_engine_image",
    "home_files",
    "identity_keys",
    "image_factory",
    "kubernetes_api",
    "login_files",
    "metadata_addresses",
    "metadata_hosts",
    "nested_guardian",
    "pod_engine",
    "pod_tokens",
    "public_key",
    "publisher",
    "restore_database",
    "sandbox",
    "secret_resolver",
    "secret_store",
    "server_store",
    "shared_metadata_server",
    "storage_workspace",
    "stores",
    "uploader",
    "with_dependencies",
    "workspace",
]

_MODULES = {
    "databases": (
        "backup_database",
        "build_store",
        "current_server_store",
        "restore_database",
        "server_store",
    ),
    "engines": (
        "NETWORK",
        "build_labels",
        "container_engine",
        "google_credentials",
        "guardian",
        "has_engine_image",
        "image_factory",
        "kubernetes_api",
        "metadata_addresses",
        "metadata_hosts",
        "nested_guardian",
        "pod_engine",
        "pod_tokens",
        "sandbox",
        "shared_metadata_server",
    ),
    "outputs": (
        "attestation",
        "attester",
        "home_files",
        "identity_keys",
        "login_files",
        "public_key",
        "publisher",
        "stores",
        "uploader",
    ),
    "secrets": ("ServerSecrets", "google_token", "secret_resolver", "secret_store"),
    "sources": (
        "GitRemotes",
        "archive_workspace",
        "fetch_git_source",
        "git_mirror",
        "git_place",
        "git_workspace",
        "storage_workspace",
        "with_dependencies",
        "workspace",
    ),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
