"""Images of a nested engine: what the host engine has is taken, or a registry is asked anew."""

from __future__ import annotations

import threading

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.errors import ImagePullError
from buildrunner.worker.nested_engine import NestedEngine

PRIVATE = "corp.example.com/team/app"


class Nest:
    """A host engine with a private image, and an engine nested in it that shares its images."""

    def __init__(self) -> None:
        self.host, self.inner = FakeEngine(), FakeEngine()
        self.host.offer_image(PRIVATE)
        self.host.private.add(PRIVATE)
        for engine in (self.host, self.inner):
            engine.add_image(PRIVATE)
        self.copied: list[str] = []
        self.engine = NestedEngine(
            ready=lambda: self.inner,
            why_gone=lambda: None,
            host=self.host,
            data_folder=lambda: "/",
            copy=self._copy,
            open_port=lambda _: None,
            on_pushed=lambda: None,
        )

    def _copy(self, name: str, _cancel: threading.Event) -> None:
        self.copied.append(name)

    def pull(self, *, anonymous: bool) -> None:
        self.engine.pull_image(
            PRIVATE, on_progress=lambda _: None, cancel=threading.Event(), anonymous=anonymous
        )


def test_what_the_host_engine_has_is_taken_from_there() -> None:
    nest = Nest()
    nest.pull(anonymous=False)
    assert ("pull_image", PRIVATE) not in nest.host.calls


def test_without_a_login_the_host_engine_s_stock_does_not_count() -> None:
    nest = Nest()
    with pytest.raises(ImagePullError):
        nest.pull(anonymous=True)
    assert nest.copied == []
    nest.host.private.clear()
    nest.pull(anonymous=True)
    assert nest.copied == []  # the nested engine shares it already
