"""Copies an image from its registry to a folder in the OCI image layout, within bounds.

Source: the OCI image specification 1.1, "OCI Image Layout".
"""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import msgspec

from buildrunner.errors import RegistryError
from buildrunner.registries.distribution import Manifest, Repository

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Descriptor(msgspec.Struct):
    digest: str
    platform: dict[str, Any] = {}


class _Document(msgspec.Struct):
    """The fields of a manifest or of an index."""

    config: _Descriptor | None = None
    layers: list[_Descriptor] = []
    manifests: list[_Descriptor] = []


def save_image(repository: Repository, manifest: Manifest, folder: str, most_bytes: int) -> None:
    """Copy an image to a folder. Of an index, that is the image for this machine's platform.

    Raises:
        RegistryError: the image is not as it must be, or larger than ``most_bytes``.
        OSError: the folder can't be written.
    """
    document = _document(manifest)
    if document.manifests:
        manifest = _for_this_machine(repository, document.manifests)
        document = _document(manifest)
    if document.config is None:
        raise RegistryError(f"{repository.name}@{manifest.digest} is no image")
    blobs = os.path.join(folder, "blobs", "sha256")
    os.makedirs(blobs)
    for digest in dict.fromkeys(one.digest for one in (document.config, *document.layers)):
        most_bytes -= repository.save_blob(digest, _path(blobs, digest), most_bytes)
    _write(_path(blobs, manifest.digest), manifest.body)
    entry = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": len(manifest.body),
    }
    index = {"schemaVersion": 2, "manifests": [entry]}
    _write(os.path.join(folder, "index.json"), json.dumps(index).encode())
    _write(os.path.join(folder, "oci-layout"), b'{"imageLayoutVersion": "1.0.0"}')


def _for_this_machine(repository: Repository, manifests: list[_Descriptor]) -> Manifest:
    machine = platform.machine()
    wanted = {"os": "linux", "architecture": _ARCHITECTURES.get(machine, machine)}
    fitting = [one for one in manifests if wanted.items() <= one.platform.items()]
    for one in (fitting or manifests)[:1]:
        found = repository.manifest(one.digest)
        if found is not None:
            return found
    raise RegistryError(f"{repository.name} does not have the image of its index")


def _document(manifest: Manifest) -> _Document:
    try:
        return msgspec.json.decode(manifest.body, type=_Document)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RegistryError(f"the manifest {manifest.digest} can't be read: {error}") from error


def _path(blobs: str, digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or not value.isalnum():
        raise RegistryError(f"{digest!r} is no SHA-256 digest")
    return os.path.join(blobs, value)


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
