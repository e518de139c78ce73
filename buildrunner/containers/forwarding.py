"""A container engine that forwards every call to another engine."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from buildrunner.containers.protocol import (
    AddressRange,
    ContainerEngine,
    ContainerExit,
    ContainerSpec,
    EngineInfo,
    FoundContainer,
    ImageInfo,
    NetworkMember,
    OwnedResources,
    PushedImage,
    RegistryLogin,
    TransferProgress,
)
from buildrunner.errors import EngineUnavailable

Answer = TypeVar("Answer")


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> None: ...


class ExplainedStream:
    """A stream of an engine whose error, if the engine has ended, gets a better reason.

    Args:
        stream: the stream.
        explained: returns the error to raise instead.
    """

    def __init__(
        self,
        stream: Iterator[bytes],
        explained: Callable[[EngineUnavailable], EngineUnavailable],
    ) -> None:
        self._stream = stream
        self._explained = explained

    def __iter__(self) -> ExplainedStream:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._stream)
        except EngineUnavailable as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Stop reading, like a generator's ``close``."""
        if isinstance(self._stream, _Closable):
            self._stream.close()


class ForwardingEngine(ABC):
    """Implements `ContainerEngine` by forwarding to another engine.

    A subclass implements `_ask`, which chooses the engine, and overrides the calls that it answers
    itself.
    """

    @abstractmethod
    def _ask(self, question: Callable[[ContainerEngine], Answer]) -> Answer:
        """Return the result of ``question`` for the other engine."""

    def find_image(self, name: str) -> ImageInfo | None:
        """See `Images.find_image`."""
        return self._ask(lambda engine: engine.find_image(name))

    def tags_of(self, repository: str) -> tuple[str, ...]:
        """See `Images.tags_of`."""
        return self._ask(lambda engine: engine.tags_of(repository))

    def tag_image(self, image: str, name: str) -> bool:
        """See `Images.tag_image`."""
        return self._ask(lambda engine: engine.tag_image(image, name))

    def untag_image(self, name: str) -> None:
        """See `Images.untag_image`."""
        return self._ask(lambda engine: engine.untag_image(name))

    def import_image(
        self,
        name: str,
        tar: Iterable[bytes],
        *,
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = (),
        env: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """See `Images.import_image`."""
        return self._ask(
            lambda engine: engine.import_image(
                name, tar, entrypoint=entrypoint, cmd=cmd, env=env, labels=labels
            )
        )

    def pull_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        anonymous: bool = False,
    ) -> ImageInfo:
        """See `Images.pull_image`."""
        return self._ask(
            lambda engine: engine.pull_image(
                name, on_progress=on_progress, cancel=cancel, anonymous=anonymous
            )
        )

    def push_image(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
        login: RegistryLogin | None = None,
    ) -> PushedImage:
        """See `Images.push_image`."""
        return self._ask(
            lambda engine: engine.push_image(
                name, on_progress=on_progress, cancel=cancel, login=login
            )
        )

    def ensure_network(
        self, name: str, labels: Mapping[str, str], *, address_range: AddressRange | None = None
    ) -> None:
        """See `Resources.ensure_network`."""
        return self._ask(
            lambda engine: engine.ensure_network(name, labels, address_range=address_range)
        )

    def remove_network(self, name: str) -> bool:
        """See `Resources.remove_network`."""
        return self._ask(lambda engine: engine.remove_network(name))

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """See `Resources.network_members`."""
        return self._ask(lambda engine: engine.network_members(name))

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`."""
        return self._ask(lambda engine: engine.create_volume(name, labels, options=options))

    def remove_volume(self, name: str) -> None:
        """See `Resources.remove_volume`."""
        return self._ask(lambda engine: engine.remove_volume(name))

    def list_owned(self, labels: Mapping[str, str]) -> OwnedResources:
        """See `Resources.list_owned`."""
        return self._ask(lambda engine: engine.list_owned(labels))

    def find_containers(self, labels: Mapping[str, str]) -> tuple[FoundContainer, ...]:
        """See `Resources.find_containers`."""
        return self._ask(lambda engine: engine.find_containers(labels))

    def label_values(self, label: str) -> tuple[str, ...]:
        """See `Resources.label_values`."""
        return self._ask(lambda engine: engine.label_values(label))

    def create_container(self, spec: ContainerSpec) -> str:
        """See `Containers.create_container`."""
        return self._ask(lambda engine: engine.create_container(spec))

    def prepare_start(self, container_id: str) -> None:
        """See `Containers.prepare_start`."""
        return self._ask(lambda engine: engine.prepare_start(container_id))

    def start_ahead(self, container_id: str) -> None:
        """See `Containers.start_ahead`."""
        return self._ask(lambda engine: engine.start_ahead(container_id))

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """See `Containers.start_container`."""
        return self._ask(lambda engine: engine.start_container(container_id, attach=attach))

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """See `Containers.follow_container`."""
        return self._ask(lambda engine: engine.follow_container(container_id))

    def wait_container(self, container_id: str) -> ContainerExit:
        """See `Containers.wait_container`."""
        return self._ask(lambda engine: engine.wait_container(container_id))

    def kill_container(self, container_id: str, signal: str = "SIGKILL") -> None:
        """See `Containers.kill_container`."""
        return self._ask(lambda engine: engine.kill_container(container_id, signal))

    def remove_container(self, container_id: str) -> None:
        """See `Containers.remove_container`."""
        return self._ask(lambda engine: engine.remove_container(container_id))

    def remove_unstarted(self, container: str) -> bool:
        """See `Containers.remove_unstarted`."""
        return self._ask(lambda engine: engine.remove_unstarted(container))

    def put_archive(self, container_id: str, path: str, tar: Iterable[bytes]) -> None:
        """See `Containers.put_archive`."""
        return self._ask(lambda engine: engine.put_archive(container_id, path, tar))

    def fill_mount(self, container_id: str, target: str, tar: Iterable[bytes]) -> None:
        """See `Containers.fill_mount`."""
        return self._ask(lambda engine: engine.fill_mount(container_id, target, tar))

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """See `Containers.get_archive`."""
        return self._ask(lambda engine: engine.get_archive(container_id, path))

    def ping(self, *, anew: bool = False) -> None:
        """See `ContainerEngine.ping`."""
        return self._ask(lambda engine: engine.ping(anew=anew))

    def info(self) -> EngineInfo:
        """See `ContainerEngine.info`."""
        return self._ask(lambda engine: engine.info())

    def close(self) -> None:
        """See `ContainerEngine.close`."""
        return self._ask(lambda engine: engine.close())
