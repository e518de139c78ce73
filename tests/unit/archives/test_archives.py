"""Archives from elsewhere: what is kept, what is refused, and that nothing gets out."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.archives.members import REGULAR, SYMBOLIC_LINK, ArchiveLimits, Guard, Member
from buildrunner.archives.reader import chunk_reader, safe_members
from buildrunner.archives.tar_reader import TarReader
from buildrunner.archives.tar_writer import pack
from buildrunner.errors import SourceError


def entry(name, kind=tarfile.REGTYPE, content=b"", target="", mode=0o644, mtime=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, target, mode, len(content)
    info.mtime = mtime
    return info, content


def tar_of(*entries, form=tarfile.PAX_FORMAT, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form, errors="surrogateescape") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def repacked(data, name="source.tar", **limits):
    return b"".join(pack(safe_members(io.BytesIO(data), name, limits=ArchiveLimits(**limits))))


def members(data, name="source.tar"):
    with tarfile.open(fileobj=io.BytesIO(repacked(data, name)), errors="surrogateescape") as tar:
        return {
            member.name: (member, tar.extractfile(member).read() if member.isreg() else b"")
            for member in tar
        }


# --- kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_ordinary_archives_survive_in_every_format(form, mode):
    long = f"{'d' * 90}/{'e' * 60}/{'n' * 90}"
    kept = members(
        tar_of(
            entry("./"),
            entry("./a", content=b"x" * 700, mode=0o4755, mtime=1_600_000_000),
            entry("dir", tarfile.DIRTYPE, mode=0o2750),
            entry(long, content=b"long"),
            entry("dir/link", tarfile.SYMTYPE, target="../a"),
            entry("hard", tarfile.LNKTYPE, target="./a"),
            form=form,
            mode=mode,
        )
    )
    assert set(kept) == {"a", "dir", long, "dir/link", "hard"}
    a, content = kept["a"]
    assert content == b"x" * 700
    assert (a.mode, a.uid, a.gid, a.uname, a.mtime) == (0o755, 0, 0, "root", 1_600_000_000)
    assert kept["dir"][0].mode == 0o750
    assert kept["dir/link"][0].linkname == "../a"
    assert (kept["hard"][0].type, kept["hard"][0].linkname) == (tarfile.LNKTYPE, "a")


def test_exact_times_and_large_numbers_survive():
    kept = members(tar_of(entry("a", mtime=1_600_000_000.25), entry("b", mtime=-5.5)))
    assert kept["a"][0].mtime == 1_600_000_000.25
    assert kept["b"][0].mtime == -5.5
    kept = members(tar_of(entry("a", mtime=2**40), form=tarfile.GNU_FORMAT))
    assert kept["a"][0].mtime == 2**40


def test_an_archive_by_gnu_tar_is_the_same_afterwards(tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / os.fsdecode(b"caf\xe9")).write_bytes(b"1")
    (source / "sub" / ("n" * 200)).write_bytes(b"2" * 100_000)
    (source / "sub/link").symlink_to("../sub")
    archive = subprocess.run(
        ["tar", "czf", "-", "-C", str(source), "."], capture_output=True, check=True
    ).stdout
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["tar", "xf", "-"], input=repacked(archive, "x.tgz"), cwd=target, check=True)
    subprocess.run(["diff", "-r", "--no-dereference", str(source), str(target)], check=True)


def test_a_zip_keeps_modes_links_and_folders():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("plain", "p" * 5000)
        archive.mkdir("dir")
        run = zipfile.ZipInfo("dir/run.sh")
        run.external_attr = (stat.S_IFREG | 0o4755) << 16
        archive.writestr(run, "#!/bin/sh\n")
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "dir/run.sh")
    kept = members(buffer.getvalue(), "source.zip")
    assert kept["plain"][1] == b"p" * 5000
    assert kept["dir"][0].isdir()
    assert kept["dir/run.sh"][0].mode == 0o755
    assert kept["link"][0].linkname == "dir/run.sh"


def test_several_gzip_members_and_zeros_at_the_end_are_one_archive():
    data = tar_of(entry("a", content=b"1" * 3000))
    packed = gzip.compress(data[:1000]) + gzip.compress(data[1000:]) + bytes(5000)
    assert members(packed)["a"][1] == b"1" * 3000


def test_zeros_behind_gzip_may_come_in_any_pieces():
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 3000))

    packed = gzip.compress(tar_of(entry("a", content=os.urandom(5000)))) + bytes(9000)
    assert [one.path for one, _ in safe_members(Slow(packed), "x.tgz")] == ["a"]


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("../x")], "'../x' lies outside the workspace"),
        ([entry("a/../../x")], "lies outside the workspace"),
        ([entry("/etc/passwd")], "lies outside the workspace"),
        (
            [entry("l", tarfile.SYMTYPE, target="/etc"), entry("l/x")],
            "would be reached through the link 'l'",
        ),
        (
            [entry("a/l", tarfile.SYMTYPE, target="../../x"), entry("a/l/y")],
            "would be reached through the link 'a/l'",
        ),
        (
            [entry("l", tarfile.SYMTYPE, target="../workspace-not"), entry("l", tarfile.SYMTYPE)],
            "is a link to nothing",
        ),
        ([entry("l", tarfile.SYMTYPE, target="")], "is a link to nothing"),
        (
            [entry("l", tarfile.SYMTYPE, target="."), entry("l/x")],
            "would be reached through the link 'l'",
        ),
        ([entry("f"), entry("f/x")], "would lie below the file 'f'"),
        (
            [entry("d/"), entry("d/e/f"), entry("d/e/f/g/h/i")],
            "'d/e/f/g/h/i' would lie below the file 'd/e/f'",
        ),
        ([entry("a/" * 2048 + "x")], "/a/...' has a path of more than 4,096 bytes"),
        ([entry("x" * 4097)], "xxx...' has a path of more than 4,096 bytes"),
        ([entry("h", tarfile.LNKTYPE, target="../x")], "is a hard link to no file"),
        (
            [entry("h", tarfile.LNKTYPE, target="later"), entry("later")],
            "is a hard link to no file",
        ),
        (
            [
                entry("d/f"),
                entry("b", tarfile.SYMTYPE, target="."),
                entry("d", tarfile.SYMTYPE, target="b/b/../workspace"),
                entry("h", tarfile.LNKTYPE, target="d/f"),
            ],
            "would be reached through the link 'd'",
        ),
        ([entry("d", tarfile.CHRTYPE)], "holds a device"),
        ([entry("d", tarfile.BLKTYPE)], "holds a device"),
        ([entry("p", tarfile.FIFOTYPE)], "holds a named pipe"),
        ([entry("u", b"Z")], "unknown type"),
    ],
)
def test_what_could_get_out_is_refused_in_one_sentence(entries, message):
    with pytest.raises(SourceError) as caught:
        repacked(tar_of(*entries))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_who_packed_absolute_names_is_told_how_to_pack():
    with pytest.raises(SourceError) as caught:
        repacked(tar_of(entry("/home/me/app/main.go")))
    assert caught.value.hint.endswith("tar -C FOLDER -czf source.tgz .")


@pytest.mark.parametrize(
    "target",
    ["/workspace/a", "/usr/bin/env", "/nowhere/at/all", "..", "../../elsewhere", "x/../../../y"],
)
def test_a_link_is_kept_as_it_is_wherever_it_points(target):
    kept = members(tar_of(entry("l", tarfile.SYMTYPE, target=target), entry("l2/x")))
    assert kept["l"][0].linkname == target


def test_a_folder_may_take_the_place_of_a_link():
    assert set(
        members(
            tar_of(
                entry("l", tarfile.SYMTYPE, target="."),
                entry("l", tarfile.DIRTYPE),
                entry("l/x"),
            )
        )
    ) == {"l", "l/x"}


def test_an_encrypted_or_odd_zip_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        device = zipfile.ZipInfo("dev")
        device.external_attr = (stat.S_IFCHR | 0o600) << 16
        archive.writestr(device, "")
    with pytest.raises(SourceError, match="'dev' is a device or pipe"):
        repacked(buffer.getvalue(), "x.zip")
    data = bytearray(buffer.getvalue())
    data[data.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(SourceError, match="'dev' is encrypted"):
        repacked(bytes(data), "x.zip")


@pytest.mark.parametrize("data", [b"", b"hello", bytes(100), b"\x1f\x8b123", os.urandom(2000)])
def test_what_is_no_archive_is_refused(data):
    for name in ("x.tar.gz", "x.zip"):
        with pytest.raises(SourceError, match=r"source archive is (damaged|empty)"):
            repacked(data, name)


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize(
    "holes",
    [
        [],
        [(0, b"begin")],
        [(300_000, b"middle"), (2_000_000, b"e")],
        [(at * 20_000, b"some") for at in range(60)],
    ],
)
def test_a_sparse_file_is_whole_again(tmp_path, holes, form):
    with open(tmp_path / "sparse", "wb") as file:
        for offset, content in holes:
            file.seek(offset)
            file.write(content * 1000)
        file.truncate(3_000_000)
    (tmp_path / "after").write_bytes(b"after")
    kind = f"--format={form}" if "gnu" in form else f"--format=pax --sparse-version={form}"
    argv = ["tar", "c", *kind.split(), "--sparse", "-C", str(tmp_path), "sparse", "after"]
    data = subprocess.run(argv, capture_output=True, check=True).stdout
    assert (b"GNU.sparse." in data) is ("gnu" not in form)
    assert len(data) < 1_000_000
    kept = members(data)
    assert kept["sparse"][1] == (tmp_path / "sparse").read_bytes()
    assert kept["after"][1] == b"after"
    with pytest.raises(SourceError, match="more than 200 times its size"):
        repacked(gzip.compress(data), ratio_from_bytes=1000)
    skipped = list(safe_members(io.BytesIO(data), "x.tar"))  # nobody asks for the content
    assert [member.path for member, _ in skipped] == ["sparse", "after"]


@pytest.mark.parametrize(
    "map_", [b"", b"x\n", b"1\n0\n600\n", b"2\n5\n1\n0\n1\n", b"9" * 30 + b"\n", b"99999999\n"]
)
def test_a_sparse_file_with_a_map_that_is_none_is_refused(map_):
    info, content = entry("x", content=(map_.ljust(512, b"\0") + b"1" * 20))
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "x",
        "GNU.sparse.realsize": "100",
    }
    with pytest.raises(SourceError, match="damaged: the map of a sparse file can't be read"):
        repacked(tar_of((info, content)))


def test_the_invented_name_of_a_sparse_file_may_be_cut_anywhere():
    info, content = entry("d/GNUSparseFile.1/", content=b"1\n0\n4\n".ljust(512, b"\0") + b"data")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "d/real",
        "GNU.sparse.realsize": "6",
    }
    kept = members(tar_of((info, content), entry("after")))
    assert kept["d/real"][1] == b"data\0\0"
    assert "after" in kept


def old_sparse(size, *numbers):
    """A header of GNU's own sparse format, with pieces of the given offsets and lengths."""
    block = bytearray(tar_of(entry("x", tarfile.GNUTYPE_SPARSE), form=tarfile.GNU_FORMAT)[:512])
    for at, number in enumerate(numbers):
        block[386 + 12 * at : 398 + 12 * at] = (
            number.to_bytes(12, signed=True) if number < 0 else (b"%011o\0" % number)
        )
    block[483:495] = size.to_bytes(12, signed=True) if size < 0 else b"%011o\0" % size
    return with_sum(block) + bytes(1024)


def with_sum(block):
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


@pytest.mark.parametrize(
    ("size", "numbers"),
    [(-1, ()), (100, (50, 60)), (100, (-5, 5)), (100, (50, -5)), (100, (50, 10, 55, 1)), (9, (1,))],
)
def test_an_old_sparse_file_with_pieces_out_of_place_is_refused(size, numbers):
    with pytest.raises(SourceError, match="damaged: the map of a sparse file can't be read"):
        repacked(old_sparse(size, *numbers))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, b"D"])
def test_a_size_below_zero_is_refused(kind):
    block = bytearray(tar_of(entry("x", kind)))
    block[124:136] = (-600).to_bytes(12, signed=True)
    with pytest.raises(SourceError, match="damaged: a header holds a size below zero"):
        repacked(with_sum(block))


def test_a_second_name_of_a_symbolic_link_is_a_link_like_it(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a").symlink_to("../nowhere")
    os.link(source / "a", source / "b", follow_symlinks=False)
    argv = ["tar", "c", "-C", str(source), "a", "b"]
    data = subprocess.run(argv, capture_output=True, check=True).stdout
    kept = members(data)
    assert [kept[name][0].linkname for name in ("a", "b")] == ["../nowhere", "../nowhere"]
    target.mkdir()
    subprocess.run(["tar", "x"], input=data, cwd=target, check=True)
    assert (target / "b").readlink() == Path("../nowhere")


def test_what_is_written_through_a_second_name_of_a_link_is_refused():
    data = tar_of(
        entry("a", tarfile.SYMTYPE, target="/etc"),
        entry("b", tarfile.LNKTYPE, target="a"),
        entry("b/x"),
    )
    with pytest.raises(SourceError, match="would be reached through the link 'b'"):
        repacked(data)


def test_the_check_of_deep_paths_takes_a_time_that_grows_as_their_length():
    guard = Guard(ArchiveLimits())
    guard.admit(Member(path="l", kind=SYMBOLIC_LINK, link_target="x"))
    started = time.thread_time()
    for number in range(1000):
        guard.admit(Member(path=f"{'a/' * 2040}{number}", kind=REGULAR))
    # A digest of each folder's whole path would take 1000 * 2040 * 2 KiB, which is 4 GB.
    assert time.thread_time() - started < 1.5


def test_labels_and_lists_of_folders_are_left_out_as_tar_does(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"f")
    listed = f"--listed-incremental={tmp_path / 'list'}"
    argv = ["tar", "c", "--label=TODAY", listed, "-C", str(tmp_path), "d"]
    kept = members(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert set(kept) == {"d", "d/f"}
    assert kept["d"][0].isdir()
    assert kept["d/f"][1] == b"f"


def test_names_in_a_zip_from_unix_are_bytes():
    names = {b"0-": "é".encode(), b"1-": b"\xff\\", b"2-": b"n\n"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name.decode(), "")
        archive.writestr("ü", "")  # says that it is UTF-8
    data = buffer.getvalue()
    for name, raw in names.items():
        data = data.replace(name, raw)
    kept = {os.fsencode(name) for name in members(data, "x.zip")}
    assert kept == {*names.values(), "ü".encode()}


def test_a_zip_from_dos_may_have_backslashes_between_folders():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("dir\\", "dir\\f", "a\\b/c", "é"):
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            archive.writestr(info, "")
        archive.writestr("on\\unix", "")
    kept = members(buffer.getvalue(), "x.zip")
    assert set(kept) == {"dir", "dir/f", "a\\b/c", "é", "on\\unix"}
    assert kept["dir"][0].isdir()
    outside = buffer.getvalue().replace(b"dir\\f", b"\\etc\\")
    with pytest.raises(SourceError, match="'/etc' lies outside the workspace"):
        repacked(outside, "x.zip")


@pytest.mark.parametrize(("date", "day"), [(0, 1), (0b1111_00000, 1), (31, 31)])
def test_a_zip_may_know_no_date(date, day):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("f"), "content")
    data = buffer.getvalue().replace(
        (0b0001_00001).to_bytes(2, "little"), date.to_bytes(2, "little")
    )
    found, content = members(data, "x.zip")["f"]
    assert content == b"content"
    assert time.gmtime(found.mtime)[0] == 1980
    assert time.gmtime(found.mtime)[2] == day


def test_a_zip_of_an_unknown_kind_says_so():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("f", "content")
    data = bytearray(buffer.getvalue())
    data[8], data[data.index(b"PK\1\2") + 10] = 9, 9  # Deflate64
    with pytest.raises(SourceError, match="a zip of a kind that is not read here") as caught:
        repacked(bytes(data), "x.zip")
    assert "zip -r" in caught.value.hint


@pytest.mark.parametrize(
    ("compress", "what"),
    [
        (lzma.compress, "it is compressed with xz; what is read is gzip"),
        (bz2.compress, "it is compressed with bzip2; what is read is gzip"),
        (lambda data: gzip.compress(gzip.compress(data)), "it is compressed with gzip twice"),
    ],
)
def test_another_compression_is_named(compress, what):
    data = compress(tar_of(entry("a", content=os.urandom(2000))))
    with pytest.raises(SourceError, match=f"^the source archive is damaged: {what}$"):
        repacked(data, "x.tgz")


def test_a_zip_by_another_name_is_named_and_a_name_like_a_compression_is_none():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", os.urandom(2000))
    with pytest.raises(SourceError, match=r"it is a zip, and its name does not end in \.zip$"):
        repacked(buffer.getvalue(), "x.tgz")
    assert set(members(tar_of(entry("BZh91AY&SY")))) == {"BZh91AY&SY"}


@pytest.mark.parametrize("compress", [lambda data: data, gzip.compress])
def test_an_archive_cut_in_a_member_or_its_gzip_is_refused(compress):
    """As GNU tar does, but for a cut in the middle of a header, which that does not see."""
    ends = {512 + 3072 + more for more in range(512 + 1)}  # behind the member, and in zeros
    plain = tar_of(entry("a", content=b"x" * 3000), form=tarfile.USTAR_FORMAT)[:4096]
    whole = compress(plain)
    assert members(whole)["a"][1] == b"x" * 3000
    for length in [*range(0, len(whole) - 1, 7), *range(3570, min(3600, len(whole)))]:
        if compress is gzip.compress or length not in ends:
            with pytest.raises(SourceError):
                repacked(whole[:length])
        else:
            assert members(whole[:length])["a"][1] == b"x" * 3000


@pytest.mark.parametrize("compress", [lambda data: data, gzip.compress])
@pytest.mark.parametrize("zeros", [0, 100, 512, 1024, 9000])
def test_the_zeros_at_the_end_may_be_missing_as_with_gnu_tar(compress, zeros, tmp_path):
    bare = tar_of(entry("a", content=b"1" * 600), entry("b"), form=tarfile.USTAR_FORMAT)
    data = compress(bare[: 512 + 1024 + 512] + bytes(zeros))
    unzip = ["-z"] if data[0] == 0x1F else []
    subprocess.run(["tar", "x", *unzip], input=data, cwd=tmp_path, check=True)
    assert {path.name for path in tmp_path.iterdir()} == set(members(data)) == {"a", "b"}


def test_an_extended_header_without_its_member_is_a_cut():
    whole = tar_of(entry("a"), entry("n" * 200), form=tarfile.PAX_FORMAT)
    assert set(members(whole[: 4 * 512 + 512])) == {"a", "n" * 200}
    for length in (512, 2 * 512, 3 * 512):
        if length == 512:
            assert set(members(whole[:length])) == {"a"}
        else:
            with pytest.raises(SourceError, match="breaks off"):
                repacked(whole[:length])


def test_what_the_engine_packs_has_to_have_an_end():
    bare = tar_of(entry("a"))[:512]
    with pytest.raises(SourceError, match="breaks off"):
        list(TarReader(io.BytesIO(bare)).members())


def test_a_wrong_sum_at_the_end_of_gzip_is_found():
    packed = bytearray(gzip.compress(tar_of(entry("a"))))
    packed[-6] ^= 1
    with pytest.raises(SourceError, match="incorrect data check"):
        repacked(bytes(packed))


def test_bombs_are_refused_before_they_go_off():
    zeros = gzip.compress(tar_of(entry("a", content=bytes(90_000_000))), compresslevel=1)
    with pytest.raises(SourceError, match="more than 200 times its size"):
        repacked(zeros)
    hidden = gzip.compress(tar_of(entry("a")) + bytes(90_000_000), compresslevel=1)
    with pytest.raises(SourceError, match="more than 200 times its size"):
        repacked(hidden)
    with pytest.raises(SourceError, match="more than 5 members"):
        repacked(tar_of(*(entry(f"f{number}") for number in range(6))), members=5)
    with pytest.raises(SourceError, match="more than 0 GiB"):
        repacked(tar_of(entry("a", content=bytes(2000))), size_bytes=1000)


def test_a_header_that_claims_gigabytes_takes_no_memory():
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 5 * 1024**3
    data = info.tobuf() + bytes(4096)
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="extended header claims"):
            repacked(data)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def extended(content, kind=tarfile.XHDTYPE, claimed=None):
    """A header of ``kind`` with its content, filled up to whole blocks."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(content) if claimed is None else claimed
    return info.tobuf() + content + bytes(-len(content) % 512)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"X", b"g"])
def test_every_kind_of_extended_header_is_bounded(kind):
    with pytest.raises(SourceError, match="an extended header claims 5000000 bytes"):
        repacked(extended(b"", kind, claimed=5_000_000))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (extended(b"6 a=1\n"), "an extended header can't be read"),
        (extended(b"n" * 1_000_000, b"L"), "the headers of one member take more than 4 MiB"),
    ],
)
def test_headers_upon_headers_take_little_memory(header, message):
    stream = chunk_reader(header for _ in range(10_000))
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=message):
            list(safe_members(stream, "x.tar"))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(60)
def test_a_number_without_end_takes_no_time():
    """A search of `tarfile` takes quadratic time for it in Python before 3.11.10."""
    with pytest.raises(SourceError, match="an extended header can't be read"):
        repacked(extended(b"1" * 1_000_000))


def test_an_endless_map_of_a_sparse_file_is_refused():
    numbers = b"1\n" * 3_000_000
    info = entry("x", content=b"9999999\n" + numbers)[0]
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    data = info.tobuf(tarfile.PAX_FORMAT) + b"9999999\n" + numbers
    with pytest.raises(SourceError, match="the headers of one member take more than 4 MiB"):
        list(safe_members(io.BytesIO(data), "x.tar"))


# --- nothing gets out, whatever is tried ---------------------------------------------------------

PARTS = st.sampled_from(["a", "b", "l", "..", ".", "", "/", "workspace"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
ENTRIES = st.lists(
    st.builds(
        entry,
        PATHS,
        st.sampled_from(
            [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]
        ),
        content=st.just(b""),
        target=PATHS,
        mode=st.integers(0, 0o7777),
    ),
    max_size=8,
)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(entries=ENTRIES)
def test_unpacking_as_root_never_touches_anything_outside(tmp_path, entries):
    room = tmp_path / "room"
    shutil.rmtree(room, ignore_errors=True)
    inside = room / "workspace"
    inside.mkdir(parents=True)
    (room / "a").write_text("canary")
    try:
        data = repacked(tar_of(*entries))
    except SourceError:
        return
    subprocess.run(
        ["tar", "xpf", "-"], input=data, cwd=inside, check=False, stderr=subprocess.DEVNULL
    )
    assert {path.name for path in room.iterdir()} == {"workspace", "a"}
    assert (room / "a").read_text() == "canary"
    for path in inside.rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        assert not mode & (stat.S_ISUID | stat.S_ISGID)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(), flips=st.integers(1, 12), zipped=st.booleans())
def test_damage_never_shows_as_anything_but_a_refusal(seed, flips, zipped):
    dice = random.Random(seed)
    data = bytearray(
        tar_of(
            entry("a" * 120, content=b"1" * 600),
            entry("d", tarfile.DIRTYPE),
            entry("d/l", tarfile.SYMTYPE, target="../a", mtime=1.5),
        )
    )
    if zipped:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", "1" * 600)
            archive.writestr("d/b", "2")
        data = bytearray(buffer.getvalue())
    for _ in range(flips):
        data[dice.randrange(len(data))] = dice.randrange(256)
    with contextlib.suppress(SourceError):  # nothing else may come out
        repacked(bytes(data), "x.zip" if zipped else "x.tar")
