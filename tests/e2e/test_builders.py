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
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.builders.catalog import BUILDERS
from buildrunner.containers.docker.engine import DockerEngine
from tests.conftest import Registry, remove_image
from tests.e2e.submit_bench import Bench

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DOCKER = "gcr.io/cloud-builders/docker"
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


@pytest.fixture
def bench(tmp_path: Path, docker_engine: DockerEngine) -> Bench:
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, "buildrunner/base")


@pytest.fixture
def public_name() -> Iterator[str]:
    """A tag of one of Google's builders that nothing else uses."""
    name = f"gcr.io/cloud-builders/git:{uuid.uuid4().hex[:12]}"
    yield name
    remove_image(name)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("sandbox", ["host", "nested"])
def test_from_lines_of_googles_builders_are_served(
    bench: Bench, public_name: str, sandbox: str
) -> None:
    built = f"buildrunner-tests/from:{uuid.uuid4().hex[:12]}"
    bench.write("Dockerfile", f"FROM {public_name}\nRUN git --version > /version\n")
    bench.write(
        "kit/Dockerfile", f"FROM gcr.io/cloud-builders/curl\nCOPY --from={built} /version /\n"
    )
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: gcr.io/cloud-builders/docker
  args: [build, --tag, "{built}", .]
- name: gcr.io/cloud-builders/docker
  args: [build, --tag, "{built}-kit", kit]
  env: [DOCKER_BUILDKIT=1]
- name: {built}-kit
  args: [--silent, "file:///version"]
""",
    )
    try:
        installed = bench.run("builders", "install", "--for", "cloudbuild.yaml")
        assert installed.code == 0, installed.out + installed.err
        assert installed.out.splitlines()[-1] == "Every image that the config names is here."
        done = bench.run("submit", ".", "--sandbox", sandbox)
        assert done.code == 0, done.out + done.err
        assert "Step #2: git version 2" in done.out
        assert f"{DOCKER} (alias of buildrunner/docker:latest)" in done.out
    finally:
        remove_image(f"{built}-kit")
        remove_image(built)


@pytest.mark.usefixtures("installed")
def test_what_only_the_user_may_decide_is_told_by_the_installation(
    bench: Bench, registry: Registry
) -> None:
    missing = f"{registry.address}/app"
    bench.write("Dockerfile", "FROM mirror.gcr.io/library/alpine:0-none\n")
    bench.write(
        "cloudbuild.yaml",
        f"steps:\n- name: mirror.gcr.io/library/busybox:0-none\n- name: {missing}\n"
        f"- name: {DOCKER}\n  args: [build, .]\n",
    )
    done = bench.run("builders", "install", "--for", "cloudbuild.yaml")
    assert done.code == 0, done.out + done.err
    assert "  buildrunner builders install --for cloudbuild.yaml --stand-ins\n" in done.out
    alias = "mirror.gcr.io/library/busybox:0-none=buildrunner/busybox"
    assert f"  buildrunner submit --image-alias {alias}" in done.out
    assert "in .buildrunner.toml, followed by `buildrunner trust`:" in done.out
    assert '"mirror.gcr.io/library/busybox:0-none" = "buildrunner/busybox"' in done.out
    assert f"No builder image can replace {missing}: pull or load it." in done.out


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("sandbox", ["host", "nested"])
def test_one_command_gives_stand_ins_the_names_that_cannot_be_pulled(
    bench: Bench, registry: Registry, sandbox: str
) -> None:
    step, base = f"busybox:none-{sandbox}", f"alpine:none-{sandbox}"
    built = f"buildrunner-tests/stand-ins-{uuid.uuid4().hex[:8]}"
    bench.write("Dockerfile", f"FROM {base}\nRUN echo built > /proof\n")
    bench.write(
        "cloudbuild.yaml",
        f"steps:\n- name: {step}\n  args: [echo, stood in]\n"
        f"- name: {DOCKER}\n  args: [build, -t, {built}, .]\n",
    )
    try:
        done = bench.run("builders", "install", "--for", "cloudbuild.yaml", "--stand-ins")
        assert done.code == 0, done.out + done.err
        assert done.out.splitlines()[-2:] == [
            f"{step} is buildrunner/busybox on this engine now.",
            f"{base} is buildrunner/alpine on this engine now.",
        ]
        done = bench.run("submit", ".", "--sandbox", sandbox)
        assert done.code == 0, done.out + done.err
        assert "Step #0: stood in" in done.out
    finally:
        for name in (step, base, built):
            remove_image(name)


@pytest.mark.usefixtures("installed")
def test_an_image_that_cannot_be_made_hides_no_advice_on_the_others(
    bench: Bench, registry: Registry
) -> None:
    bench.write(
        "cloudbuild.yaml", "steps:\n- name: busybox:0-none\n- name: google/cloud-sdk:0-none\n"
    )
    nowhere = f"GCLOUD_URL=http://{registry.address}/none"
    done = bench.run("builders", "install", "--for", "cloudbuild.yaml", "--build-arg", nowhere)
    assert done.code != 0
    assert "busybox:0-none=buildrunner/busybox" in done.out
    assert "google/cloud-sdk:0-none=" not in done.out


def test_nothing_is_made_for_an_image_that_none_can_replace(
    bench: Bench, registry: Registry
) -> None:
    missing = [f"{registry.address}/app", f"mirror.gcr.io/library/alpine@sha256:{'0' * 64}"]
    bench.write("Dockerfile", f"FROM {missing[1]}\n")
    bench.write("cloudbuild.yaml", f"steps:\n- name: {missing[0]}\n  args: [build, -t, app, .]\n")
    done = bench.run("builders", "install", "--for", "cloudbuild.yaml", "--stand-ins")
    assert done.code == 0, done.out + done.err
    assert done.out.splitlines() == [
        *(f"{image}: being pulled" for image in missing),
        f"No builder image can replace {', '.join(missing)}: pull or load it.",
    ]


def test_a_pull_that_fails_names_the_command(bench: Bench, registry: Registry) -> None:
    bench.write("cloudbuild.yaml", "steps:\n- name: python:0-none\n")
    done = bench.run("submit", ".", "--image-alias", f"python:0-none={registry.address}/none")
    assert done.code == 1
    assert "`buildrunner builders install python` makes a stand-in for it" in done.out + done.err
    assert "`--image-alias python:0-none=buildrunner/python` uses that" in done.out + done.err


def test_a_build_argument_that_no_image_takes_is_bad_usage() -> None:
    answer = buildrunner("builders", "install", "git", "--build-arg", "NODE_VERSION=20")
    assert answer.returncode == 2
    assert "--build-arg NODE_VERSION=20: no image that is made takes it" in answer.stderr
