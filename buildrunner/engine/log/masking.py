"""Masks secret values in everything that is shown or stored.

All forms of a value that tools commonly print become ``***``: the value itself, each of its lines,
base64 (both alphabets, at any position of a longer text), URL-encoded, escaped for JSON or a
shell, and hexadecimal.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Iterable

MINIMUM_LENGTH = 4
"""Shorter values occur everywhere in a log, so they are not masked. The user gets a warning."""

_WRAPPED_WIDTHS = (64, 76)  # the line lengths of openssl and base64
_JSON_SPECIALS_GO = "&<>"
_JSON_SPECIALS_DOTNET = "&<>'+`\""
_DOLLAR_QUOTED = {
    b"\\": b"\\\\",
    b"'": b"\\'",
    b"\n": b"\\n",
    b"\r": b"\\r",
    b"\t": b"\\t",
    b"\x1b": b"\\E",
}
_SHELL_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_")


def forms_of(value: bytes) -> set[bytes]:
    """Return every searched form of ``value``, each of at least `MINIMUM_LENGTH` bytes."""
    whole = value.strip(b"\r\n")
    pieces = _with_all_line_ends(whole)
    pieces.update(line.strip(b"\r") for line in whole.split(b"\n"))
    forms: set[bytes] = set()
    for piece in pieces:
        if len(piece) >= MINIMUM_LENGTH:
            forms |= _encoded_forms(piece)
    forms |= _dump_forms(whole)
    if value != whole:
        forms |= _base64_forms(value)  # `base64 file` encodes the trailing newline too
    return {form for form in forms if len(form) >= MINIMUM_LENGTH}


def wrapped_forms_of(value: bytes) -> set[bytes]:
    """Return the forms that are also searched across the line breaks of base64."""
    forms: set[bytes] = set()
    for piece in (value, *_with_all_line_ends(value.strip(b"\r\n"))):
        forms |= _base64_forms(piece)
    return {form for form in forms if len(form) >= 2 * MINIMUM_LENGTH}


def _with_all_line_ends(whole: bytes) -> set[bytes]:
    """Return the value unchanged, with LF, and with CR LF, which terminals and some tools write."""
    unix = whole.replace(b"\r\n", b"\n")
    return {whole, unix, unix.replace(b"\n", b"\r\n")}


def _encoded_forms(piece: bytes) -> set[bytes]:
    return {
        piece,
        *_hex_forms(piece),
        *_base64_forms(piece),
        *_url_forms(piece),
        *_json_forms(piece),
        *_nested_json_forms(piece),
        *_program_forms(piece),
        *_shell_forms(piece),
        *_markup_forms(piece),
    }


def _hex_forms(piece: bytes) -> set[bytes]:
    forms = {piece.hex(), piece.hex(" "), piece.hex(":")}
    return {form.encode() for one in forms for form in (one, one.upper())}


def _dump_forms(whole: bytes) -> set[bytes]:
    """Return forms in lines of od, openssl, xxd and hexdump: the numbers, and the text beside."""
    forms = set(_lines_of(whole.hex(), 60))
    rows = [whole[at : at + 16] for at in range(0, len(whole), 16)]
    halves = [row[at : at + 8] for row in rows for at in (0, 8)]
    for part in (*rows, *halves):
        if len(part) >= MINIMUM_LENGTH:
            forms |= {part.hex(" "), part.hex(":"), part.hex(" ", -2)}
    texts = {row for row in rows if len(row) >= 2 * MINIMUM_LENGTH}
    return texts | {form.encode() for one in forms for form in (one, one.upper())}


def _lines_of(text: str, width: int) -> list[str]:
    """Return the lines of ``text``, without a last line that is too short to be specific."""
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    return [line for line in lines if len(line) >= 2 * MINIMUM_LENGTH]


def _url_forms(piece: bytes) -> set[bytes]:
    """Return forms in URLs. Encoders (RFC 3986, paths, JavaScript, forms) differ."""
    from urllib.parse import quote_from_bytes

    forms = set()
    for safe in ("", "/", "!'()*", ";,/?:@&=+$#!'()*", "*"):
        quoted = quote_from_bytes(piece, safe)
        for spaced in (quoted, quoted.replace("%20", "+")):
            for form in (spaced, spaced.replace("~", "%7E")):
                forms |= {form.encode(), _lower_escapes(form)}
    return forms


def _json_forms(piece: bytes) -> set[bytes]:
    r"""Return forms in JSON strings; some encoders write ``\/``, some ``\u0026`` for ``&``."""
    import json

    text = piece.decode("utf-8", "surrogateescape")
    forms = set()
    for ascii_only in (True, False):
        escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        forms |= {escaped, escaped.replace("/", "\\/")}
        for special in (_JSON_SPECIALS_GO, _JSON_SPECIALS_DOTNET):
            form = escaped.replace('\\"', "\\u0022") if '"' in special else escaped
            for char in special:
                form = form.replace(char, f"\\u{ord(char):04x}")
            forms |= {form, _upper_unicode(form)}
        forms.add(_upper_unicode(escaped))
    return {form.encode("utf-8", "surrogateescape") for form in forms}


def _nested_json_forms(piece: bytes) -> set[bytes]:
    """Return forms in JSON within a JSON string, such as a request's body in a structured log."""
    import json

    text = piece.decode("utf-8", "surrogateescape")
    forms = set()
    for ascii_only in (True, False):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        forms.add(json.dumps(once, ensure_ascii=ascii_only)[1:-1])
    return {form.encode("utf-8", "surrogateescape") for form in forms}


def _program_forms(piece: bytes) -> set[bytes]:
    """Return forms that Python prints: ``b'...'`` and ``'...'``, in either kind of quotes."""
    text = piece.decode("utf-8", "surrogateescape")
    forms = {repr(piece)[2:-1], repr(text)[1:-1], ascii(text)[1:-1]}
    forms |= {form.replace("\\'", "'").replace("'", "\\'") for form in tuple(forms)}
    return {form.encode("utf-8", "surrogateescape") for form in forms}


def _upper_unicode(escaped: str) -> str:
    head, *rest = escaped.split("\\u")
    return head + "".join(f"\\u{part[:4].upper()}{part[4:]}" for part in rest)


def _markup_forms(piece: bytes) -> set[bytes]:
    """Return forms in XML and HTML, and between single quotes in YAML and SQL."""
    import html

    text = piece.decode("utf-8", "surrogateescape")
    whole = html.escape(text)  # both quotes
    forms = {
        html.escape(text, quote=False),
        whole,
        whole.replace("&#x27;", "&#39;"),
        whole.replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
        whole.replace("&#x27;", "&apos;"),
        whole.replace("&#x27;", "'"),
        text.replace("'", "''"),
    }
    return {form.encode("utf-8", "surrogateescape") for form in forms}


def _lower_escapes(quoted: str) -> bytes:
    """Return the text with ``%2F`` as ``%2f``, and other letters unchanged."""
    head, *rest = quoted.split("%")
    return "".join([head, *(f"%{part[:2].lower()}{part[2:]}" for part in rest)]).encode()


def _shell_forms(piece: bytes) -> set[bytes]:
    """Return forms in shells: ``'...'``, ``"..."``, ``$'...'``, backslashes; no outer quotes."""
    backslashed = b"".join(
        bytes([byte]) if byte in _SHELL_SAFE or byte >= 0x80 else b"\\" + bytes([byte])
        for byte in piece
    )
    in_double = piece
    for special in (b"\\", b'"', b"$", b"`"):
        in_double = in_double.replace(special, b"\\" + special)
    in_dollar = piece
    for special, escape in _DOLLAR_QUOTED.items():
        in_dollar = in_dollar.replace(special, escape)
    return {
        in_dollar,
        piece.replace(b"'", b"\\'"),
        piece.replace(b"'", b"'\\''"),
        piece.replace(b"'", b"'\"'\"'"),
        in_double,
        backslashed,
        backslashed.replace(b"\\~", b"~"),  # bash escapes it only at the beginning
    }


def _base64_forms(piece: bytes) -> set[bytes]:
    """Return forms in base64: of ``piece`` alone, in wrapped lines, and within a longer text.

    In a longer text, ``piece`` has three alignments. Its first and last characters there mix in
    bits of its neighbours; only the characters between them are certain.
    """
    import base64

    forms: set[bytes] = set()
    for shift in range(3):
        padded = b"\0" * shift + piece
        first = (shift * 8 + 5) // 6
        certain = len(padded) * 8 // 6
        encoded = base64.b64encode(padded)[first:certain]
        forms |= {encoded, encoded.translate(bytes.maketrans(b"+/", b"-_"))}
    whole = base64.b64encode(piece)
    for form in (whole, base64.urlsafe_b64encode(piece)):
        forms |= {form, form.rstrip(b"=")}
    for width in _WRAPPED_WIDTHS:
        if len(whole) > width:
            lines = [whole[at : at + width].rstrip(b"=") for at in range(0, len(whole), width)]
            forms.update(line for line in lines if len(line) >= 2 * MINIMUM_LENGTH)
    return {form for form in forms if len(form) >= MINIMUM_LENGTH}


MASK = b"***"

# base64 and openssl break lines at 76 or 64 characters, also in the middle of a secret.
_LINE = 60
_LINE_BREAK = re.compile(rb"\r?\n[ \t]*|\r\Z")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"


class Masker:
    """Masks a set of secret byte strings. Immutable, so any thread may use it."""

    def __init__(self, values: Iterable[str]) -> None:
        forms: set[bytes] = set()
        wrapped: set[bytes] = set()
        too_short = 0
        for value in values:
            raw = value.encode("utf-8", "surrogateescape")
            if len(raw.strip(b"\r\n")) < MINIMUM_LENGTH:
                too_short += bool(raw)
                continue
            forms |= forms_of(raw)
            wrapped |= wrapped_forms_of(raw)
        self.too_short = too_short
        """Number of values that are too short to be hidden."""
        self._forms = SecretSearch(forms)
        self._wrapped = SecretSearch(wrapped)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def stream(self) -> MaskingStream:
        """Return a masker for one stream of bytes."""
        return MaskingStream(self._forms, self._wrapped)

    def mask(self, data: bytes, *, cut: bool = False) -> bytes:
        """Return ``data`` with every secret masked.

        Args:
            data: the bytes to show.
            cut: whether the data was truncated. Then the beginning of a secret at its end is
                masked, too.
        """
        if not self._forms:
            return data
        stream = self.stream()
        shown = stream.feed(data)
        if cut and stream.held:
            return shown + MASK
        return shown + stream.finish()

    def mask_text(self, text: str) -> str:
        """Mask the secrets in a text."""
        if not self._forms:
            return text
        return self.mask(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def mask_error(self, error: BaseException) -> None:
        """Mask every secret in the arguments of an exception, and of its causes."""
        chain: list[BaseException | None] = [error]
        seen: set[int] = set()
        while chain:
            one = chain.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            one.args = tuple(map(self._masked_argument, one.args))
            chain += (one.__cause__, one.__context__)

    def _masked_argument(self, argument: object) -> object:
        if isinstance(argument, str):
            return self.mask_text(argument)
        if isinstance(argument, bytes):
            return self.mask(argument)
        if argument is None or isinstance(argument, int | float):
            return argument
        shown = repr(argument)
        masked = self.mask_text(shown)
        return argument if masked == shown else masked


class MaskingStream:
    """Masks one stream in chunks of any size. Order and newlines stay.

    Bytes that may begin a secret are held back until the next bytes decide. Their number is at
    most the length of the longest form of a secret. The output does not depend on the chunking.
    """

    def __init__(self, forms: SecretSearch, wrapped: SecretSearch) -> None:
        self._forms = forms
        self._wrapped = wrapped
        self._held = b""
        self._covered = 0  # number of bytes of _held that a written mask covers already
        self._before = b""  # the end of the data before _held

    @property
    def held(self) -> bytes:
        """Bytes that were not returned yet, because they may begin a secret."""
        return self._held

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes, and return all received bytes that can be shown and were not returned yet."""
        data = self._held + chunk if self._held else chunk
        spans, cut = self._secret_spans(data)
        shown = self._render(data, cut, spans)
        self._covered = max((end - cut for start, end in spans if start < cut < end), default=0)
        self._held = data[cut:]
        self._before = (self._before + data[max(0, cut - _LINE) : cut])[-_LINE:]
        return shown

    def finish(self) -> bytes:
        """Return the rest at the end of the stream."""
        data, self._held = self._held, b""
        spans, _ = self._secret_spans(data)
        shown = self._render(data, len(data), spans)
        self._covered = 0
        return shown

    def _secret_spans(self, data: bytes) -> tuple[list[tuple[int, int]], int]:
        """Return the spans of secrets, joined and ascending, and the start of a possible next one.

        A span with a negative start began in data that was masked before.
        """
        spans, cut = self._forms.scan(data)
        if self._covered:
            spans.append((-1, self._covered))
        lines = _joined_lines(self._before, data)
        if lines is not None:
            wrapped, undecided = self._wrapped.scan(lines.text)
            spans += [(lines.place(start), lines.place(end - 1) + 1) for start, end in wrapped]
            cut = min(cut, lines.place(undecided))
        if len(spans) < 2:
            return spans, cut
        spans.sort()
        joined = [spans[0]]
        for start, end in spans[1:]:
            if start < joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return joined, cut

    @staticmethod
    def _render(data: bytes, cut: int, spans: Iterable[tuple[int, int]]) -> bytes:
        """Return ``data[:cut]`` with the spans masked; newlines in a span stay."""
        if not spans:
            return data[:cut]
        parts: list[bytes] = []
        shown = 0
        for start, end in spans:
            if start >= cut:
                break
            if start >= 0:
                parts += (data[shown:start], MASK)
            inside = data[max(start, 0) : min(end, cut)]
            parts.append((b"\n" + MASK) * inside.count(b"\n"))
            shown = min(end, cut)
        parts.append(data[shown:cut])
        return b"".join(parts)


class _JoinedLines:
    """Bytes without the line breaks of base64, and a map to their original positions.

    Attributes:
        text: the joined bytes.
    """

    def __init__(self, data: bytes, breaks: Iterable[tuple[int, int]]) -> None:
        self._size = len(data)
        self._starts: list[int] = []  # in text, ascending
        self._places: list[int] = []  # positions of the same bytes in data
        parts: list[bytes] = []
        length = begin = 0
        for end, following in (*breaks, (len(data), len(data))):
            if end > begin:
                self._starts.append(length)
                self._places.append(begin)
                parts.append(data[begin:end])
                length += end - begin
            begin = following
        self.text = b"".join(parts)

    def place(self, at: int) -> int:
        """Return the position in the data of a position in ``text``; the end maps to the end."""
        if at >= len(self.text):
            return self._size
        part = bisect_right(self._starts, at) - 1
        return self._places[part] + at - self._starts[part]


def _joined_lines(before: bytes, data: bytes) -> _JoinedLines | None:
    """Return ``data`` with wrapped lines of base64 joined; None if there are none.

    Args:
        before: the end of the data before ``data``, enough to decide whether a line is full.
        data: bytes of the stream.
    """
    if b"\n" not in data and not data.endswith(b"\r"):
        return None
    shift = len(before)
    context = before + data
    breaks = [
        (max(found.start() - shift, 0), found.end() - shift)
        for found in _LINE_BREAK.finditer(context)
        if found.start() >= _LINE and found.end() > shift and _is_full(context, found.start())
    ]
    return _JoinedLines(data, breaks) if breaks else None


def _is_full(context: bytes, end: int) -> bool:
    line = context[end - _LINE : end]
    return b" " not in line and not line.translate(None, _BASE64)


_WORD = 4  # size of an "I" of memoryview; no form is shorter
assert _WORD <= MINIMUM_LENGTH  # noqa: S101  (else short forms would never be found)


class SecretSearch:
    """The byte strings to search for. Immutable, so that any thread may use it.

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
        """Return every occurrence of a form, ascending, and the start of the undecided rest.

        The undecided rest of ``data`` is the beginning of a form, which may continue.
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
        """Return the positions at which the first bytes of a form occur, ascending."""
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
