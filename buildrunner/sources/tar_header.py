"""What stands in the headers of a tar stream: numbers, times, extended records, its checksum."""

from __future__ import annotations

from buildrunner.sources.archive_member import DamagedArchive

_OTHERS = {
    b"\x1f\x8b": "it is compressed with gzip twice",
    b"\xfd7zXZ\0": "it is compressed with xz; what is read is gzip",
    b"BZh": "it is compressed with bzip2; what is read is gzip",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; what is read is gzip",
    b"PK\3\4": "it is a zip, and its name does not end in .zip",
}
_NANOSECONDS = 1_000_000_000
_SPARSE_MAP = b"GNU.sparse.map"
_SPARSE_NUMBERS = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")


def check_sum(block: bytes) -> None:
    """Refuse a block that is no header, and say what it may be instead."""
    try:
        stored = number(block[148:156])
    except DamagedArchive:
        stored = -1
    if stored != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        raise DamagedArchive(_what_else(block))


def _what_else(block: bytes) -> str:
    """What begins with a block that is no header."""
    for magic, what in _OTHERS.items():
        if block.startswith(magic):
            return what
    return "a header's checksum is wrong"


def text(field: bytes) -> bytes:
    """What stands in a field before its first zero."""
    return field.split(b"\0", 1)[0]


def number(field: bytes) -> int:
    """Octal digits, or a binary number when the first bit is set (GNU)."""
    if field[0] & 0x80:
        if field[0] == 0xFF:
            return int.from_bytes(field, signed=True)
        return int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:])
    digits = text(field).strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise DamagedArchive("a header holds a number that is none") from None


def size_of(block: bytes) -> int:
    """How many bytes follow a header, by its own word."""
    size = number(block[124:136])
    if size < 0:
        raise DamagedArchive("a header holds a size below zero")
    return size


def decimal(digits: bytes) -> int:
    """A number of an extended record."""
    if not digits.isdigit() or len(digits) > 20:
        raise DamagedArchive("a header holds a number that is none")
    return int(digits)


def mtime_of(block: bytes, records: dict[bytes, bytes]) -> int:
    """Time of last change in nanoseconds."""
    exact = records.get(b"mtime")
    if exact is None:
        return number(block[136:148]) * _NANOSECONDS
    whole, _, fraction = exact.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    seconds = decimal(whole.removeprefix(b"-") or b"0")
    return sign * (seconds * _NANOSECONDS + decimal(fraction[:9].ljust(9, b"0")))


def pax_records(data: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE`` and a newline, again and again.

    The only keys that come several times are those of a sparse file's map in its first form: they
    become the map of its second.
    """
    records: dict[bytes, bytes] = {}
    while data.strip(b"\0"):
        digits, space, _ = data[:24].partition(b" ")
        length = decimal(digits) if space else 0
        record = data[:length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or record[-1:] != b"\n" or len(record) != length:
            raise DamagedArchive("an extended header can't be read")
        if key in _SPARSE_NUMBERS:
            known = records.get(_SPARSE_MAP)
            key, value = _SPARSE_MAP, value if known is None else known + b"," + value
        records[key] = value
        data = data[length:]
    return records
