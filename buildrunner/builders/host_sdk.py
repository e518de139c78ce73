"""The Google Cloud SDK of this machine, as the archive of an image."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping

from buildrunner.builders.catalog import REPOSITORY

HOST_SDK_IMAGE = f"{REPOSITORY}/host-sdk:latest"
"""The image of git with the SDK, on which the builder images with it are made."""

_PLATFORM = ("bq", "bundledpythonunix", "gsutil")
_PROGRAMS = (
    "bootstrapping",
    "bq",
    "docker-credential-gcloud",
    "gcloud",
    "gcloud-crc32c",
    "git-credential-gcloud.sh",
    "gke-gcloud-auth-plugin",
    "gsutil",
    "kubectl",
)
_FOLDERS = ("data", "lib", *(f"platform/{name}" for name in _PLATFORM))
_LEFT_OUT = frozenset({"__pycache__", ".backup", "RELEASE_NOTES"})
_CHUNK = 1 << 20


def find_sdk(environ: Mapping[str, str]) -> str:
    """The root folder of the SDK whose ``gcloud`` is on the PATH; empty where there is none."""
    program = shutil.which("gcloud", path=environ.get("PATH"))
    if program is None:
        return ""
    root = os.path.dirname(os.path.dirname(os.path.realpath(program)))
    return root if os.path.isfile(os.path.join(root, "lib", "gcloud.py")) else ""


def sdk_version(root: str) -> str:
    """The SDK's version."""
    with open(os.path.join(root, "VERSION"), encoding="utf-8") as file:
        return file.read().strip()


def sdk_archive(root: str) -> Iterator[bytes]:
    """The SDK below ``builder/google-cloud-sdk/`` as a tar stream: gcloud, gsutil, bq, kubectl.

    Emulators and App Engine's SDKs are left out, as are configuration and credentials, which do not
    lie in the SDK's folder but in the user's.
    """
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            names = [name for name in os.listdir(root) if os.path.isfile(os.path.join(root, name))]
            programs = os.listdir(os.path.join(root, "bin"))
            programs = [f"bin/{name}" for name in programs if _wanted(name)]
            for name in sorted([*names, *programs, *_FOLDERS, ".install"]):
                path = os.path.join(root, name)
                if os.path.lexists(path):
                    archive.add(path, f"builder/google-cloud-sdk/{name}", filter=_without_leftovers)
        file.seek(0)
        while chunk := file.read(_CHUNK):
            yield chunk


def _wanted(program: str) -> bool:
    """Whether it is one of ours; KUBECTL_VERSION of a step chooses among kubectl.1.31, ..."""
    return program in _PROGRAMS or program.startswith("kubectl.")


def _without_leftovers(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if os.path.basename(entry.name) in _LEFT_OUT:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
