"""The example deploy-kubernetes on a real API server and kubelet."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import remove_image
from tests.e2e.test_deploy_examples import BREAK, Example, statuses
from tests.e2e.test_examples import buildrunner
from tests.kubernetes.conftest import SCRIPT, relay

# Leads a port of the node's loopback to another address, until its input ends.
ON_NODE = """
import asyncio, os, sys, threading
async def pump(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
async def lead(reader, writer):
    far = await asyncio.open_connection(sys.argv[2], int(sys.argv[3]))
    await asyncio.gather(pump(reader, far[1]), pump(far[0], writer))
    writer.close()
    far[1].close()
async def main():
    server = await asyncio.start_server(lead, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
asyncio.run(main())
"""


@pytest.fixture
def pushed_to(registry):
    """The address of a registry, which the engine here and the node reach by the same name."""
    here = subprocess.check_output([SCRIPT, "address"], text=True).strip()
    if not here:
        pytest.skip("only the node that `make kubernetes` starts can be led to a registry here")
    host, port = registry.address.split(":")
    server = relay(here, (host, int(port)))
    with subprocess.Popen(
        [
            *(SCRIPT, "machine", "python3", "-c", ON_NODE),
            *(port, here, str(server.server_address[1])),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield registry.address
        process.stdin.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def example(docker_engine, cluster, pushed_to, tmp_path):
    made = buildrunner("builders", "install", "docker", "python", "gke-deploy")
    assert made.returncode == 0, made.stdout + made.stderr
    found = Example("deploy-kubernetes", tmp_path / "source", tmp_path / "data", {})
    (found.folder / "kubeconfig").write_text(Path(cluster.kubeconfig).read_text())
    yield found
    repository = f"{pushed_to}/roman"
    names = subprocess.check_output(
        ["docker", "images", "--format={{.Repository}}:{{.Tag}}", repository], text=True
    )
    for name in names.split():
        remove_image(name)


@pytest.mark.timeout(900)  # the first time it makes builder images
def test_the_app_answers_from_the_cluster_and_a_failing_version_is_rolled_back(
    cluster, example, pushed_to
):
    values = {"_REGISTRY": pushed_to, "_NAMESPACE": cluster.namespace}

    def get(path):
        service = f"/api/v1/namespaces/{cluster.namespace}/services/roman:http/proxy"
        return cluster.kubectl("get", "--raw", f"{service}/{path}").strip()

    def image():
        (container,) = cluster.find("deployment", "roman")["spec"]["template"]["spec"]["containers"]
        return container["image"]

    first = example.submit(**values)
    digest = first.build["results"]["images"][0]["digest"]
    assert image() == f"{pushed_to}/roman@{digest}"
    assert (get("version"), get("42")) == (first.build["id"], "XLII")
    pods = cluster.find("pods")["items"]
    assert len(pods) == 2
    assert all(digest in one["status"]["containerStatuses"][0]["imageID"] for one in pods)

    example.replace("service.py", *BREAK)
    wrong = example.submit(code=1, **values)
    assert statuses(wrong)["deploy"] == "SUCCESS"
    assert statuses(wrong)["check"] == statuses(wrong)["roll-back"] == "FAILURE"
    assert image() == f"{pushed_to}/roman@{digest}"
    assert get("version") == first.build["id"]

    example.replace("service.py", *reversed(BREAK))
    example.replace(
        "service.py",
        'if __name__ == "__main__":',
        "if VERSION != 'development':\n    raise SystemExit(1)\n\nif __name__ == '__main__':",
    )
    crashing = example.submit(code=1, _TIMEOUT="10s", **values)
    assert statuses(crashing)["deploy"] == statuses(crashing)["roll-back"] == "FAILURE"
    assert image() == f"{pushed_to}/roman@{digest}"
    cluster.kubectl("rollout", "status", "deployment/roman", "--timeout=60s")
    assert get("version") == first.build["id"]

    recorded = buildrunner(
        *("deployments", "list", "--format=json"), XDG_DATA_HOME=str(example.data)
    )
    history = [one["images"] for one in json.loads(recorded.stdout)]
    assert history[0] == history[-1] == [f"{pushed_to}/roman@{digest}"]
