"""A build reads the source that was uploaded for it, and no other; it changes none."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from buildrunner.errors import BuildrunnerError, StorageError
from buildrunner.server.pages.builds.artifacts import listed_files
from buildrunner.settings import Settings
from buildrunner.sources.uploads import SourceFile, SourceUploads, as_source
from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.reading.decode import decode_message
from buildrunner.storage.stores import Stores
from tests.api_server import api_server
from tests.security.server_build import ServerBuild

BUCKET = "buildrunner-sources"
REFUSALS = (
    "was not uploaded for this build's project",
    "is not the name of a bucket",
    "has the sources that were uploaded to a server",
)


def upload(folder: Path, project: str, content: bytes) -> str:
    """Upload a source of one file, ``f``; the object's name."""
    uploads = SourceUploads(str(folder))
    digest = hashlib.sha256(content).hexdigest()
    receiver = uploads.receive(project, digest)
    receiver.write(content)
    receiver.finish()
    receiver.abandon()
    return uploads.pack(project, [SourceFile(path="f", sha256=digest, size=len(content))])


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    return folder


@pytest.fixture
def run(docker_engine, busybox, tmp_path, sources):
    """Run a build of project ``p`` with the uploads at hand; its status and its log."""

    def ran(script="cat f", *, folders=None, **fields):
        request = {"steps": [{"name": busybox, "script": script}], **fields}
        settings = Settings(privileged=False, storage_folders=folders or {})
        build = ServerBuild(docker_engine, tmp_path, request, settings=settings)
        try:
            return build.run(uploads=str(sources)).status, build.log.text
        except BuildrunnerError as error:  # refused before anything runs
            return Status.FAILURE, str(error)

    return ran


@pytest.fixture
def server(tmp_path):
    with api_server(tmp_path) as running:
        yield running


def refused(server, **source):
    body = {"steps": [{"name": "busybox"}], "source": source}
    answer = server.http.post("/v1/projects/p/builds", json=body)
    return answer.status_code == 400 and answer.json()["error"]["message"]


@pytest.mark.docker
def test_a_build_has_its_own_upload_also_when_it_is_tried_again(run, sources):
    own = as_source(upload(sources, "p", b"mine"))
    for _ in range(2):
        status, log = run(source=own)
        assert status is Status.SUCCESS, log
        assert "mine" in log


@pytest.mark.docker
def test_artifacts_replace_no_archive_of_another_project(run, sources):
    theirs = upload(sources, "q", b"theirs")
    whole = (sources / theirs).read_bytes()
    for location in (f"gs://{BUCKET}/q/archives/", f"gs://{BUCKET}"):
        status, log = run(
            f"echo evil > {Path(theirs).name}",
            artifacts={"objects": {"location": location, "paths": ["*.tar"]}},
        )
        assert status is Status.FAILURE
        assert "sources that were uploaded to a server" in log
    assert (sources / theirs).read_bytes() == whole
    assert sorted(path.name for path in sources.iterdir()) == ["q"]


@pytest.mark.docker
@pytest.mark.parametrize("kind", ["storageSource", "storageSourceManifest"])
@pytest.mark.parametrize(
    ("bucket", "prefix"), [(BUCKET, ""), (f"{BUCKET}/x", "../"), (f"gs://{BUCKET}", "")]
)
def test_no_source_names_an_upload_of_another_project(run, sources, kind, bucket, prefix):
    theirs = upload(sources, "q", b"theirs")
    source = {kind: {"bucket": bucket, "object": f"{prefix}{theirs}"}}
    status, log = run(source=source)
    assert status is Status.FAILURE
    assert any(reason in log for reason in REFUSALS), log
    assert "theirs" not in log


@pytest.mark.docker
def test_a_manifest_names_no_upload_also_none_of_its_own_project(run, sources, tmp_path):
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    folders = {"gs://manifests": f"file://{bucket}"}
    for project in ("p", "q"):
        upload(sources, project, b"an upload")
        digest = hashlib.sha256(b"an upload").hexdigest()
        url = f"gs://{BUCKET}/{project}/blobs/{digest[:2]}/{digest}"
        (bucket / "m.json").write_text(json.dumps({"f": {"sourceUrl": url}}))
        manifest = {"storageSourceManifest": {"bucket": "manifests", "object": "m.json"}}
        status, log = run(folders=folders, source=manifest)
        assert status is Status.FAILURE
        assert "sources that were uploaded to a server" in log
        assert "an upload\n" not in log


@pytest.mark.parametrize("kind", [{"link": "target"}, {"directory": True}])
def test_no_digest_of_a_source_leads_to_another_file(server, kind):
    """Its answer once told whether any file of the machine exists, and marked it as used."""
    address = "/buildrunner/v1/projects/p/sources"
    content = b"own"
    digest = hashlib.sha256(content).hexdigest()
    assert server.http.put(f"{address}/blobs/{digest}", content=content).status_code == 204
    for path in ("../../../../server.db", "../../../../nothing", digest):
        file = {"path": "a", "sha256": path, **kind}
        answer = server.http.post(f"{address}/manifests", json={"files": [file]})
        assert answer.status_code == 400, path
        assert "only a regular file has a sha256" in answer.json()["error"]["message"]


@pytest.mark.docker
def test_an_archive_that_was_changed_on_the_server_is_not_built(run, sources):
    own = upload(sources, "p", b"mine")
    (sources / "evil").write_bytes(b"evil")
    with tarfile.open(sources / own, "w") as archive:
        archive.add(sources / "evil", "f")
    status, log = run(source=as_source(own))
    assert status is Status.FAILURE
    assert "is not what was uploaded" in log
    assert "evil" not in log


@pytest.mark.docker
def test_a_log_is_stored_in_no_upload(docker_engine, busybox, tmp_path, sources):
    build = ServerBuild(docker_engine, tmp_path, {"steps": [{"name": busybox}]})
    (tmp_path / "log.txt").write_text("log")
    wanted = decode_message(Build, {"logsBucket": f"gs://{BUCKET}/q/archives"}).value
    program = build.program(uploads=str(sources))
    stored = program.store_log(build.stored, replace(wanted, id="b"), str(tmp_path / "log.txt"))
    assert "sources that were uploaded" in stored.warnings[0].text
    assert list(sources.iterdir()) == []


@pytest.mark.parametrize("kind", ["storageSource", "storageSourceManifest"])
@pytest.mark.parametrize("bucket", [BUCKET, f"{BUCKET}/", f"{BUCKET}/x", f"gs://{BUCKET}", ""])
def test_a_server_takes_no_build_on_an_upload_of_another_project(server, kind, bucket):
    name = f"q/archives/{'a' * 64}.tar"
    assert refused(server, **{kind: {"bucket": bucket, "object": name}})


@pytest.mark.parametrize(
    "name",
    [
        f"p/archives/../../q/archives/{'a' * 64}.tar",
        f"p/blobs/aa/{'a' * 64}",
        "p/archives/x.tar",
        f"p/lists/{'a' * 64}",
    ],
)
def test_a_server_takes_nothing_but_an_uploaded_archive_for_an_upload(server, name):
    said = refused(server, storageSource={"bucket": BUCKET, "object": name})
    assert "is not an upload of project p" in said


def test_a_forged_list_of_artifacts_gives_no_viewer_other_files(server, tmp_path):
    bucket = tmp_path / "bucket"
    (bucket / "b1").mkdir(parents=True)
    (bucket / "b1/own.txt").write_text("own")
    (bucket / "secret.txt").write_text("secret")
    (tmp_path / "outside.txt").write_text("outside")
    named = ("b1/own.txt", "secret.txt", "b1/../secret.txt", "b1/%2e%2e/secret.txt")
    urls = [f"file://{bucket}/{name}" for name in named]
    urls += [f"file://{tmp_path}/outside.txt", "gs://elsewhere/b1/own.txt"]
    manifest = bucket / "b1/artifacts-b1.json"
    manifest.write_text("".join(json.dumps({"location": url}) + "\n" for url in urls))
    folders = {"gs://bucket": f"file://{bucket}"}
    of_project = {"p": Stores(folders), "q": Stores(folders, ["bucket-q"])}
    context = replace(server.context, stores=of_project.__getitem__)
    listed = listed_files(context, "p", f"file://{manifest}")
    assert [one.name for one in listed] == ["own.txt"]
    with pytest.raises(StorageError, match="no folder of the settings holds"):
        listed_files(context, "q", f"file://{manifest}")
