"""What is kept of registries' layers between builds, read from where steps are root."""

import json
import os

import pytest

from buildrunner.sandboxes.nested.layer_origins import (
    Origin,
    PushMemory,
    decode_listing,
    decode_notes,
    encode_notes,
)


def sha(number: int) -> str:
    return f"sha256:{number:064x}"


def origin(number: int, repository: str = "localhost:5000/app") -> Origin:
    return Origin(digest=sha(number), repository=repository)


def note(*origins: Origin) -> bytes:
    """As an engine writes it."""
    return json.dumps(
        [{"Digest": one.digest, "SourceRepository": one.repository, "HMAC": "c0de"}
         for one in origins]
    ).encode()  # fmt: skip


def listing(notes: dict[str, bytes]) -> bytes:
    folder = b"/var/lib/docker/image/overlay2/distribution/v2metadata-by-diffid/sha256"
    return b"".join(
        b"%b/%b:%b\n" % (folder, layer[7:].encode(), file) for layer, file in notes.items()
    )


def test_an_engines_note_is_read_and_written_without_its_login_codes():
    written = encode_notes(decode_notes(note(origin(1), origin(2, "example.com/a/b"))))
    assert json.loads(written) == [
        {"Digest": sha(1), "SourceRepository": "localhost:5000/app"},
        {"Digest": sha(2), "SourceRepository": "example.com/a/b"},
    ]


def test_of_equal_origins_the_newest_counts():
    assert decode_notes(note(origin(1), origin(2), origin(1))) == (origin(2), origin(1))


@pytest.mark.parametrize(
    "entry",
    [
        b'{"Digest": "%b\\n", "SourceRepository": "a/b"}' % sha(1).encode(),
        b'{"Digest": "sha512:%b", "SourceRepository": "a/b"}' % (b"0" * 128),
        b'{"Digest": "../../../etc/passwd", "SourceRepository": "a/b"}',
        b'{"Digest": "%b", "SourceRepository": ""}' % sha(1).encode(),
        b'{"Digest": "%b", "SourceRepository": "a b"}' % sha(1).encode(),
        b'{"Digest": "%b", "SourceRepository": "%b"}' % (sha(1).encode(), b"a" * 513),
        b'{"Digest": "%b"}' % sha(1).encode(),
        b'{"SourceRepository": "a/b"}',
        b"null",
        b"7",
        b'"\xff"',
        b"[" * 5000 + b"]" * 5000,
    ],
)
def test_an_entry_that_no_engine_writes_is_left_out(entry):
    assert origin(2) not in decode_notes(b"[" + entry + b"]")
    assert set(decode_notes(b"[" + entry + b"," + note(origin(2))[1:])) <= {origin(2)}


@pytest.mark.parametrize(
    "file",
    [b"", b"null", b"{}", b"[", b"\xff\xfe", b"[" * 100_000, note(*map(origin, range(51)))],
)
def test_a_note_that_no_engine_writes_says_nothing(file):
    assert decode_notes(file) == ()


def test_of_a_listing_only_layers_count():
    good = listing({sha(1): note(origin(5)), sha(2): b"garbled"})
    bad = b"Binary file matches\n\xff:[]\n:\n/x/ABC:[]\n" + note(origin(6)) + b"\n"
    assert decode_listing(bad + good + bad) == {sha(1): (origin(5),), sha(2): ()}
    assert decode_listing(good + b" " * (4 << 20)) == {}


@pytest.fixture
def memory(tmp_path):
    return PushMemory(str(tmp_path / "pushed-layers"), "one")


def test_what_one_build_learned_the_next_of_its_project_knows(memory, tmp_path):
    memory.learn(listing({sha(1): note(origin(5)), sha(2): note(origin(6))}), {sha(1)})
    again = PushMemory(str(tmp_path / "pushed-layers"), "one")
    assert again.recall() == {sha(1): (origin(5),)}  # of layers of the host alone
    assert PushMemory(str(tmp_path / "pushed-layers"), "other").recall() == {}


def test_what_the_registry_lost_is_forgotten(memory):
    memory.learn(listing({sha(1): note(origin(5)), sha(2): note(origin(6))}), {sha(1), sha(2)})
    memory.learn(listing({sha(1): note(origin(7)), sha(2): b"[]"}), {sha(1), sha(2)})
    assert memory.recall() == {sha(1): (origin(7),)}


@pytest.mark.parametrize(
    "content",
    [b"", b"garbled", b"[]", b'{"x": []}', b'{"%b": [{}]}' % sha(1).encode(), b"\xff",
     b"[" * 100_000, b"{}" + b" " * (4 << 20)],
)  # fmt: skip
def test_a_garbled_memory_is_an_empty_one(memory, tmp_path, content):
    memory.learn(listing({sha(1): note(origin(5))}), {sha(1)})
    (file,) = (tmp_path / "pushed-layers").iterdir()
    file.write_bytes(content)
    assert memory.recall() == {}
    memory.learn(listing({sha(1): note(origin(5))}), {sha(1)})
    assert memory.recall() == {sha(1): (origin(5),)}


def test_a_memory_that_can_not_be_read_is_an_empty_one(memory, tmp_path):
    assert memory.recall() == {}
    (tmp_path / "pushed-layers").write_text("no folder")
    assert memory.recall() == {}


def test_a_memory_stays_small(memory):
    many = [origin(number) for number in range(20)]
    layers = {sha(number): note(*many) for number in range(600)}
    memory.learn(listing(layers), set(layers))
    known = memory.recall()
    assert list(known) == list(layers)[-500:]
    assert set(known.values()) == {tuple(many[-8:])}


def test_only_the_projects_that_learned_last_are_remembered(tmp_path):
    folder = tmp_path / "pushed-layers"
    for number in range(101):
        memory = PushMemory(str(folder), f"p{number}")
        memory.learn(listing({sha(1): note(origin(5))}), {sha(1)})
        for file in folder.iterdir():  # as if a day had passed
            before = file.stat().st_mtime - 86400
            os.utime(file, (before, before))
    assert len(list(folder.iterdir())) == 100
    assert PushMemory(str(folder), "p0").recall() == {}
    assert PushMemory(str(folder), "p100").recall()


def test_nothing_is_written_where_nothing_is_new(memory, tmp_path):
    memory.learn(listing({sha(1): note(origin(5))}), {sha(1)})
    (file,) = (tmp_path / "pushed-layers").iterdir()
    before = file.stat().st_ino
    memory.learn(listing({sha(1): note(origin(5))}), {sha(1)})
    assert file.stat().st_ino == before
