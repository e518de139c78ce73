"""Whatever the text, reading it ends, in time linear in its size, and never raises."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message, load_build, load_triggers
from buildrunner.spec.reading.findings import MAX_PROBLEMS
from buildrunner.spec.writing import encode_message, yaml_text

QUICK = settings(
    max_examples=250, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

CONFIG = """\
steps:
- &first
  name: gcr.io/cloud-builders/docker
  args: ['build', "-t", gcr.io/$PROJECT_ID/app:$SHORT_SHA, .]
  env: [A=b]
  waitFor: ['-']
  timeout: 600s
- <<: *first
  script: |
    #!/bin/sh
    echo hello
  allowExitCodes: [1, 2]
options: {logging: NONE, diskSizeGb: 100, volumes: [{name: v, path: /v}]}
substitutions:
  _A: 'b'
secrets: [{kmsKeyName: k, secretEnv: {A: aGk=}}]
timeout: 1200s
"""

# What breaks things: YAML's own marks, kinds of scalars, keys of the model.
PIECES = st.sampled_from(
    ["\n", "  ", "- ", ": ", "{", "}", "[", "]", ",", "'", '"', "|", ">", "#", "&a ", "*a",
     "<<: *a", "!!str ", "!x ", "---\n", "...\n", "%YAML 1.2\n", "? ", "\t", "\r\n", "~", "1",
     "0x1", "1:30", "yes", "2020-01-01", "steps", "name", "args", "timeout", "options", "source",
     "wait_for",
     "substitutions", "secretEnv", "\x00", "\ufeff", "\u2028", "\x85", "☃", "\\", "=", "`", "@"]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(PIECES, max_size=30).map("".join), st.binary(max_size=60)
)


def check(text: bytes) -> None:
    for loaded in (load_build(text, file="f", allow_source=True), *load_triggers(text, file="f")):
        assert len(loaded.problems) <= MAX_PROBLEMS + 1
        for problem in loaded.problems:
            assert problem.message
            assert problem.rule
            assert problem.file == "f"
            assert "\n" not in problem.text()
            assert loaded.locate(problem.path) >= (0, 0)
        encode_message(loaded.value)


@QUICK
@given(TEXTS)
def test_any_text_is_read_without_an_exception(text: str | bytes) -> None:
    check(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


@QUICK
@given(st.lists(st.tuples(st.integers(0, len(CONFIG)), st.integers(0, 8), PIECES), max_size=4))
def test_any_mutation_of_a_config_is_read_without_an_exception(
    mutations: list[tuple[int, int, str]],
) -> None:
    text = CONFIG
    for start, length, piece in mutations:
        text = text[:start] + piece + text[start + length :]
    check(text.encode())


def test_a_problem_with_a_key_of_several_lines_is_one_line() -> None:
    check(b"steps: [{name: a, ? |\n  echo\n  hello\n }]")
    check(b"steps:\n- name: a\n  ? |\n    echo\n    hello\n  : b\n")


@QUICK
@given(st.text(max_size=20))
def test_any_quoted_text_comes_through_unchanged(text: str) -> None:
    build = load_build(f"tags: [{json.dumps(text)}]".encode("utf-8", "replace"), file="f").build
    if build.tags:
        again = load_build(yaml_text(encode_message(build)).encode(), file="f")
        assert again.build.tags == build.tags


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["steps", "name", "args", "timeout", "source", "gitSource", "options"])
            | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@QUICK
@given(JSON)
def test_any_json_is_read_without_an_exception(value: Any) -> None:
    assert len(decode_message(Build, value).problems) <= MAX_PROBLEMS + 1


def calls(text: str) -> int:
    """How many Python and C functions are called to read ``text``; generators' steps count."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    encoded = text.encode()
    load_build(encoded, file="f")
    sys.setprofile(profile)
    try:
        load_build(encoded, file="f")
    finally:
        sys.setprofile(None)
    return count


FAMILIES: dict[str, Callable[[int], str]] = {
    "steps": lambda n: "steps:\n" + "- {name: a, args: [b, 'c']}\n" * n,
    "unknown keys": lambda n: "".join(f"key{i}: x\n" for i in range(n)),
    "one key again and again": lambda n: "steps: []\n" * n,
    "a late key again and again": lambda n: (
        "".join(f"key{i}: x\n" for i in range(n)) + "steps: []\n" * n
    ),
    "two spellings again and again": lambda n: (
        "steps: [{" + "waitFor: [], wait_for: []," * n + "}]"
    ),
    "a late map key again and again": lambda n: (
        "substitutions:\n" + "".join(f"  _K{i}: x\n" for i in range(n)) + "  _Z: x\n" * n
    ),
    "wrong items": lambda n: "tags:\n" + "- 1\n" * n,
    "aliases": lambda n: "tags: [&a b, " + "*a, " * n + "]",
    "merges": lambda n: "steps:\n- &a {name: b}\n" + "- <<: *a\n" * n,
    "merges of merges": lambda n: (
        "steps:\n- &a0 {name: b}\n"
        + "".join(f"- &a{i} {{<<: [*a{i - 1}, {{dir: x}}]}}\n" for i in range(1, 20)) * (n // 20)
    ),
    "a long script": lambda n: "steps:\n- script: |\n" + "    echo\n" * n,
    "underscores": lambda n: "a" + "_b" * n + ": c\n",
    "comments": lambda n: "# c\n" * n,
    "documents": lambda n: "---\n" * n,
    "braces": lambda n: "steps: [" + "{}," * n + "]",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_twice_the_text_is_at_most_twice_the_work(family: str) -> None:
    grow = FAMILIES[family]
    small, large = calls(grow(2000)), calls(grow(4000))
    assert large <= 2.1 * small + 500
