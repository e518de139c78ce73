"""kill -9 while a build waits, fetches, pulls, pushes, uploads, ends or is being cancelled.

A gate in front of the bucket or registry holds the transfer at just that moment.
"""

import io
import subprocess
import tarfile
import urllib.request
import uuid

import pytest

from tests.chaos.kill_bench import Gate, KillBench, now, until
from tests.chaos.test_kill_matrix import VICTIMS, kill
from tests.fixtures_gcs import running_gcs

pytestmark = pytest.mark.docker

QUICK = {("pushing", "execute"), ("cancelling", "both"), ("finishing", "both")}
RAN = "echo ran >> /workspace/ran; echo runs: $(grep -c ran /workspace/ran)"


@pytest.fixture(scope="module")
def gcs():
    with running_gcs() as server:
        yield server


@pytest.fixture
def buckets(gcs):
    gate = Gate(gcs.url.removeprefix("http://"))
    yield gate
    gate.close()


@pytest.fixture
def bench(tmp_path, docker_engine, busybox, buckets):
    environ = {"STORAGE_EMULATOR_HOST": f"http://{buckets.address}"}
    made = KillBench(tmp_path / "data", docker_engine, busybox, environ=environ)
    yield made
    made.close()


@pytest.fixture
def registry_gate(registry):
    gate = Gate(registry.address)
    yield gate
    gate.close()


@pytest.fixture
def tagged(busybox, registry_gate):
    """A name in the registry behind the gate that the engine has an image under."""
    name = f"{registry_gate.address}/chaos:{uuid.uuid4().hex}"
    subprocess.run(["docker", "tag", busybox, name], check=True)
    yield name
    subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)


def victims(phase):
    return [
        pytest.param(
            victim, marks=[] if (phase, victim) in QUICK else [pytest.mark.chaos], id=victim
        )
        for victim in VICTIMS
    ]


def succeeded(bench, build_id, runs=1):
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", bench.account(build_id)
    assert f"runs: {runs}\n" in bench.log(build_id)
    assert bench.log(build_id).endswith("DONE\n")
    bench.check_nothing_left(build_id)
    return document


@pytest.mark.parametrize("victim", victims("fetching"))
def test_fetching(bench, gcs, buckets, victim):
    bucket = gcs.bucket(f"sources-{uuid.uuid4().hex}")
    gcs.put(bucket, "source.tgz", archive({"greeting": b"hello\n"}))
    bench.start()
    buckets.shut()
    source = {"storageSource": {"bucket": bucket, "object": "source.tgz"}}
    build_id = bench.create(f"cat greeting; {RAN}", source=source)
    assert buckets.held.wait(60)
    kill(bench, build_id, victim)
    buckets.open()
    succeeded(bench, build_id)
    log = bench.log(build_id)
    assert log.count("hello\n") == 1
    again = log.count(" before any step ran. It begins again.\n")
    assert again == (0 if victim == "server" else 1)
    assert log.count("starting build") == 1 + again


@pytest.mark.parametrize("victim", victims("pulling"))
def test_pulling(bench, tagged, registry_gate, victim):
    for command in ("push", "rmi"):
        subprocess.run(["docker", command, tagged], check=True, capture_output=True)
    bench.start()
    registry_gate.shut()
    build_id = bench.create({"name": tagged, "script": RAN})
    assert registry_gate.held.wait(60)
    bench.wait_for_event(build_id, "PullStarted")
    kill(bench, build_id, victim)
    registry_gate.open()
    succeeded(bench, build_id)


@pytest.mark.parametrize("victim", victims("pushing"))
def test_pushing(bench, tagged, registry_gate, victim):
    bench.start()
    registry_gate.shut()
    build_id = bench.create(RAN, images=[tagged])
    assert registry_gate.held.wait(60)
    kill(bench, build_id, victim)
    registry_gate.open()
    document = succeeded(bench, build_id)
    [image] = document["results"]["images"]
    repository, _, tag = tagged.partition("/")[2].partition(":")
    request = urllib.request.Request(
        f"http://{registry_gate.address}/v2/{repository}/manifests/{tag}",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert image["digest"] == answer.headers["Docker-Content-Digest"]


@pytest.mark.parametrize("victim", victims("uploading"))
def test_uploading(bench, gcs, buckets, victim):
    bucket = gcs.bucket(f"artifacts-{uuid.uuid4().hex}")
    bench.start()
    buckets.shut()
    objects = {"location": f"gs://{bucket}/out", "paths": ["made"]}
    build_id = bench.create(f"echo content > made; {RAN}", artifacts={"objects": objects})
    assert buckets.held.wait(60)
    kill(bench, build_id, victim)
    buckets.open()
    succeeded(bench, build_id)
    assert gcs.get(bucket, "out/made") == b"content\n"


@pytest.mark.parametrize("victim", victims("finishing"))
def test_finishing(bench, gcs, buckets, victim):
    bucket = gcs.bucket(f"logs-{uuid.uuid4().hex}")
    bench.start()
    buckets.shut()
    build_id = bench.create(RAN, logsBucket=f"gs://{bucket}")
    assert buckets.held.wait(60)  # it looks for the bucket while its steps run
    until(lambda: bench.notes(build_id).final(), "the note of the end")
    assert bench.status(build_id) == "WORKING"
    kill(bench, build_id, victim)
    buckets.open()
    succeeded(bench, build_id)
    bench.check_log(build_id)
    assert gcs.get(bucket, f"log-{build_id}.txt").decode() == bench.log(build_id)


@pytest.mark.parametrize("victim", victims("cancelling"))
def test_cancelling(bench, victim):
    bench.start()
    stubborn = "trap 'echo asked to end' TERM; echo waiting; while :; do sleep 0.02; done"
    build_id = bench.create(stubborn)
    bench.wait_for_log(build_id, "waiting\n")
    bench.store.builds.request_cancel("chaos", build_id, now=now())
    bench.wake()
    bench.wait_for_log(build_id, "asked to end\n")
    kill(bench, build_id, victim)
    document = bench.wait_for_end(build_id)
    assert document["status"] == "CANCELLED", bench.account(build_id)
    assert bench.log(build_id).count("CANCELLED\n") == 1
    bench.check_log(build_id)
    bench.check_nothing_left(build_id)


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
