"""A kept workspace on its way between a worker and its server."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.errors import SourceError
from buildrunner.workspace.carried import Arriving, Packer, packed, unpack
from buildrunner.workspace.kept import ARCHIVE, PROVENANCE, Keeping, KeptFolder

VOLUME = "checked-volume-cache.tar"


def sent(files: Mapping[str, bytes]) -> list[bytes]:
    """The pieces that a worker sends."""
    pieces: list[bytes] = []
    packer = Packer(lambda piece, _: pieces.append(piece))
    for name, content in files.items():
        with packer.file(name) as write:
            write(content)
    packer.close()
    return pieces


def stream(*records: bytes) -> bytes:
    """A stream that somebody makes up, with its end."""
    return zlib.compress(
        b"".join(struct.pack("<I", len(one)) + one for one in (*records, b"")), wbits=31
    )


def files_of(folder: str) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in Path(folder).iterdir()}


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.integers(1, 500))
def test_what_is_packed_is_unpacked_from_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, archive: bytes, volume: bytes, size: int
) -> None:
    made = {ARCHIVE: archive, VOLUME: volume}
    there, here = (str(tmp_path_factory.mktemp(name)) for name in ("there", "here"))
    whole = b"".join(sent(made))
    unpack((whole[at : at + size] for at in range(0, len(whole), size)), KeptFolder(there), 9000)
    assert files_of(there) == made
    again = packed(KeptFolder(there))
    assert again is not None
    unpack(again, KeptFolder(here), 9000)
    assert files_of(here) == made


@pytest.mark.parametrize(
    "made",
    [
        stream(b"../escaped", b"a", b"", ARCHIVE.encode(), b"a", b""),
        stream(b"checked-volume-../x.tar", b"a", b""),
        stream(ARCHIVE.encode(), b"a", b"", ARCHIVE.encode(), b"b", b""),
        stream(VOLUME.encode(), b"a", b""),
        stream(),
        stream(ARCHIVE.encode(), b"a", b"")[:-6],
        stream(ARCHIVE.encode(), b"a", b"") + b"more",
        zlib.compress(struct.pack("<I", 1 << 31), wbits=31),
        b"no stream",
        b"",
    ],
)
def test_a_stream_that_is_damaged_or_has_other_files_is_refused(
    tmp_path: Path, made: bytes
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    with pytest.raises(SourceError):
        unpack(iter([made]), KeptFolder(str(folder)), 1000)
    assert not (tmp_path / "escaped").exists()


def test_a_stream_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    large = b"".join(sent({ARCHIVE: bytes(1_000_001)}))
    assert len(large) < 10_000
    with pytest.raises(SourceError, match="larger than 1,000,000 bytes"):
        unpack(iter([large]), KeptFolder(str(tmp_path)), 1_000_000)


class TestArriving:
    @pytest.fixture
    def keeping(self, tmp_path: Path) -> Keeping:
        return Keeping(folder=str(tmp_path / "workspaces"), limit_bytes=1 << 20)

    def test_it_is_kept_after_its_last_piece_with_the_origin_that_the_server_knows(
        self, keeping: Keeping
    ) -> None:
        whole = b"".join(sent({ARCHIVE: b"an archive", PROVENANCE: b"what a worker says"}))
        arriving = Arriving(keeping, "b")
        half = len(whole) // 2
        assert arriving.take(0, whole[:half], last=False, provenance=b"") == half
        assert not keeping.has("b")
        assert arriving.take(half, whole[half:], last=True, provenance=b"{}") == len(whole)
        assert files_of(keeping.of("b")) == {ARCHIVE: b"an archive", PROVENANCE: b"{}"}
        # The worker did not hear the answer.
        assert arriving.take(half, whole[half:], last=True, provenance=b"{}") == len(whole)

    def test_a_piece_that_does_not_continue_it_is_not_taken(self, keeping: Keeping) -> None:
        arriving = Arriving(keeping, "b")
        assert arriving.take(0, b"12345", last=False, provenance=b"") == 5
        assert arriving.take(3, b"45678", last=True, provenance=b"") == 5
        assert not keeping.has("b")

    def test_one_that_is_damaged_is_not_kept_and_leaves_nothing(self, keeping: Keeping) -> None:
        with pytest.raises(SourceError):
            Arriving(keeping, "b").take(0, b"no stream", last=True, provenance=b"")
        assert list(Path(keeping.folder).iterdir()) == []

    def test_one_that_is_too_large_is_refused_at_its_first_byte_too_many(
        self, keeping: Keeping
    ) -> None:
        arriving = Arriving(keeping, "b")
        arriving.take(0, bytes(keeping.most_of_one), last=False, provenance=b"")
        with pytest.raises(SourceError, match="larger than"):
            arriving.take(keeping.most_of_one, b"1", last=False, provenance=b"")
