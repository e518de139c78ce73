"""The config of a fork's pull request, approved: it uses no login and no bucket of the server."""

import base64
import json
import threading
import uuid

import pytest
from msgspec.structs import replace

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.errors import BuildrunnerError
from buildrunner.registries.distribution import Repository
from buildrunner.settings import GitSettings, Settings
from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.reading.decode import decode_message
from tests.conftest import busybox_tar, remove_image, start_registry, stop
from tests.fixtures_git import Repository as GitRepository
from tests.fixtures_git import git
from tests.registry_servers import HTPASSWD, PASSWORD, USER
from tests.security.server_build import TEST_IMAGES, ServerBuild

pytestmark = pytest.mark.docker

LOOPBACK = ("127.0.0.1",)
SETTINGS = Settings(privileged=False, untrusted_images=(TEST_IMAGES,))


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    running = start_registry(tmp_path_factory.mktemp("closed"), htpasswd=HTPASSWD)
    yield running
    stop(running.process)


@pytest.fixture
def engine(tmp_path, docker_engine, closed):
    """The server's engine, with the server's login at the registry."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    folder = tmp_path / "docker"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auths": {closed.address: {"auth": auth}}}))
    made = DockerEngine(docker_engine.endpoint, environ={"DOCKER_CONFIG": str(folder)})
    yield made
    made.close()


@pytest.fixture
def pushed(docker_engine):
    """Push the test image to a registry, with a login if need be; its names are removed."""
    names = []

    def push(address, login=None):
        name = f"{address}/team/{uuid.uuid4().hex[:8]}:1"
        names.append(name)
        docker_engine.import_image(name, [busybox_tar()], cmd=["sh"], env=["PATH=/bin"])
        docker_engine.push_image(
            name, on_progress=lambda _: None, cancel=threading.Event(), login=login
        )
        return name

    yield push
    for name in names:
        remove_image(name)


@pytest.fixture
def private(pushed, closed):
    return pushed(closed.address, RegistryLogin(username=USER, password=PASSWORD))


def run(engine, tmp_path, image, *, untrusted=True, settings=SETTINGS, hosts=LOOPBACK, **fields):
    """Run a build of one step on an image; its status, and its log."""
    request = {"steps": [{"name": image, "script": "echo the step ran"}], **fields}
    build = ServerBuild(
        engine, tmp_path, request, settings=settings, untrusted=untrusted, hosts=hosts
    )
    try:
        return build.run().status, build.log.text
    except BuildrunnerError as error:
        return Status.FAILURE, f"{error} {error.hint}"


@pytest.mark.parametrize("present", [False, True])
def test_no_private_image_is_had_with_the_server_s_login(engine, tmp_path, private, present):
    if not present:
        remove_image(private)
    status, log = run(engine, tmp_path, private)
    assert status is Status.FAILURE
    assert "the step ran" not in log
    assert run(engine, tmp_path, private, untrusted=False)[0] is Status.SUCCESS


def test_an_image_by_its_id_is_refused(engine, tmp_path, private):
    status, log = run(engine, tmp_path, engine.find_image(private).id)
    assert status is Status.FAILURE
    assert "the step ran" not in log


@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize("prefix", ["", "docker.io/", "index.docker.io/"])
def test_no_image_of_a_builder_s_name_is_pulled(engine, tmp_path, prefix, untrusted):
    """All projects run what has such a name, and it may belong to anyone on Docker Hub."""
    image = f"{prefix}buildrunner/not-installed"
    status, log = run(engine, tmp_path, image, untrusted=untrusted)
    assert status is Status.FAILURE
    assert "is an image that buildrunner makes, and is never pulled" in log


def test_a_registry_in_the_server_s_own_network_is_not_asked(engine, tmp_path, pushed, registry):
    image = pushed(registry.address)
    status, log = run(engine, tmp_path, image, hosts=())
    assert status is Status.FAILURE
    assert "an address that builds may not fetch from" in log


def test_images_that_everyone_can_pull_or_that_are_allowed_are_run(
    engine, tmp_path, pushed, registry, private
):
    public = pushed(registry.address)
    remove_image(public)
    assert run(engine, tmp_path, public)[0] is Status.SUCCESS
    allowed = replace(SETTINGS, untrusted_images=(private.rpartition(":")[0],))
    assert run(engine, tmp_path, private, settings=allowed, hosts=())[0] is Status.SUCCESS


@pytest.mark.parametrize("untrusted", [False, True])
def test_a_stranger_s_log_is_stored_in_no_bucket(engine, tmp_path, busybox, untrusted):
    settings = replace(SETTINGS, storage_folders={"gs://logs": f"file://{tmp_path}/logs"})
    request = {"steps": [{"name": busybox}], "logsBucket": "gs://logs"}
    build = ServerBuild(engine, tmp_path, request, settings=settings, untrusted=untrusted)
    (tmp_path / "log.txt").write_text("log")
    finished = replace(decode_message(Build, request).value, id="b")
    stored = build.program().store_log(build.stored, finished, str(tmp_path / "log.txt"))
    assert (tmp_path / "logs").exists() == (not untrusted)
    said = " ".join(warning.text for warning in stored.warnings)
    assert ("this build may not use the bucket gs://logs" in said) == untrusted


@pytest.mark.parametrize("untrusted", [False, True])
def test_a_stranger_s_image_is_pushed_nowhere(
    engine, docker_engine, tmp_path, busybox, closed, untrusted
):
    """Not with the server's login, and not by any other way, whatever the stored build says."""
    name = f"{closed.address}/team/{uuid.uuid4().hex[:8]}:1"
    docker_engine.import_image(name, [busybox_tar()], cmd=["sh"], env=["PATH=/bin"])
    try:
        status, log = run(engine, tmp_path, busybox, untrusted=untrusted, images=[name])
        assert status is Status.SUCCESS, log
        login = RegistryLogin(username=USER, password=PASSWORD)
        with Repository(ImageName.parse(name), login) as repository:
            assert (repository.manifest("1") is None) == untrusted
    finally:
        remove_image(name)


def test_a_stranger_s_files_are_stored_in_no_bucket(engine, tmp_path, busybox):
    settings = replace(SETTINGS, storage_folders={"gs://files": f"file://{tmp_path}/files"})
    artifacts = {"objects": {"location": "gs://files/", "paths": ["*"]}}
    run(engine, tmp_path, busybox, settings=settings, artifacts=artifacts)
    assert not (tmp_path / "files").exists()


def test_a_project_s_builds_use_the_buckets_that_the_project_may_use(engine, tmp_path, busybox):
    settings = replace(
        SETTINGS,
        storage_folders={
            "gs://mine": f"file://{tmp_path}/m",
            "gs://theirs": f"file://{tmp_path}/t",
        },
        projects={"p": {"storage_buckets": ("mine",)}},
    )
    script = [{"name": busybox, "script": "echo x > f"}]
    for bucket, wanted in (("mine", Status.SUCCESS), ("theirs", Status.FAILURE)):
        artifacts = {"objects": {"location": f"gs://{bucket}/", "paths": ["f"]}}
        status, log = run(
            engine,
            tmp_path,
            busybox,
            untrusted=False,
            settings=settings,
            artifacts=artifacts,
            steps=script,
        )
        assert status is wanted, log
    assert (tmp_path / "m/f").exists()
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("untrusted", [False, True])
def test_a_stranger_s_gitmodules_fetch_nothing_with_the_server_s_rights(
    engine, tmp_path, busybox, untrusted
):
    victim = GitRepository(tmp_path / "victim", "private.git")
    victim.commit({"secret": b"of the victim\n"})
    victim.push("main")
    fork = GitRepository(tmp_path / "fork")
    git(fork.work, "submodule", "add", "-q", f"file://{victim.path}", "module")
    fork.commit({"f": b"x"})
    fork.push("main")
    settings = replace(SETTINGS, git=GitSettings(submodules=True))
    status, log = run(
        engine,
        tmp_path,
        busybox,
        untrusted=untrusted,
        settings=settings,
        steps=[{"name": busybox, "script": "cat module/secret; true"}],
        source={"gitSource": {"url": f"file://{fork.path}", "revision": "main"}},
    )
    assert status is Status.SUCCESS, log
    assert ("of the victim" in log) == (not untrusted)


@pytest.mark.parametrize("untrusted", [True, False], ids=["stranger", "member"])
def test_a_stranger_s_lfsconfig_fetches_nothing_with_the_server_s_rights(
    engine, tmp_path, busybox, untrusted
):
    fork = GitRepository(tmp_path / "fork")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n"
    fork.commit(
        {
            ".gitattributes": b"*.bin filter=lfs\n",
            ".lfsconfig": b"[lfs]\nurl = https://lfs.example.com/private\n",
            "stolen.bin": pointer.encode(),
        }
    )
    fork.push("main")
    settings = replace(SETTINGS, git=GitSettings(lfs=True))
    status, log = run(
        engine,
        tmp_path,
        busybox,
        untrusted=untrusted,
        settings=settings,
        steps=[{"name": busybox, "script": "cat stolen.bin"}],
        source={"gitSource": {"url": f"file://{fork.path}", "revision": "main"}},
    )
    if untrusted:
        assert status is Status.SUCCESS, log
        assert "oid sha256:aaa" in log
    else:  # it goes where the file says
        assert status is not Status.SUCCESS
