"""A node that is lost while a build runs on it, and that comes back."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from functools import partial

import pytest

from tests.conftest import drain
from tests.e2e.test_serve import serve  # noqa: F401  (a fixture)
from tests.kubernetes.conftest import image, on_node, relay
from tests.kubernetes.test_pools import (
    client,
    found,
    of_pool,
    phases,
    pod_of,
    pods,
    running,
    works,
)
from tests.kubernetes.test_workers import ended, submitted

pytestmark = [pytest.mark.usefixtures("own_cluster"), pytest.mark.alone]


class Held:
    """A way to a server that can be held: what asks the server then gets no answer.

    Args:
        here: the address of the way.
        target: host and port of the server.
        drops: whether connections that were held are dropped, and not led on.

    Attributes:
        port: of the server.
        url: the address of the way to it.
        requested: set at each connection.
        open: set unless the way is held.
    """

    def __init__(self, here, target, *, drops):
        self.port = target[1]
        self.requested, self.open = threading.Event(), threading.Event()
        self.open.set()
        self._drops = drops
        self.relay = relay(here, target, self._wait)
        self.url = f"http://{here}:{self.relay.server_address[1]}"

    def _wait(self):
        self.requested.set()
        if not self.open.is_set():
            self.open.wait()
            if self._drops:
                raise ConnectionAbortedError

    def close(self):
        self.open.set()
        self.relay.shutdown()
        self.relay.server_close()


@pytest.fixture
def held(here):
    """The way of Pods to the server."""
    with socket.create_server((here, 0)) as free:
        port = free.getsockname()[1]
    found = Held(here, (here, port), drops=True)
    yield found
    found.close()


@pytest.fixture
def registry_held(here, mirror):
    """The way of the engines of the pool `slow` to the images of steps."""
    host, port = mirror.removeprefix("http://").split(":")
    found = Held(here, (host, int(port)), drops=False)
    yield found
    found.close()


@pytest.fixture
def server(serve, cluster, here, held, mirror, registry_held, kubeconfig, tmp_path):  # noqa: F811  (the fixture)
    """A client of a server outside of the cluster, which no lost node stops."""
    port = held.port
    folder = tmp_path / "config" / "buildrunner"
    folder.mkdir(parents=True)
    pools = {"linux": mirror, "slow": registry_held.url}
    (folder / "config.toml").write_text(
        "".join(
            f"""\
[pools.{name}]
server = "{held.url}"
namespace = "{cluster.namespace}"
worker_image = "{image("worker")}"
engine_image = "{image("engine")}"
mirror = "{images}"
cpu = "1"
cpu_request_percent = 10
memory = "768Mi"
"""
            for name, images in pools.items()
        )
    )
    serving = serve(
        f"--host={here}",
        f"--port={port}",
        "--sandbox=none",
        env={"XDG_CONFIG_HOME": str(folder.parent), "KUBECONFIG": str(kubeconfig)},
    )
    assert serving.url, serving.stop()
    drained = threading.Thread(target=drain, args=(serving.process.stderr,))
    drained.start()
    with client(f"http://{here}:{port}", serving.token) as http:
        yield http
    serving.process.kill()
    drained.join()


def is_ready(cluster):
    (node,) = cluster.find("nodes")["items"]
    return any(
        one["type"] == "Ready" and one["status"] == "True" for one in node["status"]["conditions"]
    )


# Sends a signal to all processes of a Pod. A process may have started another one meanwhile.
SIGNAL = """
for pass in 1 2 3; do
  cat $(find /sys/fs/cgroup -path "*pod$1*" -name cgroup.procs) | sort -u | xargs -r kill "$2" || :
done
"""


class Node:
    """The node of the cluster.

    Args:
        cluster: with the Pod of a build.
        pod: the name of the Pod.
    """

    def __init__(self, cluster, pod):
        self.cluster = cluster
        stored = cluster.find("pod", pod)
        self.name = stored["spec"]["nodeName"]
        self.pod = stored["metadata"]["uid"]

    @contextmanager
    def frozen(self):
        """Stop its kubelet and all processes of the Pod, as when the machine hangs."""
        on_node("pkill", "-STOP", "-f", "kubernetes kubelet")
        try:
            on_node("bash", "-euc", SIGNAL, "bash", self.pod, "-STOP")
            yield
        finally:
            on_node("bash", "-euc", SIGNAL, "bash", self.pod, "-CONT", check=False)
            on_node("pkill", "-CONT", "-f", "kubernetes kubelet")
            self.cluster.until(lambda: is_ready(self.cluster), "the node is ready", 60)


def kept(server, build_id):
    """The document of a build, and its log."""
    own = f"/buildrunner/v1/projects/shop/builds/{build_id}"
    return found(server, build_id), server.get(f"{own}/log").text


def others(cluster, build_id, pod):
    return [one for one in pods(cluster, build_id) if one["metadata"]["name"] != pod]


def test_a10_a_node_that_was_lost_comes_back_and_its_pod_writes_nothing(cluster, server):
    speaks = "i=0; while true; do echo tick $((i += 1)); sleep 0.1; done"
    build_id, pod = running(cluster, server, speaks)
    cluster.until(lambda: "tick 9\n" in kept(server, build_id)[1], "the step speaks", 30)
    node = Node(cluster, pod)
    with node.frozen():
        build, _ = ended(cluster, server, build_id, 120)
        assert build["status"] == "INTERNAL_ERROR"
        detail = build["statusDetail"]
        assert "its node is lost" in detail or "is not ready" in detail
        assert node.name in detail
        before = kept(server, build_id)
    # Its Job stays for a while if the Pod ends before the server deletes it.
    cluster.until(
        lambda: not {"Pending", "Running"} & set(phases(cluster, build_id)), "its end", 60
    )
    assert kept(server, build_id) == before


def test_a10_a_build_whose_node_was_lost_before_a_step_began_runs_in_another_pod(
    cluster, server, held
):
    held.open.clear()
    build_id = submitted(server, of_pool({"name": "busybox", "args": ["true"]}))
    assert held.requested.wait(60), cluster.state()  # its worker asks for the build, and gets none
    pod = pod_of(cluster, build_id)
    with Node(cluster, pod).frozen():
        held.open.set()
        cluster.until(partial(others, cluster, build_id, pod), "another Pod", 120)
    build, log = ended(cluster, server, build_id)
    assert build["status"] == "SUCCESS", log


def test_a9_a_build_whose_pod_is_deleted_in_its_first_pull_runs_in_another(
    cluster, server, registry_held
):
    registry_held.open.clear()
    step = {"name": "busybox", "args": ["true"]}
    build_id = submitted(server, of_pool(step, pool="slow"))
    works(cluster, server, build_id)
    pull = found(server, build_id)["steps"][0]["pullTiming"]
    assert pull
    assert "endTime" not in pull
    pod = pod_of(cluster, build_id)
    cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
    cluster.until(partial(others, cluster, build_id, pod), "another Pod", 120)
    registry_held.open.set()
    build, log = ended(cluster, server, build_id, 180)
    assert build["status"] == "SUCCESS", log
