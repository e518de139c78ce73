"""The network that a server's builds share."""

from __future__ import annotations

from pathlib import Path

from buildrunner.containers.cleanup import find_leftovers
from buildrunner.containers.fake import FakeEngine
from buildrunner.sandboxes.host import SharedNetwork

NAME = "cloudbuild"


def test_what_a_killed_server_leaves_is_found_and_of_a_living_one_nothing(tmp_path: Path) -> None:
    engine = FakeEngine()
    network = SharedNetwork(engine, "unix:///engine.sock", NAME, str(tmp_path))
    network.make()
    assert find_leftovers(engine, lambda _: True).networks == ()
    assert find_leftovers(engine, lambda _: False).networks == (NAME,)
    network.close()
    assert find_leftovers(engine, lambda _: False).networks == ()
