"""Page tokens: where the next page of a list begins, signed, and bound to that very list.

A token is readable by nobody's promise: its form may change with any version. It is signed with a
key of the database, so that one that was made up or altered is told from one of ours.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from buildrunner.errors import PageTokenError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_SIGNATURE_BYTES = 16
_MAX_TOKEN = 4096


def bounded(page_size: int) -> int:
    """The page size that is meant: 50 for none, at most 1000."""
    return min(page_size, MAX_PAGE_SIZE) if page_size > 0 else DEFAULT_PAGE_SIZE


# Which list: its kind, its project and whatever else decides what is in it.
Parent: TypeAlias = "Sequence[str | None]"


class PageTokens:
    """Writes and reads page tokens.

    Args:
        key: what they are signed with.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, parent: Parent, last: Sequence[Any]) -> str:
        """The token of the page behind ``last``, in the list that ``parent`` names."""
        body = msgspec.json.encode(list(last))
        return _text(self._signature(parent, body) + body)

    def read(self, token: str, parent: Parent, types: Sequence[type]) -> tuple[Any, ...]:
        """Where a list goes on.

        Args:
            token: as the caller sent it.
            parent: which list, and with what filter.
            types: of the values that `write` got.

        Raises:
            PageTokenError: it is none of ours, or of another list.
        """
        try:
            raw = urlsafe_b64decode(token[:_MAX_TOKEN].encode("ascii") + b"==")
            signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
            genuine = hmac.compare_digest(signature, self._signature(parent, body))
            genuine = genuine and _text(raw) == token  # the decoder overlooks what it does not know
            values = msgspec.json.decode(body) if genuine else []
        except ValueError as error:  # not ASCII, not base64
            raise _refused() from error
        if not genuine or [type(value) for value in values] != list(types):
            raise _refused()
        return tuple(values)

    def _signature(self, parent: Parent, body: bytes) -> bytes:
        signed = msgspec.json.encode([list(parent), body])
        return hmac.digest(self._key, signed, "sha256")[:_SIGNATURE_BYTES]


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _refused() -> PageTokenError:
    return PageTokenError(
        "this page token is not one of this list",
        hint="begin with the first page; filter and project must stay the same from page to page",
    )
