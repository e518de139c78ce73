"""How far an upload is, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A bar that is gone before one can read it only flickers.
_BAR_FROM_BYTES = 4 << 20


@contextmanager
def upload_bar(total: int) -> Iterator[Callable[[int], object]]:
    """A bar on standard error, when that is a terminal and there is something to wait for."""
    if total < _BAR_FROM_BYTES or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(
        TextColumn("Uploading"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("source", total=total)
        yield lambda count: progress.advance(task, count)
