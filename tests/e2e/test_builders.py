"""Builder images on a real engine: made once, then left alone; each one builds and tests itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path

import pytest

from buildrunner.builders.catalog import BUILDERS

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
# Images that are made in a few seconds once Debian's packages are near; `make builders-test` tries
# all the others, too.
QUICK = (
    "base", "gcc", "docker", "docker-compose", "git", "curl", "wget", "python", "node", "npm",
    "yarn", "gsutil", "twine", "alpine", "busybox", "bash", "fetch", "engine",
)  # fmt: skip
FOLDERS = sorted({builder.folder for builder in BUILDERS if builder.name in QUICK})


def image_variables(folder: str) -> list[str]:
    """The substitutions by which a folder's config names the images that it makes."""
    config = (ROOT / "steps" / folder / "cloudbuild.yaml").read_text()
    return sorted(set(re.findall(r"^  (_(?:\w+_)?IMAGE): ", config, re.MULTILINE)))


def buildrunner(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "buildrunner", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def root_image() -> str:
    """The Debian image that the builder images of this machine stand on."""
    for name in ("debian:bookworm-slim", "buildrunner/debian:bookworm-slim"):
        if subprocess.run(["docker", "inspect", name], capture_output=True).returncode == 0:
            return name
    pytest.fail("no Debian image is installed")


@pytest.fixture(scope="module")
def installed(docker_engine) -> None:
    answer = buildrunner("builders", "install", *QUICK)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.usefixtures("installed")
def test_a_second_installation_makes_nothing() -> None:
    answer = buildrunner("builders", "install", *QUICK)
    assert answer.stdout.splitlines()[-1] == f"0 made, {len(QUICK)} up to date"


@pytest.mark.usefixtures("installed")
def test_the_list_tells_what_is_installed_and_what_it_serves() -> None:
    listed = json.loads(buildrunner("builders", "list", "--format", "json").stdout)
    assert [entry["name"] for entry in listed] == [builder.name for builder in BUILDERS]
    found = [entry for entry in listed if entry["name"] in QUICK]
    assert all(entry["installed"] and entry["sizeBytes"] for entry in found)
    assert "buildrunner/git:latest" in buildrunner("builders", "list").stdout


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_builder_image_builds_and_tests_itself(folder: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex[:12]
    images = {
        name: f"buildrunner-tests/{folder}{number}:{mark}"
        for number, name in enumerate(image_variables(folder))
    }
    values = dict(images)
    if folder == "base":
        values["_BASE"] = root_image()
    substitutions = ",".join(f"{name}={value}" for name, value in values.items())
    try:
        answer = buildrunner(
            "submit", f"steps/{folder}", "--substitutions", substitutions,
            XDG_DATA_HOME=str(tmp_path),
        )  # fmt: skip
        assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-2000:]
    finally:
        subprocess.run(["docker", "rmi", "--force", *images.values()], capture_output=True)


def test_an_unknown_builder_is_bad_usage() -> None:
    answer = buildrunner("builders", "install", "dokcer")
    assert answer.returncode == 2
    assert "unknown builder image 'dokcer'" in answer.stderr


def test_no_engine_is_said_in_a_sentence(tmp_path: Path) -> None:
    answer = buildrunner("builders", "install", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert answer.returncode == 3
    assert "Traceback" not in answer.stderr
    assert "no container engine answers" in answer.stderr


def test_the_files_of_the_images_travel_in_the_package(tmp_path: Path) -> None:
    # From a copy: setuptools leaves its build folders beside what it packs.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "buildrunner", source / "buildrunner", symlinks=True)
    shutil.copytree(ROOT / "steps", source / "steps")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            tmp_path,
            source,
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "/steps/" in name}
    for path in (ROOT / "steps").rglob("*"):
        inside = path.relative_to(ROOT / "steps")
        if path.is_file() and len(inside.parts) > 1 and "__pycache__" not in inside.parts:
            assert f"buildrunner/builders/steps/{inside}" in packed
