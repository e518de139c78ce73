"""Bills of materials (SBOM) of pushed images: made by syft in a process that outlives the build.

The build's process starts ``python -m buildrunner.provenance.sbom`` and does not wait for it. The
job comes on standard input, since it may hold a login. The result is `SBOM_NAME` beside the log of
the build, or `SBOM_FAILED_NAME` with the reason.

The image is not trusted: syft gets a copy of it, but no login and no network address. Memory, time
and disk of a job are limited. A machine runs few jobs at a time, and fewer of one project.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, Final

import msgspec

from buildrunner.addresses import Egress
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.deadline import Deadline
from buildrunner.errors import AttestationError, BuildrunnerError, RegistryError
from buildrunner.provenance.attachment import attach
from buildrunner.provenance.keyless import Keyless, keyless_bundle
from buildrunner.provenance.signing import open_signer, signed_envelope
from buildrunner.provenance.statement import STATEMENT_TYPE
from buildrunner.provenance.stored import (
    SBOM_FAILED_NAME,
    SBOM_NAME,
    remove_lines,
    sbom_failures,
    write_lines,
)
from buildrunner.registries.distribution import Manifest, Repository

FORMATS: Final = {
    "spdx": ("spdx-json", "https://spdx.dev/Document"),
    "cyclonedx": ("cyclonedx-json", "https://cyclonedx.org/bom"),
}
"""Name in the settings -> syft's name, and the type of the predicate."""

LARGEST_BYTES: Final = 20 << 30
"""Disk limit of a job, if the build has no limit of its own."""

_LIMIT_S = 900.0
_MEMORY_BYTES = 4 << 30  # of each of a job's two processes
_TEXT_BYTES = 64 << 20  # of all bills of materials of a build
_MOST_JOBS = 4
_MOST_JOBS_OF_PROJECT = 2
_MOST_IMAGES = 100
_WAIT_LIMIT_S = 60.0
_LOOK_S = 0.2
_END_S = 5.0  # a killed process that nobody reaps stays in its group
_REASON_BYTES = 1 << 16


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
        project: the build's project; empty without a server.
        key, key_folder: the signing key, as `open_signer` takes it.
        keyless: the settings for a signature by Sigstore; None: the key signs.
        push: attach the attestations to the images.
        egress: networks that requests for a build must not reach.
        limit_bytes: how much disk the job may take.
    """

    folder: str
    images: tuple[SbomImage, ...]
    formats: tuple[str, ...]
    project: str = ""
    key: str
    key_folder: str
    keyless: Keyless | None = None
    push: bool
    egress: Egress = Egress()
    limit_bytes: int = LARGEST_BYTES


def start(job: SbomJob, cancel: threading.Event) -> subprocess.Popen[bytes]:
    """Start the process of a job; return it, and do not wait for its end.

    The build's folder says that the SBOMs are unfinished until the process is done.

    Raises:
        AttestationError: syft is not installed, too many jobs run for a minute, ``cancel`` was set,
            or the process cannot be started.
    """
    _syft()
    try:
        slots = _slots(job, cancel)
        try:
            unfinished = [f"{image.name}: it is not finished".encode() for image in job.images]
            write_lines(job.folder, SBOM_FAILED_NAME, unfinished)
            process = subprocess.Popen(
                [sys.executable, "-m", "buildrunner.provenance.sbom"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
                pass_fds=slots,  # held until the last process of the job has ended
            )
        finally:
            for slot in slots:
                os.close(slot)
        assert process.stdin is not None  # noqa: S101  (a pipe was asked for)
        with process.stdin as pipe:
            pipe.write(msgspec.json.encode(job))
    except OSError as error:
        raise AttestationError(f"the SBOM can't be made: {error.strerror or error}") from error
    return process


def wait(process: subprocess.Popen[bytes], folder: str, cancel: threading.Event) -> list[str]:
    """Wait for the process of a job, or until ``cancel`` is set; return what failed."""
    while process.poll() is None and not cancel.wait(_LOOK_S):
        pass
    return sbom_failures(folder)


def _slots(job: SbomJob, cancel: threading.Event) -> tuple[int, ...]:
    """Wait until the job may run; return the files that are locked for it.

    A job needs one of the project's slots first, so that no project uses all slots of the machine.
    """
    project = hashlib.sha256(job.project.encode()).hexdigest()[:16]
    until = time.monotonic() + _WAIT_LIMIT_S
    own = _slot(job.key_folder, f"sbom-{project}", _MOST_JOBS_OF_PROJECT, until, cancel)
    try:
        return own, _slot(job.key_folder, "sbom", _MOST_JOBS, until, cancel)
    except BaseException:
        os.close(own)
        raise


def _slot(folder: str, name: str, count: int, until: float, cancel: threading.Event) -> int:
    """Wait until one of ``count`` files can be locked; return it."""
    while not cancel.is_set():
        for number in range(count):
            path = os.path.join(folder, f"{name}-{number}.lock")
            slot = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(slot)
            else:
                return slot
        if time.monotonic() > until:
            others = f"{count} others" if name == "sbom" else f"{count} others of the project"
            raise AttestationError(
                f"there is no SBOM: {others} are being made on this machine",
                hint="try the build again later",
            )
        cancel.wait(_LOOK_S)
    raise AttestationError("there is no SBOM: the build was cancelled")


def make(job: SbomJob) -> None:
    """Make, sign, store and attach the bills of materials of all images, within `_LIMIT_S`."""
    envelopes: list[bytes] = []
    failures: list[str] = []
    until = time.monotonic() + _LIMIT_S
    for image in job.images[:_MOST_IMAGES]:
        left = _TEXT_BYTES - sum(map(len, envelopes))
        try:
            envelopes += _of_image(job, image, until, left)
        except BuildrunnerError as error:
            failures.append(f"{image.name}: {error}" + (f": {error.hint}" if error.hint else ""))
        except MemoryError:
            failures.append(f"{image.name}: the SBOM takes too much memory")
    if len(job.images) > _MOST_IMAGES:
        failures.append(f"only {_MOST_IMAGES} images of a build get an SBOM")
    write_lines(job.folder, SBOM_NAME, envelopes)
    write_lines(job.folder, SBOM_FAILED_NAME, [text.encode() for text in failures])
    if not failures:
        remove_lines(job.folder, SBOM_FAILED_NAME)


def _of_image(job: SbomJob, image: SbomImage, until: float, most_bytes: int) -> list[bytes]:
    """Return the signed bills of materials of an image, which are attached to it."""
    with Deadline(max(0.0, until - time.monotonic())) as deadline:
        try:
            return _in_time(job, image, deadline, most_bytes)
        except BuildrunnerError as error:
            if not deadline.is_over:
                raise
            raise AttestationError(f"the SBOM takes longer than {_LIMIT_S:g} s") from error


def _in_time(job: SbomJob, image: SbomImage, deadline: Deadline, most_bytes: int) -> list[bytes]:
    name = ImageName.parse(image.name)
    algorithm, _, value = name.digest.partition(":")
    with Repository(name, image.login, job.egress, deadline=deadline) as repository:
        manifest = repository.manifest(name.digest)
        if manifest is None:
            raise RegistryError("the registry no longer has the image")
        envelopes: list[bytes] = []
        for kind, document in _documents(job, repository, manifest, deadline, most_bytes).items():
            statement = {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": name.repository, "digest": {algorithm: value}}],
                "predicateType": FORMATS[kind][1],
                "predicate": document,
            }
            envelopes.append(
                keyless_bundle(statement, job.keyless)
                if job.keyless is not None
                else signed_envelope(statement, open_signer(job.key, job.key_folder))
            )
        if sum(map(len, envelopes)) > most_bytes:
            raise AttestationError(f"the SBOMs of a build take more than {_TEXT_BYTES >> 20} MiB")
        for envelope in envelopes if job.push else ():
            attach(repository, manifest, envelope)
    return envelopes


def _documents(
    job: SbomJob, repository: Repository, manifest: Manifest, deadline: Deadline, most_bytes: int
) -> dict[str, Any]:
    """Return the documents of an image, by the names of their formats."""
    # Not in the temporary folder of the build's process, which is deleted with the process.
    with tempfile.TemporaryDirectory(prefix="sbom-", dir=job.folder) as folder:
        places = {kind: os.path.join(folder, kind) for kind in job.formats}
        copy, temporary = os.path.join(folder, "image"), os.path.join(folder, "tmp")
        os.mkdir(temporary)
        argv = [_syft(), f"oci-dir:{copy}", "--source-name", repository.name]
        argv += ["--source-version", manifest.digest]
        for kind, place in places.items():
            argv += ["--output", f"{FORMATS[kind][0]}={place}"]
        environ = {"PATH": os.defpath, "HOME": temporary, "TMPDIR": temporary}
        environ |= {"SYFT_CHECK_FOR_APP_UPDATE": "false", "GOMEMLIMIT": str(_MEMORY_BYTES // 2)}
        try:
            save_image(repository, manifest, copy, job.limit_bytes)
            _run(argv, environ, folder, job.limit_bytes, deadline)
            documents = {}
            for kind, place in places.items():
                if os.path.getsize(place) > most_bytes:
                    raise AttestationError(
                        f"the SBOMs of a build take more than {_TEXT_BYTES >> 20} MiB"
                    )
                with open(place, "rb") as file:
                    documents[kind] = json.loads(file.read())
        except (OSError, ValueError, RecursionError) as error:
            raise AttestationError(f"syft failed: {error}") from error
        return documents


def _run(
    argv: list[str], environ: dict[str, str], folder: str, limit_bytes: int, deadline: Deadline
) -> None:
    """Run syft, and end it when ``folder`` is full or the time is over."""
    with (
        open(os.path.join(folder, "errors"), "w+b") as errors,
        subprocess.Popen(
            argv,
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            process_group=0,
        ) as process,
    ):
        try:
            while process.poll() is None:
                if deadline.is_over:
                    raise AttestationError(f"the SBOM takes longer than {_LIMIT_S:g} s")
                if _disk_use(folder) > limit_bytes:
                    raise AttestationError("the SBOM takes more disk than the build may")
                time.sleep(_LOOK_S)
        finally:
            _end_group(process)
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _REASON_BYTES))
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        if process.wait():
            raise AttestationError(f"syft failed: {lines[-1] if lines else process.returncode}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill syft, and wait until its processes are gone: the caller then removes their folder.

    The syft of the Python package is a launcher that starts the real program.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + _END_S
    with suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(_LOOK_S / 10)


def _disk_use(folder: str) -> int:
    """Return the bytes on disk of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _syft() -> str:
    """Return syft's path: beside this Python, or on the PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "syft")
    path = beside if os.access(beside, os.X_OK) else shutil.which("syft")
    if path is None:
        raise AttestationError(
            "there is no SBOM: syft is not installed",
            hint="in the source folder of buildrunner: pip install '.[sbom]'",
        )
    return path


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
    """Copy an image to a folder. From an index, copy the image for this machine's platform.

    Raises:
        RegistryError: the image is invalid, or larger than ``most_bytes``.
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


if __name__ == "__main__":
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    make(msgspec.json.decode(sys.stdin.buffer.read(), type=SbomJob))
