from __future__ import annotations

import io
import tarfile
import threading

import pytest
from msgspec.structs import replace

from buildrunner.builders import installer
from buildrunner.builders.catalog import BUILDERS
from buildrunner.builders.host_settings import HostSettings
from buildrunner.builders.image_contents import find_sdk, sdk_archive
from buildrunner.builders.image_factory import ImageBuild, StoredImage
from buildrunner.builders.installer import (
    LABEL_CONTENT,
    Installer,
    LoggedInstallation,
    current_image,
    with_parents,
)
from buildrunner.errors import EngineError, ImagePullError

ROOT = "debian:bookworm-slim"


def stored(identity: str, labels=()) -> StoredImage:
    layers = (f"layer of {identity}",)
    return StoredImage(id=identity, labels=dict(labels), size_bytes=1, layers=layers)


class FakeFactory:
    """Makes images in memory; what it is told to refuse, it refuses."""

    def __init__(self, *images: str, pulls: tuple[str, ...] = (), oldest: str = "1.12") -> None:
        self.images = {name: stored(f"id of {name}") for name in images}
        self.built: list[ImageBuild] = []
        self.pulled: list[str] = []
        self.imported: list[str] = []
        self.discarded: list[str] = []
        self.refuses: set[str] = set()
        self.fails_its_test: set[str] = set()
        self.ran: list[tuple[str, str, tuple[str, ...]]] = []
        self._pulls = pulls
        self._oldest = oldest
        self._lock = threading.Lock()

    def find(self, image):
        return self.images.get(image)

    def pull(self, image):
        self.pulled.append(image)
        if image not in self._pulls:
            raise ImagePullError(f"no such image {image}")
        self.images[image] = stored(f"id of {image}")
        return self.images[image]

    def build(self, build, on_line):
        if build.image in self.refuses:
            raise EngineError(f"{build.image} can't be built")
        with self._lock:
            self.built.append(build)
            identity = f"{build.image} #{len(self.built)}"
            self.images[build.image] = stored(identity, build.labels)
        on_line("Step 1/1 : FROM scratch")
        return self.images[build.image]

    def import_root(self, image, archive, labels):
        self.imported.append(image)
        assert b"".join(archive)
        self.images[image] = stored(f"id of {image}", labels)
        return self.images[image]

    def add_files(self, image, parent, archive):
        assert parent in self.images
        return self.import_root(image, archive, {})

    def run(self, image, program, arguments):
        self.ran.append((image, program, tuple(arguments)))
        return (127, "sh: not found\n") if image in self.fails_its_test else (0, "")

    def tag(self, image, name):
        self.images[name] = self.images[image]

    def discard(self, image):
        self.discarded.append(image)
        self.images.pop(image, None)

    def oldest_api_version(self):
        return self._oldest


class Recorder:
    def __init__(self) -> None:
        self.made: list[str] = []
        self.kept: list[str] = []
        self.failures: dict[str, str] = {}

    def started(self, name):
        pass

    def moved(self, name, line):
        pass

    def finished(self, name, image, seconds, *, made):
        (self.made if made else self.kept).append(name)

    def failed(self, name, error):
        self.failures[name] = str(error)


ALL = [builder.name for builder in BUILDERS]


def install(factory, names=ALL, *, base="", settings=None, environ=None, recorder=None, **options):
    recorder = recorder or Recorder()
    settings = settings or HostSettings()
    made_by = Installer(factory, settings, environ or {"PATH": ""}, recorder, **options)
    made_by.install(with_parents(names), base)
    return recorder


def test_every_image_is_made_once_after_its_parents() -> None:
    factory = FakeFactory(ROOT)
    install(factory)
    order = [build.image for build in factory.built]
    assert sorted(order) == sorted(builder.image for builder in BUILDERS)
    assert order[0] == "buildrunner/base:latest"
    assert order.index("buildrunner/python:latest") < order.index("buildrunner/node:latest")


def test_an_image_that_others_wait_for_is_made_before_one_that_none_waits_for(
    monkeypatch,
) -> None:
    monkeypatch.setattr(installer, "AT_ONCE", 1)
    factory = FakeFactory(ROOT)
    install(factory, ["docker", "curl", "npm"])
    order = [build.image.removesuffix(":latest").split("/")[1] for build in factory.built]
    assert order[:4] == ["base", "git", "gcc", "python"]
    assert set(order[4:]) == {"npm", "docker", "curl"}


def test_a_second_run_makes_nothing() -> None:
    factory = FakeFactory(ROOT)
    install(factory)
    factory.built.clear()
    recorder = install(factory)
    assert (factory.built, recorder.made, len(recorder.kept)) == ([], [], len(BUILDERS))


def test_a_new_base_makes_all_that_stand_on_it_anew() -> None:
    factory = FakeFactory(ROOT)
    install(factory, ["python"])
    factory.images[ROOT] = stored("newer")
    names = ["base", "git", "gcc", "python"]
    assert install(factory, ["python"]).made == names
    # What they replaced goes, children first.
    old = [f"buildrunner/{name}:latest #{n}" for n, name in enumerate(names, 1)]
    assert factory.discarded == old[::-1]


def test_images_are_current_in_an_image_store_that_gives_them_other_ids() -> None:
    """As containerd's does when they are loaded from an archive: its ids are of manifests."""
    factory = FakeFactory(ROOT)
    install(factory)
    for name, image in factory.images.items():
        factory.images[name] = replace(image, id=f"other {image.id}")
    assert current_image(factory, "engine") == factory.find("buildrunner/engine:latest")
    assert install(factory).made == []


def test_an_image_that_stands_on_another_base_is_not_current() -> None:
    factory = FakeFactory(ROOT)
    install(factory, ["engine"])
    factory.images[ROOT] = stored("newer")
    install(factory, ["base"])
    assert current_image(factory, "engine") is None


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
    install(factory, ["gsutil"], settings=settings)
    base, _, _, python, gsutil = factory.built
    proxy = {"http_proxy": "http://proxy"}
    assert base.arguments == {"BASE": ROOT, "DEBIAN_MIRROR": "http://debian.test", **proxy}
    assert python.arguments["GCC"] == "buildrunner/gcc:latest"
    assert gsutil.arguments == {
        "PYTHON": "buildrunner/python:latest",
        "PIP_INDEX_URL": "https://pip.test",
        **proxy,
    }
    assert "ca-certificates/host-0.crt" in names_in(base.context)
    assert names_in(python.context) == {"Dockerfile"}
    assert base.labels[LABEL_CONTENT] != python.labels[LABEL_CONTENT]


def test_all_that_can_be_made_is_made_and_every_failure_is_told() -> None:
    factory, recorder = FakeFactory(ROOT), Recorder()
    factory.refuses = {"buildrunner/java:latest", "buildrunner/curl:latest"}
    with pytest.raises(EngineError, match="could not be made") as failed:
        install(factory, recorder=recorder)
    assert "java" in str(failed.value)
    made = {build.image for build in factory.built}
    assert "buildrunner/node:latest" in made
    assert "buildrunner/maven:latest" not in made
    assert recorder.failures["maven"] == "it needs java"
    assert recorder.failures["curl"] == "buildrunner/curl:latest can't be built"
    assert "buildrunner/wget:latest" in made  # of the same folder, but not of the same target


def test_every_image_is_tested_once_it_is_made_and_not_again() -> None:
    factory = FakeFactory(ROOT)
    install(factory)
    assert {image for image, _, _ in factory.ran} == {builder.image for builder in BUILDERS}
    assert ("buildrunner/git:latest", "", ("--version",)) in factory.ran
    factory.ran.clear()
    install(factory)
    assert factory.ran == []


def test_an_image_that_fails_its_test_does_not_stay() -> None:
    factory = FakeFactory(ROOT)
    factory.fails_its_test = {"buildrunner/git:latest"}
    with pytest.raises(EngineError, match=r"exit code 127: sh: not found"):
        install(factory, ["git"])
    assert "buildrunner/git:latest" not in factory.images


def test_a_server_logs_what_is_made_and_what_is_not(caplog) -> None:
    caplog.set_level("INFO", "buildrunner")
    factory = FakeFactory(ROOT)
    factory.fails_its_test = {"buildrunner/engine:latest"}
    with pytest.raises(EngineError):
        install(factory, ["engine"], recorder=LoggedInstallation())
    told = [record.getMessage() for record in caplog.records]
    assert told[:2] == [
        "making the image buildrunner/base",
        "made the image buildrunner/base in 0 s, 0 MB",
    ]
    assert told[-1].startswith("the image buildrunner/engine could not be made: ")


def test_an_image_gets_the_public_names_that_it_serves() -> None:
    factory = FakeFactory(ROOT)
    install(factory, ["npm"], public_names={"npm": ["gcr.io/cloud-builders/npm:node-12"]})
    for name in ("gcr.io/cloud-builders/npm", "gcr.io/cloud-builders/npm:node-12"):
        assert factory.images[name] == factory.images["buildrunner/npm:latest"]


def test_a_public_name_of_an_older_image_moves_to_the_newer_one() -> None:
    factory = FakeFactory(ROOT)
    install(factory, ["git"])
    install(factory, ["git"], force={"git"})
    public = factory.images["gcr.io/cloud-builders/git"]
    assert public == factory.images["buildrunner/git:latest"]


def test_a_public_image_that_the_engine_really_has_keeps_its_name() -> None:
    factory = FakeFactory(ROOT, "gcr.io/cloud-builders/git")
    install(factory, ["git"])
    assert factory.images["gcr.io/cloud-builders/git"].id == "id of gcr.io/cloud-builders/git"


class TestTheSdkOfThisMachine:
    @pytest.fixture
    def environ(self, tmp_path):
        root = tmp_path / "google-cloud-sdk"
        for name in ("bin/gcloud", "bin/kubectl", "bin/anthoscli", "lib/gcloud.py"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("#!/bin/sh\n")
            (root / name).chmod(0o755)
        (root / "platform" / "gsutil").mkdir(parents=True)
        (root / "platform" / "pubsub-emulator").mkdir()
        (root / "lib" / "__pycache__").mkdir()
        (root / "VERSION").write_text("528.0.0\n")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "gcloud").symlink_to(root / "bin" / "gcloud")
        return {"PATH": str(tmp_path / "bin")}

    def test_goes_into_the_images_of_gcloud(self, environ) -> None:
        factory = FakeFactory(ROOT)
        install(factory, ["gcloud"], environ=environ)
        assert factory.imported == ["buildrunner/host-sdk:latest"]
        assert factory.built[-1].arguments["SDK"] == "buildrunner/host-sdk:latest"
        assert "buildrunner/host-sdk:latest" not in factory.images  # only while it is needed

    def test_holds_the_commands_and_no_emulators(self, environ) -> None:
        archive = io.BytesIO(b"".join(sdk_archive(find_sdk(environ))))
        with tarfile.open(fileobj=archive) as opened:
            names = set(opened.getnames())
        assert "builder/google-cloud-sdk/bin/kubectl" in names
        assert "builder/google-cloud-sdk/platform/gsutil" in names
        for left_out in ("bin/anthoscli", "platform/pubsub-emulator", "lib/__pycache__"):
            assert f"builder/google-cloud-sdk/{left_out}" not in names

    def test_of_another_version_makes_them_anew(self, environ, tmp_path) -> None:
        factory = FakeFactory(ROOT)
        install(factory, ["gcloud"], environ=environ)
        assert install(factory, ["gcloud"], environ=environ).made == []
        (tmp_path / "google-cloud-sdk" / "VERSION").write_text("581.0.0\n")
        assert install(factory, ["gcloud"], environ=environ).made == ["gcloud"]

    def test_is_not_taken_where_an_address_of_an_archive_is_given(self, environ) -> None:
        factory = FakeFactory(ROOT)
        settings = HostSettings(arguments={"GCLOUD_URL": "https://mirror.test/sdk.tar.gz"})
        install(factory, ["gcloud"], environ=environ, settings=settings)
        assert factory.imported == []
        assert factory.built[-1].arguments["GCLOUD_URL"] == "https://mirror.test/sdk.tar.gz"


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
        mmdebstrap(tmp_path, f"tar -c -C {tmp_path} ./mmdebstrap")
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
