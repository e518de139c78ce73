from __future__ import annotations

import base64
import json
import shlex
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.engine.log.masking import MASK, Masker

SECRETS = st.text(min_size=4, max_size=40).filter(lambda text: len(text.strip("\r\n")) >= 4)


def masked_in_chunks(masker: Masker, data: bytes, sizes: list[int]) -> bytes:
    stream = masker.stream()
    out = b""
    for size in sizes:
        out += stream.feed(data[:size])
        data = data[size:]
    return out + stream.feed(data) + stream.finish()


@given(
    secrets=st.lists(SECRETS, min_size=1, max_size=3),
    around=st.lists(st.binary(max_size=30), min_size=2, max_size=6),
    sizes=st.lists(st.integers(0, 12), max_size=60),
)
def test_no_chunking_lets_a_secret_through(
    secrets: list[str], around: list[bytes], sizes: list[int]
) -> None:
    masker = Masker(secrets)
    data = b"".join(
        part + secrets[number % len(secrets)].encode("utf-8", "surrogateescape")
        for number, part in enumerate(around)
    )
    shown = masked_in_chunks(masker, data, sizes)
    assert shown == masker.mask(data)
    for secret in secrets:
        raw = secret.encode("utf-8", "surrogateescape")
        if raw not in MASK * 20:
            assert raw not in shown.replace(MASK, b"\0")


@given(
    parts=st.lists(st.sampled_from(["abab", "ab", "a", "b", "xyz", "\n", "baba"]), max_size=40),
    sizes=st.lists(st.integers(0, 5), max_size=80),
)
def test_overlapping_secrets_look_the_same_however_they_are_cut(
    parts: list[str], sizes: list[int]
) -> None:
    masker = Masker(["abab", "babaxyz", "aaaa", "xyz\nab"])
    data = "".join(parts).encode()
    assert masked_in_chunks(masker, data, sizes) == masker.mask(data)


@given(data=st.binary(max_size=200), sizes=st.lists(st.integers(0, 9), max_size=40))
def test_lines_stay_lines(data: bytes, sizes: list[int]) -> None:
    masker = Masker(["first line\nsecond line\n", "a\nb\nc"])
    shown = masked_in_chunks(masker, data + b"first line\nsecond line\na\nb\nc\n", sizes)
    assert shown.count(b"\n") == data.count(b"\n") + 5


@pytest.mark.parametrize("before", ["", "x", "xy", "user:", "user1:"])
@pytest.mark.parametrize("secret", ["s3cr/t+v?l", "pässwörd~~", "aaaa", "tail\n"])
def test_every_usual_encoding_is_covered(before: str, secret: str) -> None:
    raw = secret.encode()
    masker = Masker([secret])
    text = secret.rstrip("\n")
    for shown in (
        base64.b64encode(before.encode() + raw + b"!!"),
        base64.urlsafe_b64encode(before.encode() + raw),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        quote(text, safe="").encode(),
        quote(text, safe="").lower().encode() if text.isascii() and text.islower() else b"",
        quote_plus(text).encode(),
        json.dumps({"key": text}).encode(),
        shlex.quote(f"{text} it's").encode(),
    ):
        if shown:
            assert MASK in masker.mask(shown), shown


def test_lines_that_base64_wraps_are_covered() -> None:
    secret = "-----BEGIN KEY-----\n" + "q8Zr" * 40 + "\n-----END KEY-----\n"
    shown = Masker([secret]).mask(base64.encodebytes(secret.encode()))
    assert {line.rstrip(b"=") for line in shown.splitlines()} == {MASK}


def test_each_line_of_a_secret_is_one() -> None:
    masker = Masker(["first line\nno\nthird line"])
    assert masker.mask(b"a first line b\nno\nthird line") == b"a *** b\nno\n***"


def test_a_secret_of_short_lines_is_covered_as_a_whole() -> None:
    assert Masker(["ab\ncd\nef"]).mask(b"<ab\ncd\nef>") == b"<***\n***\n***>"


def test_short_values_are_counted_and_left_alone() -> None:
    masker = Masker(["abc", "", "no\n", "long enough"])
    assert masker.too_short == 2
    assert masker.mask(b"abc no") == b"abc no"


def test_without_secrets_there_is_nothing_to_do() -> None:
    assert not Masker([])
    assert Masker([]).mask_text("same") == "same"


def test_what_can_be_shown_is_shown_at_once() -> None:
    stream = Masker(["secret"]).stream()
    assert stream.feed(b"progress 10%") == b"progress 10%"
    assert stream.feed(b" sec") == b" "
    assert stream.feed(b"ond") == b"second"


def test_an_endless_run_of_overlaps_is_not_kept() -> None:
    stream = Masker(["aaaa"]).stream()
    shown = b"".join(stream.feed(b"aa") for _ in range(1000)) + stream.finish()
    assert shown == MASK
