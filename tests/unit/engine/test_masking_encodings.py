"""No encoding that the masker knows, no chunking and no interleaving lets a secret through."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable
from itertools import zip_longest
from urllib.parse import quote, quote_plus

from hypothesis import example, given
from hypothesis import strategies as st

from buildrunner.engine.log.masking import MASK, Masker
from buildrunner.engine.log.pipeline import LogPipeline
from tests.unit.engine.conftest import HastyClock, MemorySink

# Without the mask's own character, which would stand for itself in what is shown.
SECRETS = st.text(
    st.characters(exclude_characters="*", exclude_categories=("Cs",)), min_size=4, max_size=40
).filter(lambda text: len(text.encode().strip(b"\r\n")) >= 4 and "\0" not in text)
AROUND = st.binary(max_size=4)
SIZES = st.lists(st.integers(0, 9), max_size=40)

Encoded = tuple[bytes, bytes]
"""What a tool prints, and the part of it that depends on the secret only."""


def whole_of(secret: str) -> str:
    """The secret as the masker sees it: newlines around it are no secret."""
    return secret.strip("\r\n")


def as_base64(encode: Callable[[bytes], bytes]) -> Callable[[str, bytes, bytes], Encoded]:
    def form(secret: str, before: bytes, after: bytes) -> Encoded:
        raw = secret.encode()
        text = encode(before + raw + after)
        first, end = -(-8 * len(before) // 6), 8 * (len(before) + len(raw)) // 6
        return text, text[first:end]

    return form


def as_text(encode: Callable[[str], str]) -> Callable[[str, bytes, bytes], Encoded]:
    def form(secret: str, before: bytes, after: bytes) -> Encoded:
        return (
            before + encode(secret).encode() + after,
            encode(whole_of(secret)).encode(),
        )

    return form


ENCODINGS: dict[str, Callable[[str, bytes, bytes], Encoded]] = {
    "as it is": as_text(lambda text: text),
    "base64": as_base64(base64.b64encode),
    "base64 for URLs": as_base64(base64.urlsafe_b64encode),
    "URL": as_text(lambda text: quote(text, safe="")),
    "path of a URL": as_text(quote),
    "form": as_text(quote_plus),
    "JSON": as_text(lambda text: json.dumps(text)[1:-1]),
    "JSON in UTF-8": as_text(lambda text: json.dumps(text, ensure_ascii=False)[1:-1]),
    "JSON in JSON": as_text(lambda text: json.dumps(json.dumps(text))[3:-3]),
    "JSON in JSON in UTF-8": as_text(
        lambda text: json.dumps(json.dumps(text, ensure_ascii=False), ensure_ascii=False)[3:-3]
    ),
    "Python's bytes": as_text(lambda text: repr(text.encode())[2:-1]),
    "Python's text": as_text(lambda text: repr(text)[1:-1]),
    "Python's text in ASCII": as_text(lambda text: ascii(text)[1:-1]),
    "shell": as_text(lambda text: shlex.quote(f"{text} ")[1:-2]),
    "hex": as_text(lambda text: text.encode().hex()),
    "HEX": as_text(lambda text: text.encode().hex().upper()),
    "hex with spaces": as_text(lambda text: text.encode().hex(" ")),
    "terminal": as_text(lambda text: text.replace("\r\n", "\n").replace("\n", "\r\n")),
}


def in_chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


@given(SECRETS, st.sampled_from(sorted(ENCODINGS)), AROUND, AROUND, SIZES)
@example("hunter22", "base64", b"x", b"", [3, 1])
@example("a b/c'd\"e\n", "shell", b"", b"", [1] * 12)
def test_no_encoding_and_no_chunking_lets_a_secret_through(
    secret: str, name: str, before: bytes, after: bytes, sizes: list[int]
) -> None:
    shown_by_tool, certain = ENCODINGS[name](secret, before, after)
    masker = Masker([secret])
    stream = masker.stream()
    shown = b"".join(map(stream.feed, in_chunks(shown_by_tool, sizes))) + stream.finish()
    assert shown == masker.mask(shown_by_tool)
    assert len(certain) >= 4
    assert certain not in shown
    assert MASK in shown


@given(st.lists(SECRETS, min_size=1, max_size=4), SIZES)
def test_every_line_of_a_secret_is_one(lines: list[str], sizes: list[int]) -> None:
    secret = "\n".join(lines)
    printed = b"".join(b"> " + line.encode() + b"\n" for line in secret.split("\n"))
    stream = Masker([secret]).stream()
    shown = b"".join(map(stream.feed, in_chunks(printed, sizes))) + stream.finish()
    for line in secret.encode().split(b"\n"):
        if len(line.strip(b"\r")) >= 4:
            assert line.strip(b"\r") not in shown
    assert shown.count(b"\n") == printed.count(b"\n")


@given(SECRETS, st.sampled_from(sorted(ENCODINGS)), SIZES, SIZES)
def test_steps_that_print_at_the_same_time_let_nothing_through(
    secret: str, name: str, sizes: list[int], other_sizes: list[int]
) -> None:
    printed, certain = ENCODINGS[name](secret, b"k", b"")
    sink = MemorySink()
    log = LogPipeline(sink, HastyClock(), lambda _: None)
    log.masker = Masker([secret])
    first, second = log.step(0, "Step #0: "), log.step(1, "Step #1: ")
    for one, two in zip_longest(
        in_chunks(printed, sizes), in_chunks(printed, other_sizes), fillvalue=b""
    ):
        first.write(one)
        second.write(two)
    first.finish()
    second.finish()
    log.close()
    assert certain not in sink.data
    for line in sink.data.split(b"\n"):
        assert certain not in line.removeprefix(b"Step #0: ").removeprefix(b"Step #1: ")
