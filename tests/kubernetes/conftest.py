"""Tests on a cluster that `make kubernetes` brings up: real control plane, real kubelet."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from buildrunner.kubernetes.manifest import LABEL_POOL, LABEL_SPARE
from tests.conftest import remove_image

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "buildrunner"
SCRIPT = Path(__file__).parents[2] / "scripts" / "kubernetes.sh"


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.kubernetes)


def image(name):
    """One of our images as the cluster pulls it."""
    registry = os.environ.get("IMAGE_REGISTRY", "")
    return f"{registry}/buildrunner/{name}:latest".removeprefix("/")


class Cluster:
    """A namespace of the cluster, by kubectl.

    Args:
        kubeconfig: of an administrator.
        tools: folder with kubectl and helm.
        namespace: deleted with all that is in it.
    """

    def __init__(self, kubeconfig, tools, namespace):
        self.kubeconfig = kubeconfig
        self.tools = Path(tools)
        self.namespace = namespace

    def run(self, program, *arguments, check=True, stdin=None):
        done = subprocess.run(
            [
                self.tools / program,
                f"--kubeconfig={self.kubeconfig}",
                f"--namespace={self.namespace}",
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            words = f"{program} {' '.join(arguments)}"
            pytest.fail(f"{words}: {done.stderr}\n{self.state()}", pytrace=False)
        return done.stdout

    def kubectl(self, *arguments, check=True, stdin=None):
        return self.run("kubectl", *arguments, check=check, stdin=stdin)

    def state(self):
        """What the Pods do and say, for the message of a failure."""
        pods = self.kubectl("get", "pods", "-o", "name", check=False).split()
        logs = [
            self.kubectl("logs", pod, "--all-containers", "--tail=20", check=False) for pod in pods
        ]
        return "\n".join([self.kubectl("describe", "pods", check=False), *logs])

    def apply(self, manifest):
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def find(self, kind, *arguments):
        return json.loads(self.kubectl("get", kind, *arguments, "-o", "json"))

    def until(self, true, what, seconds=60):
        """Wait until a condition is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := true()):
            if time.monotonic() > end:
                pytest.fail(f"{what}: not within {seconds} s\n{self.state()}", pytrace=False)
            time.sleep(0.1)
        return value


@pytest.fixture(scope="session")
def kubeconfig():
    """The cluster's, which `make kubernetes` names."""
    path = os.environ.get("BUILDRUNNER_TEST_KUBECONFIG", "")
    if not path:
        pytest.fail("no cluster: run these tests by `make kubernetes`", pytrace=False)
    return path


@pytest.fixture(scope="session")
def tools():
    """Folder with kubectl and helm."""
    return subprocess.check_output([SCRIPT, "tools"], text=True).strip()


def relay(address, target, wait=lambda: None):
    """Return a running server that leads connections at an address to a target.

    Args:
        address: of this machine.
        target: host and port, or the path of a socket.
        wait: called for each connection before it is led on; raises ConnectionError to drop it.
    """

    def reach():
        if not isinstance(target, str):
            return socket.create_connection(target)
        far = socket.socket(socket.AF_UNIX)
        far.connect(target)
        return far

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with suppress(ConnectionError):  # the target may be gone
                wait()
                with reach() as far:
                    back = threading.Thread(target=copy, args=(far, self.request), daemon=True)
                    back.start()
                    copy(self.request, far)
                    back.join()

    server = socketserver.ThreadingTCPServer((address, 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def copy(source, target):
    with suppress(OSError):
        while piece := source.recv(1 << 18):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="session")
def here():
    """The address of this machine as Pods reach it; empty for a cluster that was there before."""
    return subprocess.check_output([SCRIPT, "address"], text=True).strip()


@pytest.fixture(scope="session")
def own_cluster(here):
    """Skip tests that stop parts of the cluster, or that its Pods reach this machine for."""
    if not here:
        pytest.skip("the tests did not start this cluster: its nodes are not theirs to stop")


def on_node(*command, check=True):
    """Run a command on the node of a cluster that the tests started; return its output."""
    return subprocess.run(
        [SCRIPT, "machine", *command], check=check, stdout=subprocess.PIPE, text=True
    ).stdout


@pytest.fixture(scope="session")
def mirror(registry, busybox, tmp_path_factory, here):
    """A registry with the images of steps, as a mirror of Docker Hub; empty if that is reached."""
    if not here:
        yield ""
        return
    context = tmp_path_factory.mktemp("docker")
    shutil.copy(shutil.which("docker"), context)
    # A static program has no libraries: ldd then fails.
    needs = subprocess.run(["ldd", context / "docker"], capture_output=True, text=True, check=False)
    for library in set(re.findall(r"/\S+", needs.stdout)):
        (context / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, context / library[1:])
    (context / "Dockerfile").write_text(f"FROM {busybox}\nCOPY . /\nENV PATH=/:/bin\n")
    made = f"{registry.address}/tests/docker:latest"
    plain = f"{registry.address}/library/busybox:latest"
    subprocess.check_call(["docker", "build", "-q", "-t", made, context])
    subprocess.check_call(["docker", "tag", busybox, plain])
    for name in (made, plain):
        subprocess.check_call(["docker", "push", "-q", name])
        remove_image(name)
    host, port = registry.address.split(":")
    server = relay(here, (host, int(port)))
    yield f"http://{here}:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def namespace(kubeconfig, tools):
    """A namespace of the cluster, until the end."""
    found = Cluster(kubeconfig, tools, f"test-{uuid.uuid4().hex[:8]}")
    found.kubectl("create", "namespace", found.namespace)
    try:
        # Pods are refused until the namespace has its account.
        found.until(
            lambda: found.kubectl("get", "serviceaccount", "default", check=False), "an account"
        )
        yield found
    finally:
        found.kubectl("delete", "namespace", found.namespace, "--grace-period=1", "--wait=false")


@pytest.fixture(scope="module")
def cluster(kubeconfig, tools):
    """A namespace for the tests of a module: a server takes half a minute to be installed."""
    with namespace(kubeconfig, tools) as found:
        yield found


@contextmanager
def volume_class(cluster, servers=1):
    """The storage class of the servers' volumes: that of the cluster, else folders of the node."""
    if cluster.find("storageclasses")["items"]:
        yield ""
        return
    storage_class = f"{cluster.namespace}-{uuid.uuid4().hex[:8]}"
    names = [f"{storage_class}-{number}" for number in range(servers)]
    on_a_node = {"key": "kubernetes.io/hostname", "operator": "Exists"}
    for name in names:
        on_node("mkdir", f"/var/tmp/{name}")
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": storage_class,
                    "local": {"path": f"/var/tmp/{name}"},
                    "nodeAffinity": {
                        "required": {"nodeSelectorTerms": [{"matchExpressions": [on_a_node]}]}
                    },
                },
            }
        )
    yield storage_class
    cluster.kubectl("delete", "persistentvolume", *names, "--wait=false")


@pytest.fixture
def volume(cluster):
    """See `volume_class`."""
    with volume_class(cluster) as name:
        yield name


def values(volume, **others):
    repository, tag = image("server").rsplit(":", 1)
    return {
        "image": {"repository": repository, "tag": tag},
        "persistence": {"size": "1Gi", "storageClass": volume, "whenDeleted": "Delete"},
        **others,
    }


def install(cluster, settings):
    cluster.run(
        "helm",
        *("upgrade", "--install", "ci", str(CHART), "--wait", "--timeout=120s", "--values=-"),
        stdin=yaml.safe_dump(settings),
    )


def pool_values(cluster, mirror, **others):
    """The settings of a pool whose Pods fit on a small node."""
    address = cluster.find("service", "ci-buildrunner")["spec"]["clusterIP"]
    return {
        "server": f"http://{address}",  # clusters that tests make may have no DNS
        "mirror": mirror,
        "cpu": "1",
        "cpu_request_percent": 10,
        "memory": "768Mi",
        "max_builds": 2,
        **others,
    }


def pod_images():
    """The value `workers` of the chart, with the images of the Pods of builds."""
    return {
        name: dict(zip(("repository", "tag"), image(program).rsplit(":", 1), strict=True))
        for name, program in (("image", "worker"), ("engine", "engine"))
    }


@contextmanager
def forwarded(cluster, target="service/ci-buildrunner", port=80):
    """The URL of the server, by a port of this machine."""
    command = ["kubectl", f"--kubeconfig={cluster.kubeconfig}", f"--namespace={cluster.namespace}"]
    process = subprocess.Popen(
        [cluster.tools / command[0], *command[1:], "port-forward", target, f":{port}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert port is not None
        yield f"http://127.0.0.1:{port[1]}"
    finally:
        process.kill()
        process.communicate()


def token(cluster):
    """The administrator's token: one of the servers showed it at its first start."""
    said = cluster.kubectl("logs", "--selector=app.kubernetes.io/name=buildrunner", "--tail=-1")
    found = re.search(r"brt_\S+", said)
    assert found is not None
    return found[0]


def ready_spare(cluster, pool):
    """The spare Pod of a pool whose worker waits for a build, once there is one."""

    def ready():
        for pod in cluster.find("pods", "--selector", f"{LABEL_POOL}={pool}")["items"]:
            states = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
            is_idle = "deletionTimestamp" not in pod["metadata"]
            if LABEL_SPARE in pod["metadata"]["labels"] and states.get("Ready") == "True":
                log = cluster.kubectl("logs", pod["metadata"]["name"], "-c", "worker", check=False)
                if is_idle and "works for" in log and "begins" not in log:
                    return pod
        return None

    return cluster.until(ready, "a spare Pod is ready", 120)


def bare_pod_s(cluster):
    """Start a Pod that does nothing; return the seconds until it is ready."""
    name = f"pause-{uuid.uuid4().hex[:8]}"
    container = {"name": "pause", "image": "buildrunner/pause:latest", "imagePullPolicy": "Never"}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    began = time.monotonic()
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    cluster.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
    took = time.monotonic() - began
    cluster.kubectl("delete", "pod", name, "--wait=false")
    return took
