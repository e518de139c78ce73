"""Contents of a builder image: a root file system, the files of a step, the SDK of this machine.

The root file system is made from Debian packages, for machines that cannot pull an image.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO

from buildrunner.builders.catalog import REPOSITORY
from buildrunner.errors import BuildrunnerError, EngineError

# Debian's own slim images leave these out, too. As in them, dpkg does not wait for the disk.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_KEPT = "/usr/share/doc/*/copyright"
_CHUNK = 1 << 20
# Runs a command until its standard input is closed, which also happens when this process dies.
# mmdebstrap itself ignores SIGTERM, and cleans up once the programs that it runs have ended.
_TIED = """
exec 3<&0
"$@" < /dev/null 3<&- &
command=$!
(cat <&3; kill -TERM 0) > /dev/null &
wait $command
"""


def debian_root(suite: str, environ: Mapping[str, str]) -> Iterator[bytes]:
    """Yield a minimal Debian of ``suite`` (``bookworm``) as a tar stream, made by ``mmdebstrap``.

    Packages come from the mirror that this machine's apt uses, or from ``DEBIAN_MIRROR`` if that
    is set. Making the image takes some 15 s.

    Raises:
        EngineError: mmdebstrap is missing or failed.
    """
    if shutil.which("mmdebstrap", path=environ.get("PATH")) is None:
        raise EngineError(
            f"no image of Debian {suite} can be pulled, and mmdebstrap, which makes one from "
            "Debian's packages, is not installed",
            hint="Install it (Debian: sudo apt-get install mmdebstrap), or name an image that the "
            "engine has: `buildrunner builders install --base IMAGE`.",
        )
    argv = ["mmdebstrap", "--variant=apt", "--format=tar", "--quiet"]
    argv += ["--include=ca-certificates"]  # the base image needs them and then runs no apt
    argv += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    argv += [f"--dpkgopt=path-include={_KEPT}", "--dpkgopt=force-unsafe-io"]
    argv += ['--aptopt=Acquire::Languages "none"', suite, "-"]
    if mirror := environ.get("DEBIAN_MIRROR"):
        argv.append(mirror)
    if os.geteuid() == 0:
        # As root, mmdebstrap makes all mounts private: a mount namespace protects those of this
        # machine.
        argv = ["unshare", "--mount", *argv]
    # The archive is complete before its first byte is sent: an import that received half a root
    # file system would succeed.
    with tempfile.TemporaryFile() as archive, tempfile.TemporaryFile() as errors:
        failure = _make(argv, environ, archive, errors)
        if failure:
            errors.seek(0)
            reason = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise EngineError(
                f"mmdebstrap could not make a Debian {suite}: {reason[-1] if reason else failure}",
                hint="Are Debian's packages reachable (apt-get update)? Another mirror can be "
                "named in the variable DEBIAN_MIRROR.",
            )
        archive.seek(0)
        while chunk := archive.read(_CHUNK):
            yield chunk


def _make(
    argv: list[str], environ: Mapping[str, str], archive: IO[bytes], errors: IO[bytes]
) -> str:
    """Write what a command packs into ``archive``; return what went wrong, or an empty string."""
    failure = ""
    with subprocess.Popen(
        ["sh", "-c", _TIED, "sh", *argv],
        env=dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None  # noqa: S101  (it is a pipe)
        try:
            write_without_holes(process.stdout, archive)
        except tarfile.TarError as error:
            failure = f"its archive can't be read: {error}"
        process.stdout.close()
        process.wait()  # before its standard input is closed, which would end the command
    return f"exit code {process.returncode}" if process.returncode else failure


def write_without_holes(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy a tar archive, sparse files written in full.

    mmdebstrap makes sparse files since version 1.6. An engine that imports them can't push the
    image: it packs the layer again from its files, which changes the digest.

    Raises:
        tarfile.TarError: ``source`` is no archive, or its end is missing.
    """
    with (
        tarfile.open(fileobj=source, mode="r|") as packed,
        tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as plain,
    ):
        for member in packed:
            content = packed.extractfile(member) if member.isreg() else None
            if member.issparse():
                member.type, member.sparse = tarfile.REGTYPE, None
                member.pax_headers = {
                    key: value
                    for key, value in member.pax_headers.items()
                    if not key.startswith("GNU.sparse.")
                }
            plain.addfile(member, content)


STEPS_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "steps")
"""steps/ of the source tree, or its copy in an installed package."""

# Files in a folder of steps/ that don't change its image: editing a README rebuilds nothing.
_NOT_IN_CONTEXT = frozenset({"README.md", "cloudbuild.yaml", "test"})

Files = dict[str, bytes]
"""Path relative to the build context -> content.

Modes are left out: an installed package has no executable files. Dockerfiles set the modes.
"""


def read_step_files(folder: str) -> Files:
    """Return the files of ``steps/FOLDER`` that its image is built from, in order of their paths.

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
    """Return a hash of everything an image is made from: equal inputs give an equal hash.

    Args:
        files: of the build context.
        inputs: everything else that decides the result (the stage, the ids of its parents, ...).
    """
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(f"{name}={value}\0".encode())
    for path, data in sorted(files.items()):
        digest.update(f"{path}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def build_context(files: Files) -> bytes:
    """Return an uncompressed tar of the files (root, mode 644, 1970): always the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, data in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


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
_LEFT_OUT_OF_SDK = frozenset({"__pycache__", ".backup", "RELEASE_NOTES"})


def find_sdk(environ: Mapping[str, str]) -> str:
    """Return the root folder of the SDK whose ``gcloud`` is on the PATH; empty if there is none."""
    program = shutil.which("gcloud", path=environ.get("PATH"))
    if program is None:
        return ""
    root = os.path.dirname(os.path.dirname(os.path.realpath(program)))
    return root if os.path.isfile(os.path.join(root, "lib", "gcloud.py")) else ""


def sdk_version(root: str) -> str:
    """Return the SDK's version."""
    with open(os.path.join(root, "VERSION"), encoding="utf-8") as file:
        return file.read().strip()


def sdk_archive(root: str) -> Iterator[bytes]:
    """Yield the SDK as a tar of ``builder/google-cloud-sdk/``: gcloud, gsutil, bq, kubectl.

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
    """Return whether the image gets a program of the SDK. It gets every version of kubectl."""
    return program in _PROGRAMS or program.startswith("kubectl.")


def _without_leftovers(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if os.path.basename(entry.name) in _LEFT_OUT_OF_SDK:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
