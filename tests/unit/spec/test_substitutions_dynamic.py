"""Bash-style expressions: the same as in bash, but refused where bash would do harm."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildrunner.spec.substitutions.bash import Glob, evaluate, parse_expression
from buildrunner.spec.substitutions.expressions import MAX_LENGTH, BadExpression
from buildrunner.spec.substitutions.templates import Cycle, expand, find_references, substitute
from buildrunner.spec.substitutions.variables import is_user_variable

VALUES = {"X": "a/b/c", "E": "", "V": "v1.2.3", "N": "2"}


def evaluated(template, values=VALUES):
    return substitute(template, values.get, dynamic=True)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("${X:-d}", "a/b/c"),
        ("${E:-d}", "d"),
        ("${E-d}", ""),
        ("${U-d}", "d"),
        ("${E:+d}", ""),
        ("${E+d}", "d"),
        ("${X:1}", "/b/c"),
        ("${X: -1}", "c"),
        ("${X:(-1)}", "c"),
        ("${X:1:-1}", "/b/"),
        ("${X:9}", ""),
        ("${X: -9}", ""),
        ("${X:$N:1}", "b"),
        ("${X////-}", "a-b-c"),
        (r"${X//\//}", "abc"),
        ("${X/[ab]/_}", "_/b/c"),
        ("${X//[!a-b]}", "ab"),
        ("${X/#/P}", "Pa/b/c"),
        ("${X/%/S}", "a/b/cS"),
        ("${X/%c/d}", "a/b/d"),
        ("${X//}", "a/b/c"),
        ("${E/*/x}", "x"),
        ("${X//*/x}", "x"),
        ("${X^}", "A/b/c"),
        ("${X^^[ac]}", "A/b/C"),
        ("${V%%.*}", "v1"),
        ("${E:-${X##*/}}", "c"),
        ("${E:-$V}", "v1.2.3"),
        ("${E:-a$$b}", "a$b"),
        (r"${E:-a\}b}", "a}b"),
        ("${E:-${foo}}x", "${foo}x"),
        ("${#X}", "5"),
        ("${#}", "${#}"),
        ("${X", "${X"),
        ("${X:-", "${X:-"),
        ("${X:-${V}", "${X:-v1.2.3"),
        ("${foo:-d}", "${foo:-d}"),
        ("${Xoo}", "${Xoo}"),
        ("${X_oo:?$V}", "${X_oo:?v1.2.3}"),
        ("${!Xoo} ${#Xoo}", "${!Xoo} ${#Xoo}"),
        ("${E:-${Xoo:-a}b}", "${Xoo:-a}b"),
        ("$${X:-d}", "${X:-d}"),
    ],
)
def test_an_expression_gives_what_bash_gives(template, expected):
    assert evaluated(template) == expected


@pytest.mark.parametrize(
    ("template", "operator"),
    [
        ("${X:=d}", '":="'),
        ("${X=d}", '"="'),
        ("${X:?d}", '":?"'),
        ("${X?d}", '"?"'),
        ("${!X}", '"!"'),
        ("${X[0]}", '"["'),
        ("${X[@]}", '"["'),
        ("${X@Q}", '"@"'),
        ("${X }", '" "'),
        ("${X:a}", "whole numbers"),
        ("${X:$V}", "whole number"),
        ("${X:3:-3}", "before it starts"),
        ("${#X:-a}", '"#"'),
        ("${E:-${X:=d}}", '":="'),
    ],
)
def test_what_is_not_supported_is_named(template, operator):
    with pytest.raises(BadExpression, match=operator.replace("[", r"\[").replace("?", r"\?")):
        evaluated(template)


def test_deep_nesting_is_an_error_not_a_crash():
    with pytest.raises(BadExpression, match="nested more than"):
        evaluated("${E:-" * 500 + "}" * 500)


@pytest.mark.parametrize(
    "template",
    [
        "${E:-" * 20_000,
        "${E:-$" * 20_000,
        "${" * 50_000,
        "${" + "A" * 100_000 + "a}",
        "${AAAAAAAAAAAAAAAAAAAAa" * 5_000,
        "$" * 100_000,
        "${X//" + "*a" * 2000 + "/x}",
        "${X//" + "[" * 4000 + "/x}",
        "${X/" + "?" * 4000 + "/x}",
    ],
)
def test_hostile_templates_take_no_time(template):
    started = time.process_time()
    with contextlib.suppress(BadExpression):
        evaluated(template, {"X": "a" * 4000, "E": ""})
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "pattern", ["*a*a*a*a*a*b", "?" * 300 + "b", "*" * 300 + "b", "[a-z]" * 400]
)
def test_hostile_globs_take_no_time(pattern):
    started = time.process_time()
    glob = Glob(pattern)
    text = "a" * 20_000
    glob.prefix(text)
    glob.suffix(text)
    glob.spans(text)
    assert time.process_time() - started < 2


def test_values_that_multiply_are_stopped():
    user = {f"_V{level}": f"$_V{level + 1}$_V{level + 1}" for level in range(60)} | {"_V60": "xx"}
    with pytest.raises(BadExpression, match="grows beyond"):
        expand(user, {}, is_template=is_user_variable)
    with pytest.raises(BadExpression, match=str(MAX_LENGTH)):
        evaluated("${X//?/$Y}", {"X": "a" * 4000, "Y": "b" * 4000})


def test_a_chain_as_long_as_allowed_is_resolved():
    user = {f"_V{level}": f"$_V{level + 1}" for level in range(200)} | {"_V200": "end"}
    assert expand(user, {}, is_template=is_user_variable)["_V0"] == "end"


def test_a_cycle_is_named():
    user = {"_Z": "$_A", "_A": "${_B:-1}", "_B": "${_C}", "_C": "$_A"}
    with pytest.raises(Cycle, match="cycle _A -> _B -> _C -> _A"):
        expand(user, {}, is_template=is_user_variable)


def test_overridden_built_ins_are_data():
    user = {"BRANCH_NAME": "${_SECRET}", "_SECRET": "s", "_B": "$BRANCH_NAME"}
    assert expand(user, {}, is_template=is_user_variable)["_B"] == "${_SECRET}"


# What bash and we must agree on: no control characters, no quotes (they stand for themselves here),
# nothing that bash would run.
TEXT = st.text(alphabet="ab/.-1", max_size=8)
PATTERN = st.lists(
    st.sampled_from(
        ["*", "?", "a", "b", r"\/", ".", "[ab]", "[!a]", "[a-b]", r"\*", "-", "1", "["]
    ),
    max_size=6,
).map("".join)
NUMBER = st.integers(-9, 9)
EXPRESSION = st.one_of(
    st.builds(lambda op, word: f"${{X{op}{word}}}", st.sampled_from([":-", "-", ":+", "+"]), TEXT),
    st.builds(
        lambda op, glob: f"${{X{op}{glob}}}", st.sampled_from(["#", "##", "%", "%%"]), PATTERN
    ),
    st.builds(
        lambda op, glob, word: f"${{X{op}{glob}/{word}}}",
        st.sampled_from(["/", "//", "/#", "/%"]),
        PATTERN,
        TEXT,
    ),
    st.builds(lambda off: f"${{X: {off}}}", NUMBER),
    st.builds(lambda off, length: f"${{X: {off}:{length}}}", NUMBER, st.integers(0, 9)),
    st.sampled_from(["${#X}", "${X^}", "${X^^}", "${X,}", "${X,,}", "${X}"]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXT, EXPRESSION), min_size=20, max_size=40))
def test_expressions_agree_with_bash(cases):
    script = ["shopt -u patsub_replacement 2>/dev/null"]
    script += [f'X=$V{index}; printf "%s\\n" "{case[1]}"' for index, case in enumerate(cases)]
    environment = {f"V{index}": value for index, (value, _) in enumerate(cases)}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    for (value, template), expected in zip(cases, done.stdout.splitlines(), strict=True):
        assert (value, template, evaluated(template, {"X": value})) == (value, template, expected)


@settings(deadline=None)
@given(st.text(alphabet="ab*?[]!\\-^x", max_size=10), st.text(alphabet="abx-", max_size=10))
def test_the_glob_matcher_never_fails_and_spans_do_not_overlap(pattern, text):
    glob = Glob(pattern)
    spans = glob.spans(text)
    assert all(start < end for start, end in spans)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
    assert all(glob.matches(text[start:end]) for start, end in spans)
    shortest, longest = glob.prefix(text)
    assert shortest <= longest
    assert longest < 0 or glob.matches(text[:longest])


@settings(deadline=None)
@given(st.text(alphabet="${}_AB:-#%/x\\[]()!", max_size=60))
def test_any_text_is_a_template(template):
    for dynamic in (False, True):
        last = 0
        for reference in find_references(template, dynamic=dynamic):
            assert last <= reference.start < reference.end <= len(template)
            last = reference.end
        try:
            substitute(template, {"_A": "v"}.get, dynamic=dynamic)
        except BadExpression:
            assert dynamic


def test_an_expression_without_its_brace_is_none():
    assert parse_expression("${X:-a", 0) is None
    parsed = parse_expression("a${X:-b}c", 1)
    assert parsed is not None
    assert evaluate(parsed[0], {}.get) == "b"
    assert parsed[1] == 8
