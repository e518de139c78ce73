"""Who makes a network does so alone, as far as the machine goes."""

import threading
from pathlib import Path

from buildrunner.containers.cleanup import network_lock, open_network_lock

ADDRESS = "unix:///run/engine.sock"


def test_one_at_a_time_is_in_it(tmp_path: Path) -> None:
    inside = threading.Event()

    def take() -> None:
        with network_lock(str(tmp_path), ADDRESS, wait_limit_s=600):
            inside.set()

    other = threading.Thread(target=take)
    with network_lock(str(tmp_path), ADDRESS):
        other.start()
        assert not inside.wait(0.1)
    assert inside.wait(60)
    other.join()


def test_engines_are_apart_and_whoever_uses_the_network_is_in_nobodys_way(tmp_path: Path) -> None:
    with (
        open(open_network_lock(str(tmp_path), ADDRESS), "rb"),
        network_lock(str(tmp_path), ADDRESS),
        network_lock(str(tmp_path), "tcp://other:2375"),
    ):
        assert len(list(tmp_path.iterdir())) == 3


def test_who_was_stopped_in_it_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with (
        network_lock(str(tmp_path), ADDRESS),
        network_lock(str(tmp_path), ADDRESS, wait_limit_s=0.05),
    ):
        pass
    with network_lock(str(tmp_path), ADDRESS, wait_limit_s=0.0):
        pass  # it is free again
