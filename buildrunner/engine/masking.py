"""Keeps secret values out of everything that is shown or stored.

All forms of a value that tools commonly print are covered with ``***``: as it is, each line of it,
base64 (both alphabets, wherever it stands in a longer text), URL-encoded, escaped for JSON or a
shell, and hexadecimal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MASK = b"***"
MINIMUM_LENGTH = 4
"""Shorter values are everywhere in a log; hiding them would hide the log. They are reported."""

_WRAPPED_WIDTHS = (64, 76)  # openssl and base64 break their lines there
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


class Masker:
    """Which byte strings are secret. Immutable, so that any thread may use it."""

    def __init__(self, values: Iterable[str]) -> None:
        forms: set[bytes] = set()
        too_short = 0
        for value in values:
            raw = value.encode("utf-8", "surrogateescape")
            if len(raw.strip(b"\r\n")) < MINIMUM_LENGTH:
                too_short += bool(raw)
                continue
            forms |= forms_of(raw)
        self.too_short = too_short
        """How many values are too short to be hidden."""
        self._forms = tuple(sorted(forms))

    def __bool__(self) -> bool:
        return bool(self._forms)

    def stream(self) -> MaskingStream:
        """A masker for one stream of bytes."""
        return MaskingStream(self._forms)

    def mask(self, data: bytes, *, cut: bool = False) -> bytes:
        """``data`` as a whole, with every secret covered.

        Args:
            data: what to show.
            cut: it was longer once; should it end in the beginning of a secret, that is covered.
        """
        if not self._forms:
            return data
        stream = self.stream()
        shown = stream.feed(data)
        if cut and stream.held:
            return shown + MASK
        return shown + stream.finish()

    def mask_text(self, text: str) -> str:
        """The same for text."""
        if not self._forms:
            return text
        return self.mask(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


class MaskingStream:
    """Masks one stream, however it is cut into chunks; order and newlines stay as they are.

    Bytes that may be the beginning of a secret are held back until it is known, at most as many as
    the longest secret form has. The output does not depend on the chunking.
    """

    def __init__(self, forms: Sequence[bytes]) -> None:
        self._forms = forms
        self._held = b""
        self._covered = 0  # so many bytes of _held lie under a mask that was written already

    @property
    def held(self) -> bytes:
        """What was not shown yet, because it may be the beginning of a secret."""
        return self._held

    def feed(self, chunk: bytes) -> bytes:
        """What can be shown of all that came so far and was not shown yet."""
        data = self._held + chunk if self._held else chunk
        spans = self._secret_spans(data)
        cut = self._undecided_from(data)
        shown = self._render(data, cut, spans)
        self._covered = max((end - cut for start, end in spans if start < cut < end), default=0)
        self._held = data[cut:]
        return shown

    def finish(self) -> bytes:
        """The rest, at the end of the stream."""
        data, self._held = self._held, b""
        shown = self._render(data, len(data), self._secret_spans(data))
        self._covered = 0
        return shown

    def _secret_spans(self, data: bytes) -> list[tuple[int, int]]:
        """Where secrets are, overlapping ones joined, ascending. A negative start was masked."""
        spans = [(-1, self._covered)] if self._covered else []
        for form in self._forms:
            at = data.find(form)
            while at >= 0:
                spans.append((at, at + len(form)))
                at = data.find(form, at + 1)
        if len(spans) < 2:
            return spans
        spans.sort()
        joined = [spans[0]]
        for start, end in spans[1:]:
            if start < joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return joined

    def _undecided_from(self, data: bytes) -> int:
        """Where the longest end of ``data`` starts that may become a secret with more bytes."""
        cut = len(data)
        for form in self._forms:
            start = max(0, len(data) - len(form) + 1)
            head = form[:1]
            at = data.find(head, start, cut)
            while at >= 0:
                if form.startswith(data[at:]):
                    cut = at
                    break
                at = data.find(head, at + 1, cut)
        return cut

    @staticmethod
    def _render(data: bytes, cut: int, spans: Iterable[tuple[int, int]]) -> bytes:
        """``data[:cut]`` with the spans covered; newlines in a span stay."""
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


def forms_of(value: bytes) -> set[bytes]:
    """Every form in which ``value`` is looked for, each of at least `MINIMUM_LENGTH` bytes."""
    whole = value.strip(b"\r\n")
    unix = whole.replace(b"\r\n", b"\n")
    # A terminal, and some tools, end lines with CR LF.
    pieces = {whole, unix, unix.replace(b"\n", b"\r\n")}
    pieces.update(line.strip(b"\r") for line in whole.split(b"\n"))
    forms: set[bytes] = set()
    for piece in pieces:
        if len(piece) >= MINIMUM_LENGTH:
            forms |= _encoded_forms(piece)
    forms |= _dump_forms(whole)
    if value != whole:
        forms |= _base64_forms(value)  # `base64 file` encodes the trailing newline too
    return {form for form in forms if len(form) >= MINIMUM_LENGTH}


def _encoded_forms(piece: bytes) -> set[bytes]:
    return {
        piece,
        *_hex_forms(piece),
        *_base64_forms(piece),
        *_url_forms(piece),
        *_json_forms(piece),
        *_shell_forms(piece),
        *_markup_forms(piece),
    }


def _hex_forms(piece: bytes) -> set[bytes]:
    forms = {piece.hex(), piece.hex(" "), piece.hex(":")}
    return {form.encode() for one in forms for form in (one, one.upper())}


def _dump_forms(whole: bytes) -> set[bytes]:
    """Line by line as od, openssl, xxd and hexdump print it, with the text beside the numbers."""
    forms = set(_lines_of(whole.hex(), 60))
    rows = [whole[at : at + 16] for at in range(0, len(whole), 16)]
    halves = [row[at : at + 8] for row in rows for at in (0, 8)]
    for part in (*rows, *halves):
        if len(part) >= MINIMUM_LENGTH:
            forms |= {part.hex(" "), part.hex(":"), part.hex(" ", -2)}
    texts = {row for row in rows if len(row) >= 2 * MINIMUM_LENGTH}
    return texts | {form.encode() for one in forms for form in (one, one.upper())}


def _lines_of(text: str, width: int) -> list[str]:
    """``text`` broken into lines, without a last one so short that it may be anything."""
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    return [line for line in lines if len(line) >= 2 * MINIMUM_LENGTH]


def _url_forms(piece: bytes) -> set[bytes]:
    """What usual encoders of URLs leave alone differs: RFC 3986, paths, JavaScript, forms."""
    from urllib.parse import quote_from_bytes

    forms = set()
    for safe in ("", "/", "!'()*", ";,/?:@&=+$#!'()*", "*"):
        quoted = quote_from_bytes(piece, safe)
        for spaced in (quoted, quoted.replace("%20", "+")):
            for form in (spaced, spaced.replace("~", "%7E")):
                forms |= {form.encode(), _lower_escapes(form)}
    return forms


def _json_forms(piece: bytes) -> set[bytes]:
    r"""As in a JSON string; some encoders write ``/`` as ``\/``, others ``&<>`` as ``\u0026``."""
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


def _upper_unicode(escaped: str) -> str:
    head, *rest = escaped.split("\\u")
    return head + "".join(f"\\u{part[:4].upper()}{part[4:]}" for part in rest)


def _markup_forms(piece: bytes) -> set[bytes]:
    """As in XML and HTML, and between single quotes in YAML and SQL."""
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
    """``%2F`` as ``%2f``, with the other letters as they are."""
    head, *rest = quoted.split("%")
    return "".join([head, *(f"%{part[:2].lower()}{part[2:]}" for part in rest)]).encode()


def _shell_forms(piece: bytes) -> set[bytes]:
    """As ``'...'``, ``"..."``, ``$'...'`` and with backslashes, without the outer quotes."""
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
        backslashed.replace(b"\\~", b"~"),  # bash escapes it at the beginning only
    }


def _base64_forms(piece: bytes) -> set[bytes]:
    """The characters that depend on ``piece`` only, for each of the three ways it may be aligned.

    The first and last characters of a longer encoded text mix in its neighbours' bits; what is
    certain is what lies between.
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
