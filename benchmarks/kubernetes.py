"""Builds on Kubernetes: how soon the Pod of a build begins its first step, and what steps cost.

The server runs beside the cluster, which `scripts/kubernetes.sh bench` brings up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from benchmarks.machine import IMAGE, NotPossible, docker, work_folder
from benchmarks.measure import Result, compare
from benchmarks.push import registry
from benchmarks.server import Server
from benchmarks.steps import no_op
from tests.kubernetes.conftest import (
    SCRIPT,
    Cluster,
    bare_pod_s,
    image,
    namespace,
    ready_spare,
    relay,
)

_SPARE_MS = 500.0
# A spare Pod claims builds while its process of the next build still loads its modules.
_LOADED_S = 4.0
_STEPS = 20
_POOL = """
[pools.{name}]
server = "{server}"
namespace = "{namespace}"
worker_image = "{worker}"
engine_image = "{engine}"
mirror = "{mirror}"
cpu = "{cpus}"
cpu_request_percent = 10
memory = "1Gi"
spare = {spare}
"""


def measure(rounds: int) -> list[Result]:
    kubeconfig = os.environ.get("BUILDRUNNER_TEST_KUBECONFIG", "")
    if not kubeconfig:
        raise NotPossible("there is no cluster; scripts/kubernetes.sh bench brings one up")
    here, tools = (
        subprocess.check_output([SCRIPT, verb], text=True).strip() for verb in ("address", "tools")
    )
    if not here:
        raise NotPossible("the Pods of this cluster do not reach a server on this machine")
    with (
        work_folder() as folder,
        namespace(kubeconfig, tools) as cluster,
        _mirror(folder, here) as mirror,
        _serving(cluster, folder, here, mirror) as server,
    ):
        return [*_starts(cluster, server, rounds), _steps(server, folder, rounds)]


@contextlib.contextmanager
def _mirror(folder: str, here: str) -> Iterator[str]:
    """A mirror of Docker Hub with the image of the steps, as Pods reach it."""
    with registry(folder) as address:
        name = f"{address}/library/{IMAGE}"
        docker("tag", IMAGE, name)
        try:
            docker("push", "-q", name)
        finally:
            docker("rmi", name)
        with _led(here, address) as url:
            yield url


@contextlib.contextmanager
def _led(here: str, address: str) -> Iterator[str]:
    """The URL at which Pods reach an address of this machine's loopback."""
    host, port = address.split(":")
    leads = relay(here, (host, int(port)))
    try:
        yield f"http://{here}:{leads.server_address[1]}"
    finally:
        leads.shutdown()
        leads.server_close()


@contextlib.contextmanager
def _serving(cluster: Cluster, folder: str, here: str, mirror: str) -> Iterator[Server]:
    """A server with a pool that has no spare Pod, and one that has one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = os.path.join(folder, "config")
    os.makedirs(os.path.join(config, "buildrunner"))
    with _led(here, f"127.0.0.1:{port}") as url:
        pools = (
            _POOL.format(
                name=name,
                spare=spare,
                server=url,
                namespace=cluster.namespace,
                worker=image("worker"),
                engine=image("engine"),
                mirror=mirror,
                cpus=os.cpu_count(),
            )
            for name, spare in (("cold", 0), ("fast", 1))
        )
        with open(os.path.join(config, "buildrunner", "config.toml"), "w") as file:
            file.writelines(pools)
        environ = {**os.environ, "XDG_CONFIG_HOME": config, "KUBECONFIG": cluster.kubeconfig}
        # Without tokens, a server answers to its own names only, and Pods reach it by another one.
        flags = (f"--port={port}", "--auth=tokens")
        server = Server(os.path.join(folder, "server"), 0, environ, "none", *flags)
        try:
            yield server
        finally:
            server.stop()


def _starts(cluster: Cluster, server: Server, rounds: int) -> list[Result]:
    """Seconds from the request of a build to its first step, in a new Pod and in a spare one."""
    bare, cold, fast = [], [], []
    for _ in range(rounds + 1):
        bare.append(bare_pod_s(cluster))
        cold.append(_first_step_s(server, "cold"))
        ready_spare(cluster, "fast")
        time.sleep(_LOADED_S)
        fast.append(_first_step_s(server, "fast"))
    bars = [1.5 * one + 1 for one in bare[1:]]
    ratios = [one / bar for one, bar in zip(cold[1:], bars, strict=True)]
    shares = [one / other for one, other in zip(cold[1:], bare[1:], strict=True)]
    times = [one * 1000 for one in fast[1:]]
    return [
        Result(
            "first step in a new Pod / (1.5 bare Pods + 1 s)",
            1.0,
            statistics.median(ratios),
            ours_s=statistics.median(cold[1:]),
            theirs_s=statistics.median(bare[1:]),
            rounds=rounds,
            note=f"a bare Pod right; {statistics.median(shares):.1f} of them",
            samples=ratios,
        ),
        Result(
            "first step in a spare Pod",
            _SPARE_MS,
            statistics.median(times),
            unit="ms",
            ours_s=statistics.median(fast[1:]),
            rounds=rounds,
            samples=times,
        ),
    ]


def _steps(server: Server, folder: str, rounds: int) -> Result:
    """The same steps in a Pod and in a nested sandbox, from the first one's start on."""
    nested = Server(os.path.join(folder, "nested"), 1, None, "nested")
    try:
        return compare(
            f"{_STEPS} no-op steps in a Pod / in a nested sandbox",
            1.1,
            _taken(server, "cold"),
            _taken(nested),
            rounds=rounds,
            note="from the first step's start to the last one's end",
        )
    finally:
        nested.stop()


def _taken(server: Server, pool: str = "") -> Callable[[], float]:
    def once() -> float:
        steps = _ended(server, _build(_STEPS, pool))["steps"]
        return (_at(steps[-1], "endTime") - _at(steps[0], "startTime")).total_seconds()

    return once


def _first_step_s(server: Server, pool: str) -> float:
    requested = datetime.now(UTC)
    build = _ended(server, _build(1, pool))
    return (_at(build["steps"][0], "startTime") - requested).total_seconds()


def _at(step: dict, moment: str) -> datetime:
    return datetime.fromisoformat(step["timing"][moment])


def _build(steps: int, pool: str) -> dict:
    name = f"projects/bench/locations/global/workerPools/{pool}"
    return {"steps": no_op(steps), **({"options": {"pool": {"name": name}}} if pool else {})}


def _ended(server: Server, build: dict) -> dict:
    build_id = server.create(build)
    if (status := server.wait(build_id)) != "SUCCESS":
        raise NotPossible(f"the build {build_id} is {status}")
    return server.call(f"/v1/projects/bench/builds/{build_id}")
