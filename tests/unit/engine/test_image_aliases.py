from __future__ import annotations

import pytest

from buildrunner.engine.image_pulls import serve_image, split_reference

DOCKER = "gcr.io/cloud-builders/docker"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("busybox", ("busybox", "")),
        ("busybox:1", ("busybox", "1")),
        ("localhost:5000/x", ("localhost:5000/x", "")),
        ("localhost:5000/x:v1", ("localhost:5000/x", "v1")),
        ("r/x@sha256:ab", ("r/x", "sha256:ab")),
        ("r:1/x:v1@sha256:ab", ("r:1/x", "sha256:ab")),
    ],
)
def test_a_registry_with_a_port_is_no_tag(name: str, parts: tuple[str, str]) -> None:
    assert split_reference(name) == parts


@pytest.mark.parametrize(
    ("requested", "serving"),
    [
        (DOCKER, "docker:cli"),
        (f"{DOCKER}:latest", "docker:cli"),
        (f"{DOCKER}:19.03", "docker:19"),
        (f"{DOCKER}:20.10", "docker:cli"),
        ("busybox", "busybox"),
    ],
)
def test_the_very_name_wins_over_its_repository(requested: str, serving: str) -> None:
    served = serve_image(requested, {DOCKER: "docker:cli", f"{DOCKER}:19.03": "docker:19"})
    assert served.serving == serving
    assert served.note == ("" if requested == serving else f" (alias of {serving})")
    assert not served.drops_program


def test_gcb_internal_drops_its_first_argument_only_when_another_image_serves_it() -> None:
    name = "gcr.io/cloud-builders/gcb-internal"
    assert serve_image(name, {name: "docker:cli"}).drops_program
    assert not serve_image(name, {}).drops_program
