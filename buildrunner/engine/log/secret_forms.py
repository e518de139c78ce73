"""The forms in which tools print a secret: encoded, escaped, quoted, dumped, wrapped. Pure."""

from __future__ import annotations

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


def forms_of(value: bytes) -> set[bytes]:
    """Every form in which ``value`` is looked for, each of at least `MINIMUM_LENGTH` bytes."""
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
    """The forms that are looked for across the line breaks of base64 as well."""
    forms: set[bytes] = set()
    for piece in (value, *_with_all_line_ends(value.strip(b"\r\n"))):
        forms |= _base64_forms(piece)
    return {form for form in forms if len(form) >= 2 * MINIMUM_LENGTH}


def _with_all_line_ends(whole: bytes) -> set[bytes]:
    """A terminal, and some tools, end lines with CR LF."""
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


def _nested_json_forms(piece: bytes) -> set[bytes]:
    """As in JSON that is a string of other JSON: a structured log has it of a request's body."""
    import json

    text = piece.decode("utf-8", "surrogateescape")
    forms = set()
    for ascii_only in (True, False):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        forms.add(json.dumps(once, ensure_ascii=ascii_only)[1:-1])
    return {form.encode("utf-8", "surrogateescape") for form in forms}


def _program_forms(piece: bytes) -> set[bytes]:
    """As Python prints bytes and text: ``b'...'`` and ``'...'``, in either kind of quotes."""
    text = piece.decode("utf-8", "surrogateescape")
    forms = {repr(piece)[2:-1], repr(text)[1:-1], ascii(text)[1:-1]}
    forms |= {form.replace("\\'", "'").replace("'", "\\'") for form in tuple(forms)}
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
