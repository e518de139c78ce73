"""Tests on a cluster that `make kubernetes` brings up: real control plane, real kubelet."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kubernetes.sh"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
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
            pytest.fail(f"{program} {' '.join(arguments)}: {done.stderr}", pytrace=False)
        return done.stdout

    def kubectl(self, *arguments, check=True, stdin=None):
        return self.run("kubectl", *arguments, check=check, stdin=stdin)

    def apply(self, manifest):
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def find(self, kind, *arguments):
        return json.loads(self.kubectl("get", kind, *arguments, "-o", "json"))

    def until(self, true, what, seconds=60):
        """Wait until a condition is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := true()):
            if time.monotonic() > end:
                pods = self.kubectl("describe", "pods", check=False)
                pytest.fail(f"{what} not within {seconds} s\n{pods}", pytrace=False)
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


@pytest.fixture
def cluster(kubeconfig, tools):
    """A namespace of its own for each test."""
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
