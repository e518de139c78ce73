"""Buckets from the shell: sources, artifacts and logs, on a real engine and a real server."""

import gzip
import io
import json
import re
import tarfile
import threading

import pytest

from tests.e2e.submit_bench import Bench, interrupt, read_until
from tests.fixtures_gcs import Fault, faulty, running_gcs

pytestmark = pytest.mark.docker

SHOW = "steps: [{name: IMAGE, script: 'cat hello.txt; stat -c %u:%a hello.txt'}]\n"


@pytest.fixture(scope="module")
def server():
    with running_gcs() as running:
        for name in ("sources", "artifacts", "logs-bucket"):
            running.bucket(name)
        yield running


@pytest.fixture
def bench(tmp_path, docker_engine, busybox, server):
    folder = tmp_path / "source"
    folder.mkdir()
    made = Bench(folder, tmp_path / "data", docker_engine, busybox)
    made.environ["STORAGE_EMULATOR_HOST"] = server.url
    made.environ.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
    return made


@pytest.fixture
def proxy(bench, server):
    with faulty(server.url) as running:
        bench.environ["STORAGE_EMULATOR_HOST"] = running.url
        yield running


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o640
            member.uid = 1000
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def build_of(bench, done):
    return bench.builds("describe", done.build_id)


def test_an_object_is_built_with_the_config_of_this_folder(bench, server):
    generation = server.put("sources", "app/source.tgz", archive({"hello.txt": b"hello\n"}))
    bench.write("cloudbuild.yaml", SHOW)
    bench.write("hello.txt", "not this one\n")
    done = bench.run("submit", "gs://sources/app/source.tgz")
    assert done.code == 0, done.err
    url = "gs://sources/app/source.tgz"
    assert re.search(
        rf"FETCHSOURCE\nFetching storage object: {url}\nCopying {url}#{generation}\.\.\.\n"
        r"/ \[1 files\]\[ +[0-9.]+ B/ +[0-9.]+ B\]\n"
        r"Operation completed over 1 objects/[0-9.]+ B\.\nBUILD\n",
        done.out,
    )
    assert "\nhello\n0:640\nPUSH\nDONE\n" in done.out
    build = build_of(bench, done)
    assert build["source"] == {"storageSource": {"bucket": "sources", "object": "app/source.tgz"}}
    assert build["sourceProvenance"]["resolvedStorageSource"] == {
        "bucket": "sources",
        "object": "app/source.tgz",
        "generation": str(generation),
    }
    assert bench.left_behind(done.build_id) == []


def test_a_source_in_the_config_is_fetched_with_no_source(bench, server):
    generation = server.put("sources", "conf.tgz", archive({"hello.txt": b"pinned\n"}))
    bench.write(
        "cloudbuild.yaml",
        "source: {storageSource: {bucket: sources, object: conf.tgz, generation: "
        f"'{generation}'}}}}\noptions: {{sourceProvenanceHash: [SHA256]}}\n{SHOW}",
    )
    done = bench.run("submit", "--no-source")
    assert done.code == 0, done.err
    assert "\npinned\n" in done.out
    hashes = build_of(bench, done)["sourceProvenance"]["fileHashes"]
    assert list(hashes) == [f"gs://sources/conf.tgz#{generation}"]
    refused = bench.run("submit", ".")
    assert refused.code == 2
    assert "--no-source" in refused.err


def test_a_manifest_is_fetched(bench, server):
    server.put("sources", "blob", b"from a manifest\n")
    server.put("sources", "m.json", b'{"hello.txt": {"sourceUrl": "gs://sources/blob"}}')
    bench.write("cloudbuild.yaml", SHOW)
    done = bench.run("submit", "gs://sources/m.json")
    assert done.code == 0, done.err
    assert "\nfrom a manifest\n0:555\n" in done.out
    assert "resolvedStorageSourceManifest" in build_of(bench, done)["sourceProvenance"]


def test_an_archive_of_this_machine_is_built(bench):
    bench.write("cloudbuild.yaml", SHOW)
    (bench.folder / "s.tgz").write_bytes(archive({"hello.txt": b"from an archive\n"}))
    done = bench.run("submit", "s.tgz")
    assert done.code == 0, done.err
    assert "\nfrom an archive\n0:640\n" in done.out


def test_a_staged_folder_is_uploaded_and_built_from_there(bench, server):
    bench.write("cloudbuild.yaml", SHOW)
    bench.write("hello.txt", "staged\n")
    bench.write(".gcloudignore", "left-out\n")
    bench.write("left-out", "x")
    (bench.folder / "tool").symlink_to("/bin/sh")  # as environments of Python have them
    done = bench.run("submit", ".", "--gcs-source-staging-dir", "gs://sources/stage")
    assert done.code == 0, done.err
    assert "\nstaged\n" in done.out
    found = re.search(r"Uploading tarball of \[\.\] to \[gs://sources/(stage/.*\.tgz)\]", done.err)
    assert re.fullmatch(r"stage/[0-9]+\.[0-9]{6}-[0-9a-f]{32}\.tgz", found[1])
    resolved = build_of(bench, done)["sourceProvenance"]["resolvedStorageSource"]
    assert resolved["object"] == found[1]
    assert int(resolved["generation"]) > 0
    content = gzip.decompress(server.get("sources", found[1]))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert sorted(tar.getnames()) == [".gcloudignore", "cloudbuild.yaml", "hello.txt", "tool"]
        assert {(member.uid, member.uname) for member in tar} == {(0, "root")}


ARTIFACTS = """
steps: [{name: IMAGE, script: 'mkdir -p out/x; echo a > out/a.txt; echo b > out/x/b.xml'}]
artifacts: {objects: {location: 'gs://artifacts/$BUILD_ID', paths: ['out/*.txt', 'out/**/*.xml']}}
logsBucket: gs://logs-bucket/some/folder
"""


def test_artifacts_and_the_log_are_uploaded(bench, server):
    bench.write("cloudbuild.yaml", ARTIFACTS)
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    folder = f"gs://artifacts/{done.build_id}/"
    manifest = f"artifacts-{done.build_id}.json"
    assert done.out.endswith(
        "PUSH\n"
        "Artifacts will be uploaded to gs://artifacts using gsutil cp\n"
        "out/*.txt: Uploading path....\n"
        "out/*.txt: 1 matching files uploaded\n"
        "out/**/*.xml: Uploading path....\n"
        "out/**/*.xml: 1 matching files uploaded\n"
        f"2 total artifacts uploaded to {folder}\n"
        f"Uploading manifest {manifest}\n"
        f"Artifact manifest located at {folder}{manifest}\n"
        "DONE\n"
    )
    assert server.get("artifacts", f"{done.build_id}/a.txt") == b"a\n"
    assert server.get("artifacts", f"{done.build_id}/x/b.xml") == b"b\n"
    lines = server.get("artifacts", f"{done.build_id}/{manifest}").splitlines()
    assert [json.loads(line)["location"].partition("#")[0] for line in lines] == [
        f"{folder}a.txt",
        f"{folder}x/b.xml",
    ]
    build = build_of(bench, done)
    assert build["results"]["artifactManifest"] == f"{folder}{manifest}"
    assert build["results"]["numArtifacts"] == "2"
    assert build["results"]["artifactTiming"] == build["artifacts"]["objects"]["timing"]
    assert "PUSH" in build["timing"]
    log = server.get("logs-bucket", f"some/folder/log-{done.build_id}.txt")
    assert log.decode() == done.out
    assert bench.left_behind(done.build_id) == []


def test_nothing_is_uploaded_with_no_push(bench, server):
    bench.write("cloudbuild.yaml", ARTIFACTS)
    done = bench.run("submit", ".", "--no-push")
    assert done.code == 0, done.err
    assert [name for name in server.names("artifacts") if done.build_id in name] == []


def test_artifacts_that_match_nothing_fail_the_build(bench, server):
    bench.write("cloudbuild.yaml", ARTIFACTS.replace("out/*.txt", "out/*.jar"))
    done = bench.run("submit", ".")
    assert done.code == 1
    where = f"gs://artifacts/{done.build_id}/"
    error = f"could not upload out/*.jar to {where}; err = it matches no file of the workspace"
    assert done.out.endswith(f"ERROR\nERROR: {error}\n")
    build = build_of(bench, done)
    assert build["failureInfo"] == {"type": "PUSH_FAILED", "detail": error}
    assert build["steps"][0]["status"] == "SUCCESS"
    log = server.get("logs-bucket", f"some/folder/log-{done.build_id}.txt")
    assert log.decode() == done.out
    assert bench.left_behind(done.build_id) == []


def test_a_folder_takes_the_place_of_a_bucket(bench, tmp_path):
    bench.environ["STORAGE_EMULATOR_HOST"] = "http://127.0.0.1:1"
    config = tmp_path / "data" / "config" / "buildrunner"
    config.mkdir(parents=True)
    (config / "config.toml").write_text(
        f'[storage.folders]\n"gs://artifacts" = "file://{tmp_path}/a"\n'
    )
    bench.write("cloudbuild.yaml", ARTIFACTS)
    done = bench.run("submit", ".", "--storage", f"gs://logs-bucket=file://{tmp_path}/l")
    assert done.code == 0, done.err
    assert (tmp_path / "a" / done.build_id / "x" / "b.xml").read_text() == "b\n"
    log = tmp_path / "l" / "some" / "folder" / f"log-{done.build_id}.txt"
    assert log.read_text() == done.out
    bench.write(".buildrunner.toml", '[storage.folders]\n"gs://artifacts" = "file:///etc"\n')
    refused = bench.run("submit", ".")
    assert refused.code == 2
    assert "is not for a project's file" in refused.err


def test_files_go_to_a_folder_for_people_without_a_bucket(bench, tmp_path):
    bench.environ["STORAGE_EMULATOR_HOST"] = "http://127.0.0.1:1"
    folder = tmp_path / "out"
    config = ARTIFACTS.replace("gs://artifacts/$BUILD_ID", f"file://{folder}/$BUILD_ID")
    bench.write("cloudbuild.yaml", config.replace("logsBucket: gs://logs-bucket/some/folder", ""))
    done = bench.run("submit", ".")
    assert done.code == 0, done.out + done.err
    assert (folder / done.build_id / "x" / "b.xml").read_text() == "b\n"
    manifest = folder / done.build_id / f"artifacts-{done.build_id}.json"
    assert len(manifest.read_text().splitlines()) == 2
    assert build_of(bench, done)["results"]["artifactManifest"] == f"file://{manifest}"
    refused = bench.run("submit", ".", "--no-docker-socket")
    assert refused.code == 1
    assert f"builds may not write to the folder file://{folder}" in refused.out
    assert build_of(bench, refused)["failureInfo"]["type"] == "PUSH_NOT_AUTHORIZED"
    allowed = f"file://{folder}=file://{folder}"
    assert bench.run("submit", ".", "--no-docker-socket", "--storage", allowed).code == 0


def test_no_log_is_stored_where_none_is_kept(bench, server):
    bench.write("cloudbuild.yaml", ARTIFACTS + "options: {logging: NONE}\n")
    done = bench.run("submit", ".")
    assert done.code == 0, done.err
    assert [name for name in server.names("logs-bucket") if done.build_id in name] == []


def test_a_bucket_that_cannot_be_reached_is_said_once_behind_the_end(bench):
    bench.environ["STORAGE_EMULATOR_HOST"] = "http://127.0.0.1:1"
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: ['true']}]\n")
    done = bench.run("submit", ".", "--gcs-log-dir", "gs://logs")
    assert done.code == 0
    assert done.out.endswith("DONE\n")
    said = [line for line in done.err.splitlines() if "gs://logs" in line]
    assert said == [
        "warning: the log is not stored in its bucket: gs://logs: no connection to 127.0.0.1:1: "
        "Connection refused"
    ]


def test_a_log_that_cannot_be_stored_is_a_warning(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: ['true']}]\n")
    done = bench.run("submit", ".", "--gcs-log-dir", "gs://no-such-bucket/x")
    assert done.code == 0
    assert (
        'warning: the log is not stored in its bucket: bucket "gs://no-such-bucket" does not exist'
        in done.err
    )
    build = build_of(bench, done)
    assert build["status"] == "SUCCESS"
    assert "failureInfo" not in build  # it is for builds that fail
    assert [warning["priority"] for warning in build["warnings"]] == ["WARNING"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://sources/nothing.tgz", "there is no object gs://sources/nothing.tgz"),
        ("gs://no-such-bucket/a.tgz", 'bucket "gs://no-such-bucket" does not exist'),
        ("gs://sources/gone.tgz#12", "there is no generation 12 of gs://sources/gone.tgz"),
        ("gs://sources/text.tgz", "the source archive is damaged"),
        ("gs://sources/escape.tgz", "outside the workspace"),
    ],
)
def test_a_source_that_cannot_be_had_fails_the_build(bench, server, url, message):
    server.put("sources", "gone.tgz", archive({}))
    server.put("sources", "text.tgz", b"this is no archive at all")
    server.put("sources", "escape.tgz", archive({"../../etc/cron.d/x": b"x"}))
    bench.write("cloudbuild.yaml", SHOW)
    done = bench.run("submit", url)
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    (error,) = [line for line in done.out.splitlines() if line.startswith("ERROR: ")]
    assert message in error
    build = build_of(bench, done)
    assert build["status"] == "FAILURE"
    assert build["failureInfo"]["type"] == "FETCH_SOURCE_FAILED"
    assert build["steps"][0]["status"] == "QUEUED"
    assert bench.left_behind(done.build_id) == []


def test_troubles_on_the_way_end_in_a_success(bench, server, proxy):
    server.put("sources", "rough.tgz", archive({"hello.txt": b"rough\n", "x": b"x" * 400_000}))
    proxy.faults = [
        Fault("/o/rough.tgz", status=500),
        Fault("/download/", cut_after=100),
        Fault("/download/", status=429),
    ]
    bench.write("cloudbuild.yaml", SHOW)
    done = bench.run("submit", "gs://sources/rough.tgz")
    assert done.code == 0, done.err
    assert done.out.count("Trying again: ") == 3
    assert "\nrough\n" in done.out


def test_ctrl_c_ends_a_fetch_that_hangs(bench, server, proxy):
    server.put("sources", "held.tgz", archive({"hello.txt": b"x"}))
    hold = threading.Event()
    proxy.faults = [Fault("/download/", hold=hold)]
    bench.write("cloudbuild.yaml", SHOW)
    process = bench.start("submit", "gs://sources/held.tgz")
    seen = read_until(process, "Copying gs://")
    done = interrupt(process)
    assert not hold.is_set()
    hold.set()
    assert done.code == 130
    build_id = re.search(r'starting build "([^"]+)"', seen)[1]
    assert bench.left_behind(build_id) == []


def test_flags_are_refused_before_anything_runs(bench):
    bench.write("cloudbuild.yaml", SHOW)
    for arguments, message in (
        (["gs://sources/"], "names no object"),
        ([".", "--gcs-source-staging-dir", "folder"], "is not the address of an object"),
        ([".", "--storage", "gs://b=/x"], "is not a place for gs://b"),
    ):
        done = bench.run("submit", *arguments)
        assert done.code == 2, done.err
        assert message in done.err
        assert done.out == ""
