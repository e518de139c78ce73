"""In which forms tools print a secret, and that none of them shows it."""

import base64
import html
import json
import re
import shlex
import shutil
import subprocess
import traceback
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.engine.log.masking import MASK, Masker

SECRETS = [
    "hunter22",
    "pässwörd & <tag> 'it''s' \"q\" $x `y` \\z/~!*() +%",
    "-----BEGIN KEY-----\nq8ZrAbC+/def==\nx y\n-----END KEY-----\n",
    "a\nb\nc\nd",
]


def in_json_of_dotnet(text):
    escaped = json.dumps(text)[1:-1].replace('\\"', "\\u0022")
    for char in "&<>'+`":
        escaped = escaped.replace(char, f"\\u{ord(char):04X}")
    return with_capital_digits(escaped)


def with_capital_digits(escaped):
    return re.sub(r"\\u[0-9a-f]{4}", lambda found: f"\\u{found[0][2:].upper()}", escaped)


FORMS = {
    "as it is": lambda v: v,
    "with the line ends of a terminal": lambda v: v.replace("\n", "\r\n"),
    "json": json.dumps,
    "json in utf-8": lambda v: json.dumps(v, ensure_ascii=False),
    "json of a terminal's lines": lambda v: json.dumps(v.replace("\n", "\r\n")),
    "json with \\/": lambda v: json.dumps(v).replace("/", "\\/"),
    "json of Go": lambda v: (
        json.dumps(v, ensure_ascii=False)
        .replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
    ),
    "json of .NET": in_json_of_dotnet,
    "json with capital digits": lambda v: with_capital_digits(json.dumps(v)),
    "html": html.escape,
    "html in decimal": lambda v: html.escape(v).replace("&#x27;", "&#39;"),
    "yaml, single quotes": lambda v: v.replace("'", "''"),
    "shell": shlex.quote,
    "url": lambda v: quote(v, safe=""),
    "url of JavaScript": lambda v: quote(v, safe="!'()*~"),
    "url of a form": lambda v: quote(v, safe="*").replace("%20", "+").replace("~", "%7E"),
    "hex": lambda v: v.encode().hex(),
    "hex, bytes": lambda v: v.encode().hex(" "),
    "hex, colons": lambda v: v.encode().hex(":").upper(),
    "base64": lambda v: base64.b64encode(v.encode()).decode(),
    "base64 in a text": lambda v: base64.b64encode(f"user:{v}:x".encode()).decode(),
    "base64 of URLs": lambda v: base64.urlsafe_b64encode(v.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("value", SECRETS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_form_that_tools_print_is_covered(value, form):
    shown = form(value)
    masked = Masker([value]).mask(f"key={shown}\n".encode()).decode()
    assert MASK.decode() in masked
    left = masked.replace("***", "").replace("key=", "").strip("\"'\n\r")
    # What is left of it are characters at the edges that hold a neighbour's bits, or the short
    # lines of a value of several.
    assert len(left) <= max(6, len(form("x y\n")) + 4), masked


@pytest.mark.parametrize("value", SECRETS[:3])
@pytest.mark.parametrize(
    "command",
    [
        ["od", "-An", "-tx1"],
        ["xxd"],
        ["xxd", "-p"],
        ["hexdump", "-C"],
        ["base64"],
        ["bash", "-c", 'x=$(cat; echo .); printf %q "${x%.}"'],
        ["bash", "-c", 'x=$(cat; echo .); x=${x%.}; declare -p x; set -x; : "$x"'],
    ],
    ids=lambda command: " ".join(command),
)
def test_what_programs_print_of_it_is_covered(value, command):
    if shutil.which(command[0]) is None:
        command = ["busybox", *command]
    done = subprocess.run(
        command,
        input=value.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin:/usr/sbin"},
    )
    masked = Masker([value]).mask(done.stdout)
    for piece in (value[:8].encode(), value[:8].encode().hex(" ").encode(), value[-9:-1].encode()):
        assert piece not in masked
    assert masked.count(MASK) >= 1


def test_a_value_that_begins_another_hides_no_rest():
    masker = Masker(["hunter22", "hunter22-and-more"])
    assert masker.mask(b"hunter22-and-more hunter22- hunter22") == b"*** ***- ***"


@given(
    first=st.text("abc", min_size=4, max_size=9),
    second=st.text("abc", min_size=4, max_size=9),
    data=st.text("abc", max_size=40),
    sizes=st.lists(st.integers(0, 5), max_size=20),
)
def test_overlapping_values_never_uncover_each_other(first, second, data, sizes):
    masker = Masker([first, second])
    whole = f"{data}{first}{second[2:]}{data}".encode()
    stream, shown, rest = masker.stream(), b"", whole
    for size in sizes:
        shown += stream.feed(rest[:size])
        rest = rest[size:]
    shown += stream.feed(rest) + stream.finish()
    assert shown == masker.mask(whole)
    for part in shown.split(MASK):
        assert first.encode() not in part
        assert second.encode() not in part


def test_the_end_of_what_was_cut_is_covered():
    masker = Masker(["hunter22"])
    assert masker.mask(b"the key is hunt", cut=True) == b"the key is ***"
    assert masker.mask(b"the key is hunt") == b"the key is hunt"
    assert masker.mask(b"no key here.", cut=True) == b"no key here."


@given(
    secret=st.sampled_from(["hunter22-and-a-longer-tail", "ghp_" + "aB3dE6gH9" * 9, SECRETS[2]]),
    before=st.binary(max_size=200),
    after=st.binary(max_size=100),
    width=st.sampled_from([64, 76]),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\n    "]),
    sizes=st.lists(st.integers(0, 90), max_size=30),
)
def test_base64_is_covered_across_its_line_breaks(secret, before, after, width, line_end, sizes):
    encoded = base64.b64encode(before + secret.encode() + after)
    lines = [encoded[at : at + width] for at in range(0, len(encoded), width)]
    whole = b"data:\n" + line_end.join(lines) + b"\n# the end\n"
    masker = Masker([secret])
    stream, shown, rest = masker.stream(), b"", whole
    for size in sizes:
        shown += stream.feed(rest[:size])
        rest = rest[size:]
    shown += stream.feed(rest) + stream.finish()
    assert shown == masker.mask(whole)
    assert shown.count(b"\n") == whole.count(b"\n")
    assert shown.endswith(b"\n# the end\n")
    kept = re.sub(rb"\s", b"", shown.replace(MASK, b"|"))
    for shift in range(3):
        certain = base64.b64encode(b"\0" * shift + secret.encode())
        certain = certain[(shift * 8 + 5) // 6 : (shift + len(secret.encode())) * 8 // 6]
        assert certain not in kept
        assert not any(certain[at : at + 12] in kept for at in range(len(certain) - 12))


def test_lines_of_other_text_are_not_held_back():
    stream = Masker(["hunter22"]).stream()
    line = b"a line that is longer than sixty characters, as most lines of most builds are: aHV\n"
    assert stream.feed(line) == line


def fails():
    try:
        raise KeyError({"env": ["KEY=hunter22"]})
    except KeyError as first:
        raise ValueError("KEY=hunter22", b"hunter22", 7) from first


def test_what_an_exception_says_is_covered_along_its_whole_chain():
    with pytest.raises(ValueError, match="hunter22") as caught:
        fails()
    Masker(["hunter22"]).mask_error(caught.value)
    assert caught.value.args == ("KEY=***", b"***", 7)
    report = traceback.TracebackException.from_exception(caught.value)
    assert "hunter22" not in "".join([*report.format_exception_only(), str(report.__cause__)])
