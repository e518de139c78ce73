"""Bills of materials (SBOM) of pushed images: made by syft in a process that outlives the build.

The build's process starts ``python -m buildrunner.provenance.sbom`` and does not wait for it. The
job comes on standard input, since it may hold a login. The result is `FILE_NAME` beside the log of
the build, or `FAILED_NAME` with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Final

import msgspec

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.types import RegistryLogin
from buildrunner.errors import AttestationError, BuildrunnerError, RegistryError
from buildrunner.provenance.attachment import attach
from buildrunner.provenance.signing import open_signer, signed_envelope
from buildrunner.provenance.statement import STATEMENT_TYPE
from buildrunner.provenance.stored import SBOM_FAILED_NAME, SBOM_NAME, write_lines
from buildrunner.registries.distribution import Repository
from buildrunner.registries.registry_transport import is_loopback

FORMATS: Final = {
    "spdx": ("spdx-json", "https://spdx.dev/Document"),
    "cyclonedx": ("cyclonedx-json", "https://cyclonedx.org/bom"),
}
"""Name in the settings -> syft's name, and the type of the predicate."""

_LIMIT_S = 900.0


class SbomImage(msgspec.Struct, frozen=True):
    """An image by digest, and the login that reads it."""

    name: str
    login: RegistryLogin | None = None


class SbomJob(msgspec.Struct, frozen=True, kw_only=True):
    """The job of the process that makes SBOMs.

    Attributes:
        folder: folder of the build's log.
        images: the images.
        formats: names of `FORMATS`.
        key, key_folder: the signing key, as `open_signer` takes it.
        push: attach the attestations to the images.
    """

    folder: str
    images: tuple[SbomImage, ...]
    formats: tuple[str, ...]
    key: str
    key_folder: str
    push: bool


def start(job: SbomJob) -> None:
    """Start the process of a job, and do not wait for it.

    Raises:
        AttestationError: syft is not installed, or the process cannot be started.
    """
    _syft()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "buildrunner.provenance.sbom"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101  (a pipe was asked for)
        with process.stdin as pipe:
            pipe.write(msgspec.json.encode(job))
    except OSError as error:
        raise AttestationError(f"the SBOM can't be made: {error.strerror or error}") from error


def make(job: SbomJob) -> None:
    """Make, sign, store and attach the bills of materials of all images."""
    envelopes: list[bytes] = []
    failures: list[str] = []
    for image in job.images:
        try:
            envelopes += _of_image(job, image)
        except BuildrunnerError as error:
            failures.append(f"{image.name}: {error}" + (f": {error.hint}" if error.hint else ""))
    write_lines(job.folder, SBOM_NAME, envelopes)
    write_lines(job.folder, SBOM_FAILED_NAME, [text.encode() for text in failures])


def _of_image(job: SbomJob, image: SbomImage) -> list[bytes]:
    name = ImageName.parse(image.name)
    signer = open_signer(job.key, job.key_folder)
    algorithm, _, value = name.digest.partition(":")
    envelopes = []
    for kind, document in _documents(job, image).items():
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name.repository, "digest": {algorithm: value}}],
            "predicateType": FORMATS[kind][1],
            "predicate": document,
        }
        envelopes.append(signed_envelope(statement, signer))
    if job.push:
        with Repository(name, image.login) as repository:
            manifest = repository.manifest(name.digest)
            if manifest is None:
                raise RegistryError("the registry does not have the image any more")
            for envelope in envelopes:
                attach(repository, manifest, envelope)
    return envelopes


def _documents(job: SbomJob, image: SbomImage) -> dict[str, Any]:
    """Return the documents of an image, by the names of their formats."""
    registry = ImageName.parse(image.name).registry
    environ = {
        **os.environ,
        "SYFT_CHECK_FOR_APP_UPDATE": "false",
        "SYFT_REGISTRY_INSECURE_USE_HTTP": str(is_loopback(registry)).lower(),
    }
    if image.login is not None:
        environ["SYFT_REGISTRY_AUTH_AUTHORITY"] = registry
        environ["SYFT_REGISTRY_AUTH_USERNAME"] = image.login.username
        environ["SYFT_REGISTRY_AUTH_PASSWORD"] = image.login.password
        environ["SYFT_REGISTRY_AUTH_TOKEN"] = image.login.identity_token
    # Not in the folder for temporary files of the build's process, which goes with it.
    with tempfile.TemporaryDirectory(prefix="sbom-", dir=job.folder) as folder:
        places = {kind: os.path.join(folder, kind) for kind in job.formats}
        argv = [_syft(), f"registry:{image.name}"]
        for kind, place in places.items():
            argv += ["--output", f"{FORMATS[kind][0]}={place}"]
        try:
            done = subprocess.run(
                argv,
                env={**environ, "TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_LIMIT_S,
                check=False,
            )
            if done.returncode:
                lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
                raise AttestationError(f"syft failed: {lines[-1] if lines else done.returncode}")
            documents = {}
            for kind, place in places.items():
                with open(place, "rb") as file:
                    documents[kind] = json.loads(file.read())
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise AttestationError(f"syft failed: {error}") from error
        return documents


def _syft() -> str:
    """Return syft's path: beside this Python, or on the PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "syft")
    path = beside if os.access(beside, os.X_OK) else shutil.which("syft")
    if path is None:
        raise AttestationError(
            "there is no SBOM: syft is not installed", hint="pip install 'buildrunner[sbom]'"
        )
    return path


if __name__ == "__main__":
    os.nice(10)
    make(msgspec.json.decode(sys.stdin.buffer.read(), type=SbomJob))
