"""Finds any of many byte strings, in time that hardly depends on how many they are.

A private key of fifty lines has thousands of forms. To look for each of them in each chunk of a log
takes longer than what the log is about. So the first bytes of all forms are in one table, in which
every four bytes of a chunk are looked up; only where they are in it, forms are compared.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from buildrunner.engine.secret_forms import MINIMUM_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

_WORD = 4  # bytes of an "I" of memoryview; no form is shorter
assert _WORD <= MINIMUM_LENGTH  # noqa: S101  (else short forms would never be found)


class SecretSearch:
    """Which byte strings to look for. Immutable, so that any thread may use it.

    Args:
        forms: each of at least `MINIMUM_LENGTH` bytes.
    """

    def __init__(self, forms: Iterable[bytes]) -> None:
        by_word: dict[int, list[bytes]] = {}
        beginnings: set[bytes] = set()
        for form in sorted(forms):
            by_word.setdefault(int.from_bytes(form[:_WORD], sys.byteorder), []).append(form)
            beginnings.update(form[:length] for length in range(1, _WORD))
        self._by_word = by_word
        self._words = frozenset(by_word)
        self._beginnings = beginnings

    def __bool__(self) -> bool:
        return bool(self._words)

    def scan(self, data: bytes) -> tuple[list[tuple[int, int]], int]:
        """Every place where a form stands, ascending; and where what is undecided begins.

        From there to its end ``data`` is the beginning of a form, of which more may come.
        """
        spans: list[tuple[int, int]] = []
        cut = len(data)
        for at in self._candidates(data):
            for form in self._by_word[int.from_bytes(data[at : at + _WORD], sys.byteorder)]:
                end = at + len(form)
                if data.startswith(form, at):
                    spans.append((at, end))
                elif at < cut and end > len(data) and form.startswith(data[at:]):
                    cut = at
        for length in range(min(_WORD - 1, len(data)), 0, -1):
            if len(data) - length < cut and data[-length:] in self._beginnings:
                cut = len(data) - length
        return spans, cut

    def _candidates(self, data: bytes) -> list[int]:
        """Where the first bytes of some form stand, ascending."""
        found: list[int] = []
        view = memoryview(data)
        for shift in range(min(_WORD, len(data) - _WORD + 1)):
            whole = (len(data) - shift) // _WORD * _WORD
            words = view[shift : shift + whole].cast("I")
            if not self._words.isdisjoint(words):
                found += [
                    shift + _WORD * index for index, word in enumerate(words) if word in self._words
                ]
        found.sort()
        return found
