"""The events in which an engine tells how a pull, a push or an import goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.transfer_failure import TransferFailure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LINE_LIMIT = 1024 * 1024


class _Detail(msgspec.Struct):
    current: int = 0
    total: int = 0


class _ErrorDetail(msgspec.Struct):
    message: str = ""


class TransferEvent(msgspec.Struct):
    """One line of the stream; which fields are filled depends on what it tells of."""

    status: str = ""
    id: str = ""
    progress: _Detail = msgspec.field(name="progressDetail", default_factory=_Detail)
    error: str = ""
    error_detail: _ErrorDetail | None = msgspec.field(name="errorDetail", default=None)


def transfer_events(pieces: Iterable[bytes]) -> Iterator[TransferEvent]:
    """The events of a transfer. Errors hide among them: they become a `TransferFailure`."""
    try:
        for line in _lines(pieces):
            event = msgspec.json.decode(line, type=TransferEvent)
            if event.error_detail is not None and event.error_detail.message:
                raise TransferFailure(event.error_detail.message)
            if event.error:
                raise TransferFailure(event.error)
            yield event
    except msgspec.DecodeError as error:
        raise TransferFailure(f"the engine's answer can't be understood: {error}") from error


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _LINE_LIMIT:
            raise TransferFailure("the engine's answer has a line without end")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest
