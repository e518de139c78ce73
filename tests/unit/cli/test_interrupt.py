"""Signals that cancel a build: none is lost, whatever the main thread waits for."""

import signal
import threading
from queue import SimpleQueue

import pytest

from buildrunner.cli.terminal.streams import Interruption

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send_to_another_thread(number: int) -> None:
    """The main thread's wait is not interrupted by it."""
    thread = threading.Thread(
        target=lambda: signal.pthread_kill(threading.get_ident(), number), daemon=True
    )
    thread.start()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_cancels_while_the_main_thread_waits_for_a_lock(number):
    news: SimpleQueue[str] = SimpleQueue()
    before = signal.getsignal(number)
    with Interruption(lambda: news.put("cancel"), news.put) as interruption:
        send_to_another_thread(number)
        assert news.get(timeout=30) == "cancel"
        assert news.get(timeout=30) == "Cancelling ..."
        assert interruption.caught
        send_to_another_thread(number)
        assert news.get(timeout=30).startswith("Already cancelling: ")
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption(pytest.fail, pytest.fail) as interruption:
            send_to_another_thread(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
        assert not interruption.caught
    finally:
        signal.signal(signal.SIGHUP, before)
