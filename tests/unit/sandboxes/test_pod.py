"""The sandbox of a worker in a Pod: its engine shares the folder of the workspace."""

from __future__ import annotations

import threading
import time

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec
from buildrunner.errors import ContainerNameTaken, EngineError, EngineUnavailable
from buildrunner.sandboxes import pod
from buildrunner.sandboxes.pod import PodSandbox
from buildrunner.sources.local_folder import LocalFolder
from buildrunner.workspace.protocol import Preparation
from buildrunner.workspace.volume import EmptyWorkspace, FolderWorkspace
from tests.security.test_deep_folders import make_deep


class Engine(FakeEngine):
    """An engine that notes the options of its volumes."""

    def __init__(self):
        super().__init__()
        self.options = {}

    def create_volume(self, name, labels, *, options=None):
        self.options[name] = options
        return super().create_volume(name, labels, options=options)


def prepared(engine, folder, source):
    place = PodSandbox(engine, {}, "capabilities", str(folder)).open("b1")
    return place.workspace(source).prepare(Preparation(engine, "b1", {}, threading.Event()))


class Starting(FakeEngine):
    """An engine that answers from the third request on."""

    def __init__(self):
        super().__init__()
        self.pings = 0
        self.ensured = []

    def ping(self, *, anew=False):
        self.pings += 1
        if self.pings < 3:
            raise EngineUnavailable("there is no socket")

    def ensure_network(self, name, labels, *, address_range=None):
        self.ensured.append((name, dict(labels)))
        super().ensure_network(name, labels, address_range=address_range)


def test_the_network_of_the_build_is_made_ahead_once_the_engine_answers():
    engine = Starting()
    sandbox = PodSandbox(engine, {}, "capabilities", network="cloudbuild")
    sandbox.keep_spares(0)
    sandbox.keep_spares(0)  # steps may have changed it
    assert engine.ensured == [("cloudbuild", {"buildrunner.build": "shared"})]
    sandbox.remove("b1")
    assert engine.list_owned({"buildrunner.build": "shared"}).networks == ("cloudbuild",)


class Ending(FakeEngine):
    """An engine that ends while a container runs."""

    def start_container(self, container_id, *, attach):
        yield b"begun"
        raise EngineUnavailable("it broke off")

    def ping(self, *, anew=False):
        raise EngineUnavailable("there is no socket")


def test_the_end_of_the_engine_is_an_error_of_the_build_if_the_pod_goes_on(monkeypatch):
    monkeypatch.setattr(pod, "_POD_ENDS_S", 0.5)
    engine = PodSandbox(Ending(), {}, "capabilities").open("b1").engine
    output = engine.start_container("x", attach=True)
    assert next(output) == b"begun"
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match="it broke off"):
        next(output)
    assert time.monotonic() - began >= 0.5
    monkeypatch.setattr(pod, "_POD_ENDS_S", 0.0)  # errors after it do not wait again
    with pytest.raises(EngineUnavailable, match="there is no socket"):
        engine.ping()


class Stumbling(FakeEngine):
    """An engine that may be gone."""

    gone = True

    def ping(self, *, anew=False):
        if self.gone:
            raise EngineUnavailable("there is no socket")


def test_an_engine_that_answered_again_has_its_next_error_wait_again(monkeypatch):
    """Issue: the time of the first error counted until the end of the build."""
    monkeypatch.setattr(pod, "_POD_ENDS_S", 0.3)
    stumbling = Stumbling()
    engine = PodSandbox(stumbling, {}, "capabilities").open("b1").engine
    for _ in range(2):
        stumbling.gone = True
        began = time.monotonic()
        with pytest.raises(EngineUnavailable):
            engine.ping()
        assert time.monotonic() - began >= 0.3
        stumbling.gone = False
        engine.ping()


class WithVolumes(FakeEngine):
    """An engine that has its volumes where Docker has them."""

    def create_volume(self, name, labels, *, options=None):
        super().create_volume(name, labels, options=options)
        return f"{pod.ENGINE_DATA}/volumes/{name}/_data"


def test_the_worker_finds_the_volumes_of_its_engine_where_it_has_them(tmp_path, monkeypatch):
    engine = PodSandbox(WithVolumes(), {}, "capabilities").open("b1").engine
    monkeypatch.setattr(pod, "VOLUMES", str(tmp_path / "missing"))
    assert engine.create_volume("v", {}) == "/var/lib/docker/volumes/v/_data"
    monkeypatch.setattr(pod, "VOLUMES", str(tmp_path))
    assert engine.create_volume("v", {}) == f"{tmp_path}/v/_data"
    # The files of such a volume are elsewhere.
    bound = engine.create_volume("w", {}, options={"type": "none", "o": "bind", "device": "/x"})
    assert bound == "/var/lib/docker/volumes/w/_data"


def test_steps_get_the_folder_that_the_worker_and_the_engine_share(tmp_path):
    engine = Engine()
    made = prepared(engine, tmp_path, EmptyWorkspace())
    assert (made.volume, made.bind) == ("/workspace", True)
    assert engine.options == {
        "buildrunner-b1-workspace": {"type": "none", "o": "bind", "device": "/workspace"}
    }


def test_a_source_is_unpacked_by_the_engine_whose_folders_the_worker_does_not_see(tmp_path):
    engine = Engine()
    source, shared = tmp_path / "source", tmp_path / "shared"
    source.mkdir()
    shared.mkdir()
    (source / "file").write_text("text")
    made = prepared(engine, shared, FolderWorkspace(LocalFolder(str(source))))
    assert (made.way, made.files) == ("archive", 1)
    assert "the engine does not share our file system" in made.log[-1]


def test_what_an_earlier_process_left_in_the_workspace_is_removed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("stays")
    shared = tmp_path / "shared"
    (shared / "folder" / "below").mkdir(parents=True)
    (shared / "folder" / "below" / "file").write_text("x")
    (shared / "link").symlink_to(outside)
    prepared(Engine(), shared, EmptyWorkspace())
    assert list(shared.iterdir()) == []
    assert outside.read_text() == "stays"


def test_deep_folders_of_an_earlier_build_stop_no_later_one(tmp_path):
    """Issue: each later build on the worker failed, those of other projects as well."""
    make_deep(tmp_path / "left")
    prepared(Engine(), tmp_path, EmptyWorkspace())
    assert list(tmp_path.iterdir()) == []


def test_a_worker_without_the_shared_folder_says_what_is_missing(tmp_path):
    with pytest.raises(EngineError, match="can't be emptied") as caught:
        prepared(Engine(), tmp_path / "nothing", EmptyWorkspace())
    assert "mount the same volume" in caught.value.hint


@pytest.mark.parametrize(
    ("isolation", "privileged"),
    [("user-namespace", True), ("capabilities", False), ("privileged", True), ("host", False)],
)
def test_steps_are_privileged_where_the_isolation_of_the_pod_allows_it(isolation, privileged):
    sandbox = PodSandbox(FakeEngine(), {}, isolation)
    assert sandbox.isolation() == isolation
    assert sandbox.open("b1").privileged_steps is privileged


def test_later_builds_find_what_a_step_left_in_the_engine():
    """The page on security says so: where this fails, the page has to say something else."""
    engine = FakeEngine(["gcr.io/cloud-builders/docker", "evil"])
    sandbox = PodSandbox(engine, {}, "capabilities")
    evil = engine.find_image("evil").id
    step = sandbox.open("b1", project="mallory").engine
    assert step.tag_image(evil, "gcr.io/cloud-builders/docker")
    left = step.create_container(ContainerSpec(image="evil", name="watcher"))
    owned = ContainerSpec(image="evil", name="step", labels={LABEL_BUILD: "b1"})
    step.create_container(owned)
    sandbox.remove("b1")
    later = sandbox.open("b2", project="shop").engine
    assert later.find_image("gcr.io/cloud-builders/docker").id == evil
    with pytest.raises(ContainerNameTaken):
        later.create_container(ContainerSpec(image="evil", name="watcher"))
    later.create_container(owned)
    later.remove_container(left)
