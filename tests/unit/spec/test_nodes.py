"""Text to nodes: limits, encodings, documents and syntax errors with their place."""

from __future__ import annotations

import random

import pytest
import yaml

from buildrunner.spec.reading import nodes
from buildrunner.spec.reading.nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    compose,
    compose_all,
    position,
    python_composer,
)
from buildrunner.spec.reading.scalars import integer_value, kind_of_plain


@pytest.fixture(params=["libyaml", "pure Python"], autouse=True)
def composer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds with libyaml and without it."""
    if request.param == "pure Python":
        monkeypatch.setattr(nodes, "_PLAIN_COMPOSER", python_composer())
        monkeypatch.setattr(nodes, "_ANCHOR_COMPOSER", python_composer())


def rule_and_place(text: bytes) -> tuple[str, int, int]:
    root, problem = compose(text)
    assert root is None
    assert problem is not None
    return problem.rule, problem.line, problem.column


def laughs(levels: int) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines).encode()


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a:\n\t- b\n", ("yaml-syntax", 2, 1)),
        (b"a: 'never closed\n", ("yaml-syntax", 2, 1)),
        (b"a: b: c\n", ("yaml-syntax", 1, 5)),
        (b"a: *nowhere\n", ("yaml-syntax", 1, 4)),
        (b"a: %x\n", ("yaml-syntax", 1, 4)),
        (b"a: b\x07\n", ("yaml-syntax", 1, 5)),
        (b"a: 1\nb: \x00", ("yaml-syntax", 2, 4)),
        ("☃: é\n☃: é\x07".encode(), ("yaml-syntax", 2, 5)),
        (b"a: caf\xe9\n", ("yaml-encoding", 1, 7)),
        ("a: ☃\nb: caf".encode() + b"\xe9", ("yaml-encoding", 2, 7)),
        ("a: b".encode("utf-16"), ("yaml-encoding", 1, 1)),
        (b"a: 1\n---\nb: 2\n", ("yaml-documents", 3, 1)),
        (b"a: &a [*a]\n", ("yaml-recursive-alias", 1, 4)),
        (b"x" * (MAX_BYTES + 1), ("yaml-size", 0, 0)),
    ],
)
def test_what_can_not_be_read_has_one_problem_in_its_place(
    text: bytes, expected: tuple[str, int, int]
) -> None:
    assert rule_and_place(text) == expected


def test_a_tab_is_called_a_tab() -> None:
    _, problem = compose(b"steps:\n\t- name: a\n")
    assert problem is not None
    assert problem.message == "not valid YAML: a tab can't be used to indent YAML"
    assert problem.hint == "use blanks"


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfa: b\n",
        b"a: b\r\n",
        b"a: b",
        b"---\na: b\n...\n",
        b"# comment\n---\na: b\n---\n",
        b"%YAML 1.1\n---\na: b\n",
        b'{"a": "b"}',
    ],
)
def test_marks_line_ends_and_one_document_however_it_is_framed_are_fine(text: bytes) -> None:
    root, problem = compose(text)
    assert problem is None
    assert isinstance(root, yaml.MappingNode)
    ((key, value),) = root.value
    assert (key.value, value.value) == ("a", "b")


@pytest.mark.parametrize("text", [b"", b"\n", b"# only a comment\n", b"---\n", b"---\n...\n"])
def test_an_empty_text_has_no_root_and_no_problem(text: bytes) -> None:
    assert compose(text) == (None, None)


def test_crlf_in_a_block_scalar_becomes_a_line_feed() -> None:
    root, _ = compose(b"a: |\r\n  one\r\n  two\r\n")
    assert isinstance(root, yaml.MappingNode)
    assert root.value[0][1].value == "one\ntwo\n"


def test_positions_count_characters_from_one() -> None:
    root, _ = compose("é: ☃\n☃☃: [é, ü]\n".encode())
    assert isinstance(root, yaml.MappingNode)
    (_, first), (key, items) = root.value
    assert position(first) == (1, 4)
    assert position(key) == (2, 1)
    assert position(items.value[1]) == (2, 9)
    assert position(None) == (0, 0)


def test_an_anchor_may_be_defined_anew() -> None:
    root, problem = compose(b"a: &x 1\nb: &x 2\nc: *x\n")
    assert problem is None
    assert isinstance(root, yaml.MappingNode)
    assert root.value[2][1].value == "2"


@pytest.mark.parametrize(
    "text",
    [b"[" * 200_000, b"- " * 200_000, b"{a: " * 200_000, b"? " * 200_000, nested(MAX_DEPTH + 1)],
)
def test_deep_nesting_is_refused_and_does_not_end_the_process(text: bytes) -> None:
    rule, line, _ = rule_and_place(text)
    assert (rule, line) == ("yaml-depth", 1)


def test_nesting_up_to_the_limit_is_read() -> None:
    _, problem = compose(nested(MAX_DEPTH))
    assert problem is None


def test_nesting_by_aliases_counts_too() -> None:
    chain = ["a0: &a0 [x]"]
    chain += [f"a{level}: &a{level} [*a{level - 1}]" for level in range(1, 2000)]
    rule, _, _ = rule_and_place("\n".join(chain).encode())
    assert rule == "yaml-depth"


def test_billion_laughs_are_refused_before_anything_is_expanded() -> None:
    text = laughs(12)
    assert len(text) < 1024
    rule, line, _ = rule_and_place(text)
    assert (rule, line) == ("yaml-alias-expansion", 6)


def test_a_few_aliases_are_fine() -> None:
    _, problem = compose(laughs(3))
    assert problem is None


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MAX_NODES", 1000)
    rule, _, _ = rule_and_place(b"[" + b"a," * 1000 + b"]")
    assert rule == "yaml-size"


def test_several_documents_are_kept_apart_and_empty_ones_left_out() -> None:
    roots, problem = compose_all(b"---\na: 1\n---\n---\nb: 2\n")
    assert problem is None
    assert [root.value[0][0].value for root in roots] == ["a", "b"]


def test_documents_before_a_broken_one_are_kept() -> None:
    roots, problem = compose_all(b"a: 1\n---\nb: [\n")
    assert len(roots) == 1
    assert problem is not None
    assert problem.rule == "yaml-syntax"


KINDS = {
    "str": "string",
    "merge": "string",
    "value": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "null": "null",
    "timestamp": "date",
}


def test_plain_scalars_are_what_yaml_1_1_says() -> None:
    """Compared with PyYAML's own resolver, over words that look like numbers and dates."""
    resolver = yaml.SafeLoader("")
    words = ["", "~", "null", "yes", "No", "ON", "off", "y", "n", "tRue", "=", "<<", "0x1F", "017"]
    words += ["2020-01-01", "2020-1-1 1:00:00", "2020-01-01T00:00:00Z", "1_000", ".inf", "-.INF"]
    chosen = random.Random(11)
    for alphabet in ("0123456789", "01:._-+", "0123456789:._-+eETZxb ", "-01 T:Z"):
        words += [
            "".join(chosen.choices(alphabet, k=chosen.randint(1, 10))).strip() for _ in range(5000)
        ]
    wrong = []
    for word in words:
        tag = resolver.resolve(yaml.ScalarNode, word, (True, False))
        if kind_of_plain(word) != KINDS[tag.rpartition(":")[2]]:
            wrong.append(word)
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-5", -5), ("+5", 5), ("010", 8), ("0x10", 16), ("0b11", 3), ("1_000", 1000),
     ("1:30", 90), ("-1:00:01", -3601)],
)  # fmt: skip
def test_integers_are_read_in_all_notations(text: str, value: int) -> None:
    assert kind_of_plain(text) == "integer"
    assert integer_value(text) == value
