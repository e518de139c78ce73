"""The settings of a server, as workers on other hosts get them.

A worker runs a build with the settings of the build's project on the server: aliases of images,
privileges, the policy. What names something on the server's own machine does not leave it: places
of secrets, keys, logins and folders. For these, the settings of the worker's own machine count.
Provenance is off: the key that signs it does not leave the server.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from buildrunner.settings.settings_file import Settings

_OF_SERVER: Final = (
    "project_id",
    "image_aliases",
    "untrusted_images",
    "docker_socket",
    "privileged",
    "package_repositories",
    "storage_buckets",
    "egress_allow",
    "egress_deny",
    "policy",
)
_GIT_OF_SERVER: Final = ("submodules", "lfs", "repositories", "host_keys")


def settings_for_workers(settings: Settings, project: str) -> dict[str, Any]:
    """Return the fields of a server's settings that workers get for builds of a project."""
    of_project = settings.of_project(project)
    fields = {name: getattr(of_project, name) for name in _OF_SERVER}
    git = {name: getattr(of_project.git, name) for name in _GIT_OF_SERVER}
    return {**fields, "git": git}


def settings_of_worker(own: Settings, fields: dict[str, Any]) -> Settings:
    """Return the settings of a worker for one build.

    Args:
        own: the settings of the worker's machine.
        fields: what `settings_for_workers` returned on the server.

    Raises:
        msgspec.ValidationError: a field has another type.
    """
    known = {name: value for name, value in fields.items() if name in _OF_SERVER}
    git = {name: value for name, value in fields.get("git", {}).items() if name in _GIT_OF_SERVER}
    common = {**msgspec.to_builtins(own), **known, "projects": {}, "provenance": False}
    common["git"] = {**msgspec.to_builtins(own.git), **git}
    return msgspec.convert(common, type=Settings)
