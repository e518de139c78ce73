"""A pull on the machine's engine, for a build whose use of the disk has a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.containers.types import ImageInfo, TransferProgress
from buildrunner.errors import ImagePullError

_LOOK_S = 0.2


def pull_within(
    host: ContainerEngine,
    name: str,
    limit_bytes: int | None,
    *,
    on_progress: Callable[[TransferProgress], None] = lambda _: None,
    cancel: threading.Event,
) -> ImageInfo:
    """Pull an image that the host engine does not have.

    The pull ends when the sizes of the layers exceed the limit: the size that the engine reports
    before it has a layer, or the bytes that have arrived. An image that is larger once it is
    unpacked is removed again.

    Args:
        host: the machine's engine.
        name: of the image.
        limit_bytes: how large it may be; None sets no limit.
        on_progress: takes news.
        cancel: ends the pull.

    Raises:
        ImagePullError: it did not come, it is too large, or ``cancel`` was set.
    """
    if limit_bytes is None:
        return host.pull_image(name, on_progress=on_progress, cancel=cancel)
    sizes: dict[str, int] = {}
    stop = _EitherEvent(cancel)

    def watch(progress: TransferProgress) -> None:
        # A registry that sends a layer without its length has it arrive with an unknown size.
        size = max(progress.total_bytes, progress.current_bytes)
        sizes[progress.layer] = max(sizes.get(progress.layer, 0), size)
        if sum(sizes.values()) > limit_bytes:
            stop.set()
        on_progress(progress)

    try:
        image = host.pull_image(name, on_progress=watch, cancel=stop)
    except ImagePullError as error:
        if stop.is_over:
            raise _too_large(name, limit_bytes) from error
        raise
    if image.size_bytes > limit_bytes:
        host.untag_image(name)
        raise _too_large(name, limit_bytes)
    return image


class _EitherEvent(threading.Event):
    """Is set when it is, or another event is."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()

    @property
    def is_over(self) -> bool:
        return super().is_set()


def _too_large(name: str, limit_bytes: int) -> ImagePullError:
    return ImagePullError(
        f"the image {name} is larger than {limit_bytes / (1 << 30):.1f} GiB, which a build may "
        "write to the disk",
        hint="the server's administrator sets the limit: serve --max-build-disk-gib",
    )
