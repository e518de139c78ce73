"""The networks that the settings of a project deny, in the Pods of its builds."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from buildrunner.addresses import Egress
from tests.conftest import needs_root
from tests.registry_servers import outward_address
from tests.security.test_pod_logins import (
    engine_image,
    opened,
    running_pod,
    shown_by_a_step,
)

__all__ = ["engine_image"]

pytestmark = [pytest.mark.docker, needs_root]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server on this machine."""
    server = ThreadingHTTPServer(("0.0.0.0", 0), Quiet)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://{outward_address()}:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("egress", "is_reached"),
    [
        (Egress(), True),
        (Egress(deny=(*Egress().deny, "0.0.0.0/0")), False),
        (Egress(deny=("0.0.0.0/0",), allow=(outward_address(),)), True),
    ],
    ids=["by default", "denied", "allowed again"],
)
def test_steps_in_a_pod_do_not_reach_what_the_project_denies(
    egress: Egress,
    is_reached: bool,
    web: str,
    engine_image: str,
    busybox: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker in the Pod reaches its server all the same."""
    ask = ("wget", "-q", "-O", "/dev/null", web)
    with running_pod(engine_image, "user-namespace", egress) as pod:
        beside = ["docker", "run", "--rm", f"--network=container:{pod.name}", busybox, *ask]
        subprocess.run(beside, check=True, stdout=subprocess.DEVNULL)
        engine = opened(monkeypatch, pod.socket)
        for network in ("", "host"):
            shown = shown_by_a_step(engine, *ask, network=network)
            assert ("refused" not in shown) is is_reached, shown
        engine.close()
        monkeypatch.undo()
