"""Searching a log: what a plain scan of its lines would find, in both directions."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.errors import UsageError
from buildrunner.logs.files import reader as search
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.logs.files.reader import LogFileReader, LogQuery, search_log


def log_of(folder, *chunks):
    sink = LogFileSink(str(folder))
    for data in chunks:
        sink.write(LogChunk(data, 0, datetime.now(UTC)))
    sink.close()
    return LogFileReader(str(folder))


TEXT = b"one two\nERROR: three\nfour error\n\xc3\x89t\xc3\xa9 ERROR\n"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (LogQuery("ERROR"), [(8, 1), (38, 3)]),
        (LogQuery("error", ignore_case=True), [(8, 1), (26, 2), (38, 3)]),
        (LogQuery("^[a-z]+ ", regex=True), [(0, 0), (21, 2)]),
        (LogQuery("r$", regex=True), [(30, 2)]),
        (LogQuery("o[^x]+", regex=True), [(0, 0), (22, 2)]),
        (LogQuery("x*", regex=True), []),
        (LogQuery("^o"), []),
        (LogQuery("éTÉ", ignore_case=True), [(32, 3)]),
    ],
)
def test_matches_know_their_offset_and_line(tmp_path, query, expected):
    found = search_log(log_of(tmp_path, TEXT), query)
    assert [(one.offset, one.line) for one in found.matches] == expected
    assert found.next is None


def test_a_match_comes_with_its_line(tmp_path):
    (match,) = search_log(log_of(tmp_path, TEXT), LogQuery("three")).matches
    assert (match.text, match.line_offset, match.text_offset, match.length) == (
        "ERROR: three",
        8,
        8,
        5,
    )


def test_of_a_long_line_only_the_surroundings_come(tmp_path):
    reader = log_of(tmp_path, b"x" * 5000 + b"needle" + b"y" * 5000 + b"\n")
    (match,) = search_log(reader, LogQuery("needle")).matches
    assert "needle" in match.text
    assert len(match.text) <= 400
    assert match.offset - match.text_offset == match.text.index("needle")


@pytest.mark.parametrize("text", ["", "a\nb", "x" * 1001])
def test_what_is_no_search_is_refused(text):
    with pytest.raises(UsageError, match="one line of 1 to 1,000"):
        LogQuery(text)


def test_a_broken_expression_is_a_sentence():
    with pytest.raises(UsageError, match="not a regular expression: missing \\)") as caught:
        LogQuery("a(b", regex=True)
    assert "RE2" in caught.value.hint


def test_a_search_that_may_not_go_on_says_where_it_stopped(tmp_path):
    reader = log_of(tmp_path, *(b"line %07d\n" % n for n in range(200_000)))
    first = search_log(reader, LogQuery("line 0199999"), may_continue=lambda: False)
    assert first.matches == ()
    assert first.next
    second = search_log(reader, LogQuery("line 0199999"), start=first.next)
    assert [match.line for match in second.matches] == [199_999]
    last = search_log(
        reader, LogQuery("line 0000000"), start=reader.size(), backwards=True, may_continue=bool
    )
    assert last.matches == ()
    assert last.next == reader.size() - 13 * ((1 << 20) // 13)


@settings(max_examples=60)
@given(
    st.lists(st.text("ab\n", min_size=1, max_size=30), min_size=1, max_size=8),
    st.sampled_from(["a", "ab", "aa", "b+a", "a[^b]*b"]),
    st.integers(1, 5),
    st.integers(8, 40),
)
def test_going_on_finds_every_match_once_in_both_directions(
    tmp_path_factory, chunks, text, limit, block
):
    data = [chunk.encode() for chunk in chunks]
    reader = log_of(tmp_path_factory.mktemp("log"), *data)
    whole = b"".join(data)
    query = LogQuery(text, regex=True)
    expected = []
    for line in re.finditer(rb"[^\n]*\n?", whole):
        body = line.group().rstrip(b"\n")
        expected += [line.start() + m.start() for m in re.finditer(text.encode(), body)]
    if max(map(len, whole.split(b"\n"))) >= block:
        block = 100  # lines longer than a block are cut, which is another matter
    before, search._BLOCK_BYTES = search._BLOCK_BYTES, block
    try:
        assert walked(reader, query, limit, start=0, backwards=False) == expected
        backwards = walked(reader, query, limit, start=reader.size(), backwards=True)
        assert backwards == expected[::-1]
    finally:
        search._BLOCK_BYTES = before


def walked(reader, query, limit, *, start, backwards):
    found = []
    while start is not None:
        result = search_log(reader, query, start=start, backwards=backwards, limit=limit)
        for match in result.matches:
            assert match.line == reader.line_at(match.offset)
        found += [match.offset for match in result.matches]
        start = result.next
    return found
