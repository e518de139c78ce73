from __future__ import annotations

import io
import tarfile
import threading

import pytest

from buildrunner.builders.catalog import BUILDERS
from buildrunner.builders.host_settings import HostSettings
from buildrunner.builders.image_factory import ImageBuild, StoredImage
from buildrunner.builders.installer import LABEL_CONTENT, Installer, with_parents
from buildrunner.errors import EngineError, ImagePullError

ROOT = "debian:bookworm-slim"


class FakeFactory:
    """Makes images in memory; what it is told to refuse, it refuses."""

    def __init__(self, *images: str, pulls: tuple[str, ...] = (), oldest: str = "1.12") -> None:
        self.images = {
            name: StoredImage(id=f"id of {name}", labels={}, size_bytes=1) for name in images
        }
        self.built: list[ImageBuild] = []
        self.pulled: list[str] = []
        self.imported: list[str] = []
        self.discarded: list[str] = []
        self.refuses: set[str] = set()
        self._pulls = pulls
        self._oldest = oldest
        self._lock = threading.Lock()

    def find(self, image):
        return self.images.get(image)

    def pull(self, image):
        self.pulled.append(image)
        if image not in self._pulls:
            raise ImagePullError(f"no such image {image}")
        self.images[image] = StoredImage(id=f"id of {image}", labels={}, size_bytes=1)
        return self.images[image]

    def build(self, build, on_line):
        if build.image in self.refuses:
            raise EngineError(f"{build.image} can't be built")
        with self._lock:
            self.built.append(build)
            identity = f"{build.image} #{len(self.built)}"
            self.images[build.image] = StoredImage(id=identity, labels=build.labels, size_bytes=1)
        on_line("Step 1/1 : FROM scratch")
        return self.images[build.image]

    def import_root(self, image, archive, labels):
        self.imported.append(image)
        assert b"".join(archive)
        self.images[image] = StoredImage(id=f"id of {image}", labels=dict(labels), size_bytes=1)
        return self.images[image]

    def discard(self, image_id):
        self.discarded.append(image_id)

    def oldest_api_version(self):
        return self._oldest


class Recorder:
    def __init__(self) -> None:
        self.made: list[str] = []
        self.kept: list[str] = []

    def started(self, name):
        pass

    def moved(self, name, line):
        pass

    def finished(self, name, image, seconds, *, made):
        (self.made if made else self.kept).append(name)


def install(factory, names=(), *, base="", settings=None, force=(), environ=None):
    recorder = Recorder()
    installer = Installer(factory, settings or HostSettings(), environ or {}, recorder, force=force)
    installer.install(with_parents(names), base)
    return recorder


def test_every_image_is_made_once_after_its_parents() -> None:
    factory = FakeFactory(ROOT)
    install(factory)
    order = [build.image for build in factory.built]
    assert sorted(order) == sorted(builder.image for builder in BUILDERS)
    assert order[0] == "buildrunner/base:latest"
    assert order.index("buildrunner/python:latest") < order.index("buildrunner/node:latest")


def test_a_second_run_makes_nothing() -> None:
    factory = FakeFactory(ROOT)
    install(factory)
    factory.built.clear()
    recorder = install(factory)
    assert (factory.built, recorder.made, len(recorder.kept)) == ([], [], len(BUILDERS))


def test_a_new_base_makes_all_that_stand_on_it_anew() -> None:
    factory = FakeFactory(ROOT)
    install(factory, ["npm"])
    factory.images[ROOT] = StoredImage(id="newer", labels={}, size_bytes=1)
    assert install(factory, ["npm"]).made == ["base", "python", "npm"]
    # What they replaced goes, children first.
    old = [f"buildrunner/{name}:latest #{n}" for n, name in enumerate(("base", "python", "npm"), 1)]
    assert factory.discarded == old[::-1]


def test_an_image_that_someone_else_tagged_so_is_made_anew() -> None:
    factory = FakeFactory(ROOT, "buildrunner/base:latest")
    assert install(factory, ["base"]).made == ["base"]
    assert factory.discarded == []  # it is not ours to remove


def test_force_makes_anew_without_the_cache_and_leaves_alone_what_was_not_named() -> None:
    factory = FakeFactory(ROOT)
    install(factory, ["git"])
    assert install(factory, ["git"], force={"git"}).made == ["git"]
    assert [build.use_cache for build in factory.built] == [True, True, False]


def test_each_build_gets_its_own_settings_and_the_base_the_certificates() -> None:
    factory = FakeFactory(ROOT)
    settings = HostSettings(
        arguments={"DEBIAN_MIRROR": "http://debian.test", "PIP_INDEX_URL": "https://pip.test"},
        proxies={"http_proxy": "http://proxy"},
        certificates=("certificate",),
    )
    install(factory, ["gcs"], settings=settings)
    base, python, gcs = factory.built
    proxy = {"http_proxy": "http://proxy"}
    assert base.arguments == {"BASE": ROOT, "DEBIAN_MIRROR": "http://debian.test", **proxy}
    assert python.arguments["BASE"] == "buildrunner/base:latest"
    assert gcs.arguments == {
        "PYTHON": "buildrunner/python:latest",
        "PIP_INDEX_URL": "https://pip.test",
        **proxy,
    }
    assert "ca-certificates/host-0.crt" in names_in(base.context)
    assert names_in(python.context) == {"Dockerfile"}
    assert base.labels[LABEL_CONTENT] != python.labels[LABEL_CONTENT]


def test_a_failure_is_told_and_nothing_is_made_on_what_failed() -> None:
    factory = FakeFactory(ROOT)
    factory.refuses = {"buildrunner/python:latest"}
    with pytest.raises(EngineError, match="python"):
        install(factory)
    made = {build.image for build in factory.built}
    assert "buildrunner/git:latest" in made
    assert "buildrunner/node:latest" not in made


def names_in(context: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(context)) as archive:
        return set(archive.getnames())


class TestWhatTheBaseStandsOn:
    def test_an_image_that_is_here(self) -> None:
        factory = FakeFactory(ROOT, "buildrunner/" + ROOT)
        install(factory, ["base"])
        assert factory.pulled == []
        assert factory.built[0].arguments["BASE"] == ROOT

    def test_one_that_was_made_here_before_is_not_pulled_over(self) -> None:
        factory = FakeFactory("buildrunner/" + ROOT, pulls=(ROOT,))
        install(factory, ["base"])
        assert factory.pulled == []
        assert factory.built[0].arguments["BASE"] == "buildrunner/" + ROOT

    def test_one_that_can_be_pulled(self) -> None:
        factory = FakeFactory(pulls=(ROOT,))
        install(factory, ["base"])
        assert factory.pulled == [ROOT]
        assert factory.imported == []

    def test_else_one_made_by_mmdebstrap(self, tmp_path) -> None:
        mmdebstrap(tmp_path, 'printf "%s" "$*"')
        factory = FakeFactory()
        install(factory, ["base"], environ={"PATH": f"{tmp_path}:/usr/bin:/bin"})
        assert factory.imported == ["buildrunner/" + ROOT]

    def test_the_one_that_was_asked_for(self) -> None:
        factory = FakeFactory(ROOT, pulls=("mirror.test/debian:12",))
        install(factory, ["base"], base="mirror.test/debian:12")
        assert factory.pulled == ["mirror.test/debian:12"]
        assert factory.built[0].arguments["BASE"] == "mirror.test/debian:12"

    def test_a_release_whose_docker_command_the_engine_understands(self) -> None:
        factory = FakeFactory(pulls=("debian:trixie-slim",), oldest="1.44")
        install(factory, ["base"])
        assert factory.pulled == ["debian:trixie-slim"]

    def test_no_release_has_such_a_docker_command(self) -> None:
        with pytest.raises(EngineError, match=r"1\.99"):
            install(FakeFactory(oldest="1.99"), ["base"])

    def test_no_mmdebstrap_either(self, tmp_path) -> None:
        with pytest.raises(EngineError, match="mmdebstrap") as refused:
            install(FakeFactory(), ["base"], environ={"PATH": str(tmp_path)})
        assert "apt-get install mmdebstrap" in refused.value.hint

    def test_an_mmdebstrap_that_fails_midway_makes_no_image(self, tmp_path) -> None:
        mmdebstrap(tmp_path, "printf half; echo 'E: no mirror answers' >&2; exit 25")
        factory = FakeFactory()
        with pytest.raises(EngineError, match="no mirror answers"):
            install(factory, ["base"], environ={"PATH": f"{tmp_path}:/usr/bin:/bin"})
        assert "buildrunner/" + ROOT not in factory.images


def mmdebstrap(folder, script: str) -> None:
    """A stand-in program: the real one takes 15 s and is run by tests/e2e/test_builders.py."""
    program = folder / "mmdebstrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
