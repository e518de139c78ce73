"""The files of a builder image: read them, hash them, pack them as a build context."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping

from buildrunner.errors import BuildrunnerError

STEPS_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "steps")
"""steps/ of the source tree, or its copy in an installed package."""

# Entries of a step that don't change its image: editing a README must not rebuild anything.
_NOT_IN_CONTEXT = frozenset({"README.md", "cloudbuild.yaml", "test"})

Files = dict[str, bytes]
"""Path relative to the build context -> content.

Modes are left out: an installed package has no executable files. Dockerfiles set the modes.
"""


def read_step_files(folder: str) -> Files:
    """All files of ``steps/FOLDER`` that its image is built from, in order of their paths.

    Raises:
        BuildrunnerError: the folder is missing, which means a broken installation.
    """
    root = os.path.join(STEPS_FOLDER, folder)
    files: Files = {}
    for parent, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            inside = os.path.relpath(path, root)
            if inside.split(os.sep)[0] in _NOT_IN_CONTEXT:
                continue
            with open(path, "rb") as file:
                files[inside] = file.read()
    if "Dockerfile" not in files:
        raise BuildrunnerError(
            f"the files of the builder image {folder!r} are not installed: {root}",
            hint="Install buildrunner again.",
        )
    return files


def content_hash(files: Files, inputs: Mapping[str, str]) -> str:
    """A name for what an image is made from: equal inputs give an equal hash.

    Args:
        files: of the build context.
        inputs: all else that decides the result (the stage, the ids of its parents, ...).
    """
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(f"{name}={value}\0".encode())
    for path, data in sorted(files.items()):
        digest.update(f"{path}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def build_context(files: Files) -> bytes:
    """The files as an uncompressed tar of root's, mode 644, dated 1970: the same every time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, data in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
