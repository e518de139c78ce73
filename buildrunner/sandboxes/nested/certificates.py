"""The registries' certificates that this machine's engine trusts, for the engines of sandboxes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

FOLDER = "/etc/docker/certs.d"
"""Docker's folder; it has one folder for each registry, called ``HOST:PORT``."""


def registry_authorities() -> dict[str, bytes]:
    """Certificates of the authorities that sign the registries' certificates.

    Client certificates and their keys stay on this machine: steps can read all that a sandbox has.

    Returns:
        The content by path below `FOLDER`, such as ``registry.example.com:5000/ca.crt``. What is
        taken away while this function reads is missing.
    """
    found: dict[str, bytes] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for registry in sorted(os.listdir(FOLDER)):
            found.update(_authorities_of(registry))
    return found


def write_authorities(folder: str) -> None:
    """Make `folder`, with a copy of `registry_authorities`.

    A copy, because the engine's start fails if the folder of this machine goes meanwhile.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for path, content in registry_authorities().items():
        copy = os.path.join(folder, path)
        os.makedirs(os.path.dirname(copy), mode=0o700, exist_ok=True)
        with open(copy, "wb") as file:
            file.write(content)


def _authorities_of(registry: str) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(os.path.join(FOLDER, registry))):
            if name.endswith(".crt"):
                with open(os.path.join(FOLDER, registry, name), "rb") as file:
                    found[f"{registry}/{name}"] = file.read()
    return found
