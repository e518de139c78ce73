"""The table of first bytes finds just what looking for each string would find."""

from hypothesis import example, given
from hypothesis import strategies as st

from buildrunner.engine.log.masking import Masker, SecretSearch

FEW = st.binary(min_size=0, max_size=40).map(lambda data: bytes(b"ab\n"[one % 3] for one in data))
FORMS = st.sets(FEW.filter(lambda form: len(form) >= 4), max_size=8)


def one_by_one(data, forms):
    spans = sorted(
        (at, at + len(form))
        for form in forms
        for at in range(len(data))
        if data.startswith(form, at)
    )
    undecided = (
        at
        for at in range(len(data))
        if any(form.startswith(data[at:]) and form != data[at:] for form in forms)
    )
    return spans, next(undecided, len(data))


@given(data=FEW, forms=FORMS)
@example(data=b"", forms={b"abab"})
@example(data=b"aba", forms={b"abab", b"baba"})
@example(data=b"abababab", forms={b"abab", b"abababababab"})
def test_every_place_is_found_and_what_may_become_one(data, forms):
    spans, cut = SecretSearch(forms).scan(data)
    assert (sorted(spans), cut) == one_by_one(data, forms)


def test_any_bytes_at_any_distance():
    forms = {bytes(range(at, at + 9)) for at in range(0, 240, 7)}
    data = b"..".join(b"\0" * shift + form for shift in range(5) for form in sorted(forms))
    assert sorted(SecretSearch(forms).scan(data)[0]) == one_by_one(data, forms)[0]


def test_a_value_of_many_lines_is_covered_line_by_line():
    masker = Masker(["\n".join(f"{number:08x}" for number in range(1000))])
    shown = masker.mask(b"what 000003e0 and 00003e0 are\n" * 300)
    assert shown == b"what *** and 00003e0 are\n" * 300
