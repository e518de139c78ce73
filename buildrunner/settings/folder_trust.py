"""Trust in a project's own settings file: settings that need it, and the files that have it.

A project's file comes with the project, perhaps from an untrusted author. By itself, the file can
only lower the rights of builds. For anything else, the user must trust the file once, in exactly
its present form.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from buildrunner.errors import ConfigError, StoreError
from buildrunner.problem import Problem
from buildrunner.settings.environment import config_folder

_STORE_NAME = "trusted-files.json"


class ProjectFile(msgspec.Struct, frozen=True, kw_only=True):
    """A project's settings file, as read.

    Attributes:
        path: its path; the folder is resolved, so that one folder has one name.
        content: its content.
        needs: settings that need trust: place in the file -> effect.
    """

    path: str
    content: bytes
    needs: dict[str, str]

    @property
    def sha256(self) -> str:
        """Digest of everything that is trusted, in hex.

        It includes the needs, which a link beside the file can change without changing the file.
        """
        trusted = hashlib.sha256(self.content)
        trusted.update(json.dumps(self.needs, sort_keys=True).encode())
        return trusted.hexdigest()


class UntrustedFile(ConfigError):
    """A project's settings file needs trust, and is not trusted."""

    def __init__(self, file: ProjectFile) -> None:
        folder = shlex.quote(os.path.dirname(file.path))
        problems = [
            Problem(
                f"needs your trust: {what}",
                path=place,
                file=file.path,
                hint=f"read that file, then: buildrunner trust {folder}",
            )
            for place, what in file.needs.items()
        ]
        super().__init__(problems)


def needs_of(path: str, tree: Mapping[str, Any], *, own: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a project's file that need trust: place -> effect.

    Args:
        path: path of the file.
        tree: its content, checked by `settings_problems`.
        own: effective fields of `Settings` without the file.
    """
    return dict(_needs(os.path.dirname(path), tree, own))


def _needs(
    folder: str, tree: Mapping[str, Any], own: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    project = tree.get("project", {}).get("id", "")
    if project and project != own.get("project_id"):
        yield "project.id", f"builds are of the project {project}"
    for image, other in tree.get("images", {}).get("aliases", {}).items():
        yield f'images.aliases."{image}"', f"steps run the image {other} for {image}"
    sandbox = tree.get("sandbox", {})
    if sandbox.get("docker_socket") and own.get("docker_socket") is False:
        yield "sandbox.docker_socket", "steps get the engine's socket"
    if sandbox.get("privileged") and own.get("privileged") is not True:
        yield "sandbox.privileged", "steps run privileged"
    for name, source in tree.get("secrets", {}).items():
        kind, _, value = source.partition(":")
        if kind == "env":
            yield f'secrets."{name}"', f"steps can read your environment variable {value}"
        elif not file_inside(folder, value):
            found = os.path.realpath(os.path.join(folder, os.path.expanduser(value)))
            yield f'secrets."{name}"', f"steps can read the file {found}, outside of the folder"
    for repository, other in tree.get("artifacts", {}).get("repositories", {}).items():
        yield f'artifacts.repositories."{repository}"', f"packages are published to {other}"


def file_inside(folder: str, path: str) -> str:
    """Return the resolved path of a file in ``folder``; empty for a file elsewhere.

    Links are resolved. The path must be relative.
    """
    if os.path.isabs(path) or path.startswith("~"):
        return ""
    root = os.path.realpath(folder)
    found = os.path.realpath(os.path.join(root, path))
    return found if found.startswith(f"{root.rstrip('/')}/") else ""


class TrustedFiles:
    """The trusted files of projects, by path and `ProjectFile.sha256`.

    Args:
        environ: names the user's configuration folder with the list.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._path = os.path.join(config_folder(environ), _STORE_NAME)

    def has(self, file: ProjectFile) -> bool:
        """Return whether the file is trusted in its present form."""
        return self.all().get(file.path) == file.sha256

    def add(self, file: ProjectFile) -> None:
        """Trust the file in its present form, which replaces an earlier form.

        Raises:
            StoreError: the list can't be written.
        """
        self._write({**self.all(), file.path: file.sha256})

    def remove(self, path: str) -> bool:
        """Withdraw trust from the file at ``path``. Returns whether it was trusted.

        Raises:
            StoreError: the list can't be written.
        """
        left = self.all()
        found = left.pop(path, None)
        if found is not None:
            self._write(left)
        return found is not None

    def all(self) -> dict[str, str]:
        """Return path -> `ProjectFile.sha256`. A list that can't be read trusts nothing."""
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}

    def _write(self, entries: Mapping[str, str]) -> None:
        import tempfile

        folder = os.path.dirname(self._path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
                json.dump(dict(sorted(entries.items())), file, indent=1)
            os.replace(file.name, self._path)
        except OSError as error:
            raise StoreError(f"{self._path} can't be written: {error.strerror or error}") from error
