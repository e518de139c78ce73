"""Bills of materials of images in a real registry, made by syft."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from buildrunner.errors import AttestationError
from buildrunner.provenance.attachment import attached
from buildrunner.provenance.sbom import SbomImage, SbomJob, make, start, wait
from buildrunner.provenance.signing import open_signer
from buildrunner.provenance.stored import read_attestations, sbom_failures
from buildrunner.registries.distribution import Repository
from tests.contract.test_attestations import name_at, push
from tests.unit.provenance.builds import payload

DPKG = b"""Package: proofread
Status: install ok installed
Version: 1.2.3
Architecture: all
Maintainer: tests
Description: a package of tests
"""


def layer() -> bytes:
    """A layer with one Debian package."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in (("var/lib/dpkg/status", DPKG), ("etc/os-release", b"ID=debian\n")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


def job(folder: Path, image: str, **changes: object) -> SbomJob:
    (folder / "log").mkdir(exist_ok=True)
    fields = {
        "folder": str(folder / "log"),
        "images": (SbomImage(image),),
        "formats": ("spdx", "cyclonedx"),
        "key": "",
        "key_folder": str(folder),
        "push": True,
    }
    return SbomJob(**{**fields, **changes})


def test_an_image_gets_both_documents_signed_stored_and_attached(registry, tmp_path):
    with Repository(name_at(registry.address)) as repository:
        image = push(repository, layer())
        make(job(tmp_path, f"{repository.name}@{image.digest}"))
        assert sbom_failures(str(tmp_path / "log")) == []
        found = list(attached(repository, image.digest))
    lines = read_attestations(str(tmp_path / "log"), "b1").splitlines()
    assert len(lines) == len(found) == 2
    spdx, cyclonedx = (payload(line) for line in lines)
    for statement in (spdx, cyclonedx):
        assert statement["subject"] == [
            {
                "name": repository.name,
                "digest": {"sha256": image.digest.removeprefix("sha256:")},
            }
        ]
    assert spdx["predicateType"] == "https://spdx.dev/Document"
    assert "proofread" in {one["name"] for one in spdx["predicate"]["packages"]}
    assert cyclonedx["predicateType"] == "https://cyclonedx.org/bom"
    assert "proofread" in {one["name"] for one in cyclonedx["predicate"]["components"]}
    assert list((tmp_path / "log").iterdir()) == [tmp_path / "log" / "sbom.intoto.jsonl"]


def test_an_image_that_can_not_be_read_leaves_the_reason(registry, tmp_path):
    name = f"{registry.address}/none@sha256:{'1' * 64}"
    make(job(tmp_path, name))
    (failure,) = sbom_failures(str(tmp_path / "log"))
    assert failure == f"{name}: the registry no longer has the image"


def test_a_process_that_dies_leaves_the_sbom_unfinished(registry, tmp_path):
    with Repository(name_at(registry.address)) as repository:
        image = push(repository, layer())
    name = f"{repository.name}@{image.digest}"
    process = start(job(tmp_path, name), threading.Event())
    process.kill()
    folder = str(tmp_path / "log")
    assert wait(process, folder, threading.Event()) == [f"{name}: it is not finished"]
    process = start(job(tmp_path, name), threading.Event())
    assert wait(process, folder, threading.Event()) == []
    assert len(read_attestations(folder, "b1").splitlines()) == 2


def test_a_cancelled_build_does_not_wait(registry, tmp_path):
    process = start(job(tmp_path, f"{registry.address}/app@sha256:{'1' * 64}"), threading.Event())
    cancelled = threading.Event()
    cancelled.set()
    os.kill(process.pid, signal.SIGSTOP)
    assert wait(process, str(tmp_path / "log"), cancelled) != []
    process.kill()
    process.wait()


def test_without_syft_it_is_said_at_once_what_to_install(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AttestationError, match="syft is not installed") as caught:
        start(job(tmp_path, "r/app@sha256:0"), threading.Event())
    assert caught.value.hint == "in the source folder of buildrunner: pip install '.[sbom]'"


def test_the_key_of_the_build_signs(registry, tmp_path):
    with Repository(name_at(registry.address)) as repository:
        image = push(repository, layer())
        make(job(tmp_path, f"{repository.name}@{image.digest}", formats=("spdx",), push=False))
        assert list(attached(repository, image.digest)) == []
    (line,) = read_attestations(str(tmp_path / "log"), "b1").splitlines()
    keyid = open_signer("", str(tmp_path)).public_key.keyid
    assert json.loads(line)["signatures"][0]["keyid"] == keyid
