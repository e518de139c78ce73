"""Workspaces of builds that failed, kept on a real engine and gone on with."""

import gzip
import io
import tarfile
import threading
import uuid
from pathlib import Path

import pytest

from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec, Mount
from buildrunner.errors import SourceError
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.spec.model.source import GitSource
from buildrunner.workspace.kept import Keeping, KeptFolder, KeptWorkspace, RestoredWorkspace
from buildrunner.workspace.protocol import Preparation, PreparedWorkspace, volume_name
from buildrunner.workspace.volume import EmptyWorkspace
from tests.contract.test_container_engine import is_podman

pytestmark = pytest.mark.docker

MIB = 1 << 20


class Stage:
    """Prepares workspaces, runs scripts in them, and removes everything."""

    def __init__(self, engine, image, folder):
        self.engine, self.image = engine, image
        self.keeping = Keeping(folder=str(folder), limit_bytes=4 * MIB)
        self.builds = []

    def kept(
        self,
        workspace,
        *,
        wanted=True,
        volumes=(),
        restored="",
        keeping=None,
        engine=lambda engine: engine,
    ):
        build = f"test-{uuid.uuid4().hex[:12]}"
        self.builds.append(build)
        made = KeptWorkspace(
            workspace,
            keeping or self.keeping,
            build,
            wanted=lambda: wanted,
            volumes=lambda: volumes,
            restored=restored,
        )
        labels = {LABEL_BUILD: build}
        for name in volumes:
            self.engine.create_volume(volume_name(build, f"volume-{name}"), labels)
        engine = engine(self.engine)
        return build, made, made.prepare(Preparation(engine, build, labels, threading.Event()))

    def run(self, build, prepared, script, volumes=()):
        mounts = [Mount(source=prepared.volume, target="/workspace")]
        mounts += [
            Mount(source=volume_name(build, f"volume-{name}"), target=f"/{name}")
            for name in volumes
        ]
        container = self.engine.create_container(
            ContainerSpec(
                image=self.image,
                entrypoint=("sh", "-c", script),
                workdir="/workspace",
                mounts=tuple(mounts),
                network="none",
                labels={LABEL_BUILD: build},
            )
        )
        try:
            output = b"".join(self.engine.start_container(container, attach=True))
            assert self.engine.wait_container(container).code == 0, output
            return output.decode().splitlines()
        finally:
            self.engine.remove_container(container)

    def close(self):
        for build in self.builds:
            owned = self.engine.list_owned({LABEL_BUILD: build})
            for container in owned.containers:
                self.engine.remove_container(container)
            for volume in owned.volumes:
                self.engine.remove_volume(volume)


@pytest.fixture
def stage(docker_engine, busybox, tmp_path):
    stage = Stage(docker_engine, busybox, tmp_path / "workspaces")
    yield stage
    stage.close()


def test_a_later_build_begins_with_what_the_steps_left(stage):
    owner = "0:0" if is_podman(stage.engine) else "1234:56"  # it copies all out as root's
    write = (
        f"echo one > file; mkdir dir; echo two > dir/run; chmod 0751 dir/run; chown {owner} file;"
        " ln -s file link; ln -s ../../elsewhere dir/out; touch -d @1000000000 file;"
        " echo kept > /cache/x; ln file dir/again; mkfifo pipe; mkdir -m 2775 shared;"
        f" chown {owner} .; chmod 1770 ."
    )
    build, workspace, prepared = stage.kept(EmptyWorkspace(), volumes=("cache",))
    stage.run(build, prepared, write, ("cache",))
    look = (
        "cat link dir/run /cache/x; readlink dir/out;"
        " stat -c '%n %a %u:%g %Y %h' file; stat -c '%a %u:%g' dir/run shared ."
    )
    before = stage.run(build, prepared, look, ("cache",))
    workspace.release()
    assert stage.engine.list_owned({LABEL_BUILD: build}).containers == ()
    assert stage.keeping.has(build)
    folder = stage.keeping.of(build)
    later, again, restored = stage.kept(RestoredWorkspace(folder, build), restored=build)
    assert stage.run(later, restored, look, ("cache",)) == before
    assert build in restored.log[0]
    again.release()


def test_that_of_a_build_without_a_failure_is_not_kept(stage):
    build, workspace, _ = stage.kept(EmptyWorkspace(), wanted=False)
    workspace.release()
    assert not stage.keeping.has(build)


def test_of_what_it_was_made_is_known_later(stage):
    class Fetched(EmptyWorkspace):
        def prepare(self, wanted):
            super().prepare(wanted)
            source = GitSource(url="https://example.com/app", revision="a" * 40)
            provenance = SourceProvenance(resolved_git_source=source)
            return PreparedWorkspace(
                volume=f"buildrunner-{wanted.build_id}-workspace", provenance=provenance
            )

    build, workspace, prepared = stage.kept(Fetched())
    workspace.release()
    folder = stage.keeping.of(build)
    _, _, restored = stage.kept(RestoredWorkspace(folder, build), restored=build)
    assert restored.provenance == prepared.provenance


def test_one_that_is_too_large_is_not_kept_and_leaves_nothing(stage):
    build, workspace, prepared = stage.kept(EmptyWorkspace())
    stage.run(build, prepared, "head -c 3000000 /dev/zero > big")
    workspace.release()
    assert not stage.keeping.has(build)
    assert list(Path(stage.keeping.folder).iterdir()) == []
    assert stage.engine.list_owned({LABEL_BUILD: build}).containers == ()


class ReplacedEngine:
    """The engine of a sandbox as a step may replace it: it gives any archive as the workspace."""

    def __init__(self, engine, archive):
        self._engine = engine
        self._archive = archive

    def get_archive(self, container_id, path):
        yield from self._archive

    def __getattr__(self, name):
        return getattr(self._engine, name)


def tar_of(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, options in members:
            entry = tarfile.TarInfo(name)
            for key, value in options.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    return buffer.getvalue()


SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "workspace/holes"}


@pytest.mark.parametrize(
    "archive",
    [
        gzip.compress(tar_of(("workspace/file", {"size": 1}))),
        tar_of(("workspace/../../etc/cron.d/own", {"size": 1})),
        tar_of(("workspace/link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
               ("workspace/link/own", {"size": 1})),
        tar_of(("workspace/holes", {"size": 0, "pax_headers": {
            **SPARSE, "GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "0",
            "GNU.sparse.map": ""}})),
        tar_of(("workspace/file", {"size": 1, "uid": -5})),
    ],
    ids=["bomb", "outside", "through-a-link", "holes", "nobody"],
)  # fmt: skip
def test_an_archive_that_a_step_makes_up_is_not_kept(stage, archive):
    build, workspace, _ = stage.kept(
        EmptyWorkspace(), engine=lambda e: ReplacedEngine(e, [archive])
    )
    workspace.release()
    assert not stage.keeping.has(build)
    assert list(Path(stage.keeping.folder).iterdir()) == []


def test_devices_that_a_step_makes_up_are_left_out(stage):
    device = {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0, "mode": 0o666}
    archive = tar_of(("workspace/disk", device), ("other/file", {"size": 1}))
    build, workspace, _ = stage.kept(
        EmptyWorkspace(), engine=lambda e: ReplacedEngine(e, [archive])
    )
    workspace.release()
    with tarfile.open(KeptFolder(stage.keeping.of(build)).archive) as tar:
        assert [(one.name, one.type) for one in tar] == [("workspace/file", tarfile.REGTYPE)]


def test_one_larger_than_a_build_may_write_to_the_disk_is_not_kept(stage):
    keeping = Keeping(folder=stage.keeping.folder, limit_bytes=4 * MIB, disk_bytes=MIB)
    build, workspace, prepared = stage.kept(EmptyWorkspace(), keeping=keeping)
    stage.run(build, prepared, "head -c 1500000 /dev/zero > big")
    workspace.release()
    assert not keeping.has(build)


def test_an_archive_from_before_they_were_checked_is_not_unpacked(stage):
    folder = Path(stage.keeping.of("old"))
    folder.mkdir(parents=True)
    (folder / "workspace.tar").write_bytes(tar_of(("etc/own", {"size": 1})))
    with pytest.raises(SourceError, match="is no longer kept"):
        stage.kept(RestoredWorkspace(str(folder), "old"))


def test_the_oldest_makes_room(stage, tmp_path):
    made = []
    for _ in range(3):
        build, workspace, prepared = stage.kept(EmptyWorkspace())
        stage.run(build, prepared, "head -c 1800000 /dev/zero > big")
        workspace.release()
        made.append(build)
    assert [stage.keeping.has(build) for build in made] == [False, True, True]


def test_one_that_is_gone_is_an_error_that_says_so(stage, tmp_path):
    with pytest.raises(SourceError, match="the workspace of build old is no longer kept"):
        stage.kept(RestoredWorkspace(str(tmp_path / "nowhere"), "old"))
