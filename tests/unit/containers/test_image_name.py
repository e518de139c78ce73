"""Names of images, taken apart."""

from __future__ import annotations

import pytest

from buildrunner.containers.image_name import ImageName, is_image_id

D = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("name", "repository", "tag", "digest", "registry", "familiar"),
    [
        ("busybox", "busybox", "", "", "docker.io", "busybox"),
        ("busybox:1", "busybox", "1", "", "docker.io", "busybox"),
        ("library/busybox", "library/busybox", "", "", "docker.io", "busybox"),
        ("docker.io/library/busybox", "docker.io/library/busybox", "", "", "docker.io", "busybox"),
        ("index.docker.io/a/b:c", "index.docker.io/a/b", "c", "", "index.docker.io", "a/b"),
        ("localhost/x", "localhost/x", "", "", "localhost", "localhost/x"),
        ("host:5000/x", "host:5000/x", "", "", "host:5000", "host:5000/x"),
        ("host:5000/x:v1", "host:5000/x", "v1", "", "host:5000", "host:5000/x"),
        ("gcr.io/p/x:v1", "gcr.io/p/x", "v1", "", "gcr.io", "gcr.io/p/x"),
        (f"r/x@{D}", "r/x", "", D, "docker.io", "r/x"),
        (f"host:5000/x:v1@{D}", "host:5000/x", "v1", D, "host:5000", "host:5000/x"),
        ("ACME/app:1", "ACME/app", "1", "", "ACME", "ACME/app"),
    ],
)
def test_have_repository_tag_and_digest(
    name: str, repository: str, tag: str, digest: str, registry: str, familiar: str
) -> None:
    parsed = ImageName.parse(name)
    assert (parsed.repository, parsed.tag, parsed.digest) == (repository, tag, digest)
    assert (parsed.registry, parsed.familiar) == (registry, familiar)
    assert str(parsed) == name


def test_are_asked_for_by_digest_when_they_have_one() -> None:
    assert ImageName.parse(f"host:5000/x:v1@{D}").reference == f"host:5000/x@{D}"
    assert ImageName.parse("host:5000/x:v1").reference == "host:5000/x:v1"
    assert ImageName.parse("x").reference == "x"


def test_ids_are_told_from_names() -> None:
    assert is_image_id(D)
    assert is_image_id("sha256:abc")
    assert not is_image_id("sha256")
    assert not is_image_id("sha256:latest")
    assert not is_image_id("abcdef")
