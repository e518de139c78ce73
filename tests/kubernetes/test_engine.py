"""The engine in the Pod of a build does what an engine of its own is for."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from buildrunner.kubernetes.manifest import ENGINE, SOCKET, PodBuild, job_manifest, job_name
from buildrunner.kubernetes.pool import ISOLATIONS, Pool
from tests.kubernetes.conftest import image

# A small image of the container's own shell, then what steps do with an engine.
STEPS = f"""\
set -eu
export DOCKER_HOST=unix://{SOCKET}
for i in $(seq 300); do docker version > /dev/null 2>&1 && break; sleep 0.1; done
programs="/bin/sh /bin/cat /bin/echo"
tar -ch $programs $(ldd $programs | grep -o '/[^ ]*' | grep -v : | sort -u) 2> /dev/null | docker import - shell > /dev/null
echo from-the-worker > /workspace/file
docker run --rm -v /workspace:/workspace shell cat /workspace/file
docker run --rm -v /workspace:/workspace shell sh -c 'echo from-a-step > /workspace/answer'
cat /workspace/answer
docker network create cloudbuild > /dev/null
docker run --rm --network cloudbuild shell echo on-the-network
mkdir /workspace/context
printf 'FROM shell\\nRUN echo built > /result\\nCMD ["cat", "/result"]\\n' > /workspace/context/Dockerfile
docker build -q -t made /workspace/context > /dev/null
docker run --rm made
docker run --rm -v /run/buildrunner/docker.sock:/var/run/docker.sock shell sh -c 'test -S /var/run/docker.sock && echo has-the-socket'
"""  # noqa: E501


WORDS = ["from-the-worker", "from-a-step", "on-the-network", "built", "has-the-socket"]


def job_that_runs(script, build_id, cluster, **settings):
    """The very Job of a build, whose worker is a shell with the docker command."""
    pool = Pool(
        name="ci",
        server="http://nowhere",
        namespace=cluster.namespace,
        worker_image=image("engine"),
        engine_image=image("engine"),
        cpu="1",
        cpu_request_percent=10,
        memory="512Mi",
        **settings,
    )
    build = PodBuild(id=build_id, timeout=timedelta(minutes=5))
    manifest = job_manifest(build, pool)
    (worker,) = manifest["spec"]["template"]["spec"]["containers"]
    worker["command"] = ["sh", "-c", script]
    del worker["args"]
    return manifest


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_steps_use_the_engine_as_on_a_machine(cluster, isolation):
    build_id = str(uuid.uuid4())
    cluster.apply(job_that_runs(STEPS, build_id, cluster, isolation=isolation))

    def ended():
        status = cluster.find("job", job_name(build_id))["status"]
        return status.get("succeeded") or status.get("failed")

    cluster.until(ended, "the Job ended", 120)
    log = cluster.kubectl("logs", f"job/{job_name(build_id)}", "-c", "worker")
    engine = cluster.kubectl("logs", f"job/{job_name(build_id)}", "-c", ENGINE)
    assert log.splitlines() == WORDS, engine
    assert cluster.find("job", job_name(build_id))["status"]["succeeded"] == 1
