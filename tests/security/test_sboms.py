"""Attacks of a pushed image on the machine that makes its bill of materials."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tarfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from buildrunner.containers.process_owner import file_lock
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.errors import AttestationError
from buildrunner.provenance import attester, sbom
from buildrunner.provenance.attester import ProvenanceAttester
from buildrunner.provenance.sbom import SbomImage, SbomJob, make, start
from buildrunner.provenance.signing import open_signer, signed_envelope
from buildrunner.provenance.stored import sbom_failures
from buildrunner.registries.distribution import MANIFEST, Repository, sha256
from buildrunner.registries.logins import DockerLogins
from tests.conftest import Registry
from tests.contract.test_attestations import name_at
from tests.security.test_slow_receivers import dripping
from tests.unit.provenance.builds import BUILD, BUILDER, PLAN, outcome

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def pushed(registry: Registry, size: int) -> str:
    """Push an image whose only layer has a file of ``size`` zeros; its name with the digest."""
    packed = io.BytesIO()
    with gzip.open(packed, "wb", compresslevel=1) as stream:
        header = tarfile.TarInfo("zeros")
        header.size = size
        stream.write(header.tobuf())
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
        stream.write(bytes(1024))
    layer = packed.getvalue()
    diff = sha256(gzip.decompress(layer))
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff]}}
    ).encode()
    with Repository(name_at(registry.address)) as repository:
        for blob in (layer, config):
            repository.put_blob(blob)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(config),
                "size": len(config),
            },
            "layers": [{"mediaType": LAYER, "digest": sha256(layer), "size": len(layer)}],
        }
        repository.put_manifest("1", json.dumps(manifest).encode(), MANIFEST)
        found = repository.manifest("1")
        assert found is not None
        return f"{repository.name}@{found.digest}"


def job(folder: Path, *images: SbomImage, limit_bytes: int = 1 << 30, project: str = "") -> SbomJob:
    (folder / "log").mkdir(exist_ok=True)
    return SbomJob(
        folder=str(folder / "log"),
        images=images,
        formats=("spdx",),
        project=project,
        key="",
        key_folder=str(folder),
        push=False,
        limit_bytes=limit_bytes,
    )


def failure(folder: Path) -> str:
    """Why the only image has no bill of materials. Nothing else is left."""
    assert [one.name for one in (folder / "log").iterdir()] == ["sbom.failed"]
    (reason,) = sbom_failures(str(folder / "log"))
    return reason


def replace_syft(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have a shell script run in the place of syft."""
    path = folder / "syft"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


def test_an_image_beyond_the_limit_is_not_copied(registry: Registry, tmp_path: Path) -> None:
    made = job(tmp_path, SbomImage(pushed(registry, 1 << 20)), limit_bytes=1000)
    make(made)
    assert "is larger than" in failure(tmp_path)


def test_a_layer_that_is_a_bomb_ends_syft(registry: Registry, tmp_path: Path) -> None:
    image = SbomImage(pushed(registry, 256 << 20))
    make(job(tmp_path, image, limit_bytes=32 << 20))
    assert "the SBOM takes more disk than the build may" in failure(tmp_path)


def test_syft_is_ended_when_the_time_of_all_images_is_over(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = SbomImage(pushed(registry, 1 << 20))
    replace_syft(tmp_path, monkeypatch, "exec sleep 600")
    monkeypatch.setattr(sbom, "_LIMIT_S", 0.5)
    began = time.monotonic()
    make(job(tmp_path, image))
    assert time.monotonic() - began < 60
    assert "the SBOM takes longer than 0.5 s" in failure(tmp_path)


def test_nothing_that_syft_started_outlives_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    replace_syft(tmp_path, monkeypatch, f"sleep 600 & echo $! > {seen}; wait")
    monkeypatch.setattr(sbom, "_LIMIT_S", 2)
    make(job(tmp_path, SbomImage(pushed(registry, 1 << 20))))
    status = Path(f"/proc/{int(seen.read_text())}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_syft_gets_no_login_and_nothing_of_the_servers_environment(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = RegistryLogin(username="someone", password="s3cret-of-tests")
    image = SbomImage(pushed(registry, 1 << 20), login)
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "s3cret-of-the-server")
    seen = tmp_path / "seen"
    replace_syft(tmp_path, monkeypatch, f'(echo "$*"; env) > {seen}; exit 1')
    make(job(tmp_path, image))
    assert "oci-dir:" in seen.read_text()
    assert "s3cret" not in seen.read_text()


def test_syft_runs_as_the_user_of_the_server(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    replace_syft(tmp_path, monkeypatch, f"id -u > {seen}; exit 1")
    make(job(tmp_path, SbomImage(pushed(registry, 1 << 20))))
    assert int(seen.read_text()) == os.getuid()


def test_a_document_without_an_end_is_not_read(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = SbomImage(pushed(registry, 1 << 20))
    write = 'for one in "$@"; do case $one in spdx-json=*) truncate -s 1G "${one#*=}";; esac; done'
    replace_syft(tmp_path, monkeypatch, write)
    make(job(tmp_path, image))
    assert "take more than 64 MiB" in failure(tmp_path)


def test_a_machine_makes_few_at_a_time_and_a_cancelled_build_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sbom, "_WAIT_LIMIT_S", 0.3)
    made = job(tmp_path)
    cancelled = threading.Event()
    cancelled.set()
    with ExitStack() as stack:
        for number in range(4):
            stack.enter_context(file_lock(str(tmp_path / f"sbom-{number}.lock")))
        with pytest.raises(AttestationError, match="4 others are being made"):
            start(made, threading.Event())
        with pytest.raises(AttestationError, match="the build was cancelled"):
            start(made, cancelled)
    with pytest.raises(AttestationError, match="the build was cancelled"):
        start(made, cancelled)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"


@pytest.mark.parametrize("line", [CONTINUE, BODY], ids=["its headers", "its body"])
def test_a_registry_that_drips_ends_with_the_time_of_all_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(sbom, "_LIMIT_S", 0.5)
    began = time.monotonic()
    with dripping(line) as registry:
        make(job(tmp_path, SbomImage(f"127.0.0.1:{registry.port}/slow@sha256:{'1' * 64}")))
    assert time.monotonic() - began < 20
    assert "the SBOM takes longer than 0.5 s" in failure(tmp_path)


@pytest.mark.parametrize("line", [CONTINUE, BODY], ids=["its headers", "its body"])
def test_a_registry_that_drips_does_not_hold_up_the_build_whose_provenance_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(attester, "_LONGEST_S", 0.5)
    began = time.monotonic()
    with dripping(line) as registry:
        pushed_to = f"127.0.0.1:{registry.port}/slow"
        made = ProvenanceAttester(
            BUILD,
            PLAN,
            builder_id=BUILDER,
            sign=lambda statement, _: signed_envelope(statement, open_signer("", str(tmp_path))),
            open_signer=lambda: open_signer("", str(tmp_path)),
            required=False,
            push=True,
        ).attest(
            outcome(images=(replace(outcome().images[0], name=pushed_to),)),
            logins=DockerLogins(),
            masked=lambda text: text,
            log=lambda _: None,
            cancel=threading.Event(),
        )
    assert time.monotonic() - began < 20
    (warning,) = made.warnings
    assert "answers too slowly" in warning


def test_slow_registries_of_one_project_leave_places_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sbom, "_WAIT_LIMIT_S", 0.3)
    with dripping(CONTINUE) as registry, ExitStack() as stack:
        image = SbomImage(f"127.0.0.1:{registry.port}/slow@sha256:{'1' * 64}")
        for _ in range(2):
            process = start(job(tmp_path, image, project="attacker"), threading.Event())
            stack.callback(process.wait)
            stack.callback(process.kill)
        with pytest.raises(AttestationError, match="2 others of the project are being made"):
            start(job(tmp_path, image, project="attacker"), threading.Event())
        other = start(job(tmp_path, project="another"), threading.Event())
        assert other.wait() == 0


def test_the_slot_of_a_job_is_held_until_its_process_has_ended(tmp_path: Path) -> None:
    made = job(tmp_path, SbomImage(f"127.0.0.1:1/none@sha256:{'1' * 64}"))
    slot = str(tmp_path / "sbom-0.lock")
    with start(made, threading.Event()) as process:
        with pytest.raises(BlockingIOError), file_lock(slot, wait=False):
            pass
        assert process.wait() == 0
    with file_lock(slot, wait=False):
        assert "does not answer" in failure(tmp_path)
