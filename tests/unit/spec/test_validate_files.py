"""Problems of config files: all at once, in file order, each in its place with its cure."""

from __future__ import annotations

from textwrap import dedent

import pytest

from buildrunner.spec.decode import load_build
from buildrunner.spec.model import Build, BuildOptions
from buildrunner.spec.problem import Severity
from buildrunner.spec.stands import Stand, stand_of
from buildrunner.spec.validate import check_build, errors_of


def check(text, **options):
    loaded = load_build(dedent(text).encode(), file="cloudbuild.yaml")
    return check_build(loaded, file="cloudbuild.yaml", **options)


def test_all_problems_come_at_once_in_the_order_of_the_file():
    problems = check(
        """\
        substitutions:
          _A: x
          foo: y
        images: ['Foo/Bar']
        steps:
        - name: gcr.io/$PROJECT_ID/x
          args: [a, $HOME, $_B]
          id: test
        - name: bash
          waitFor: [tset]
          env: ['A: 1']
          script: echo $_A
        """
    )
    assert [(found.rule, found.line, found.column) for found in problems] == [
        ("V19", 2, 7),
        ("V15", 3, 8),
        ("V70", 4, 10),
        ("V18", 7, 13),
        ("V17", 7, 20),
        ("V27", 10, 13),
        ("V30", 11, 9),
    ]
    assert all(found.file == "cloudbuild.yaml" for found in problems)


@pytest.mark.parametrize(
    ("text", "rule", "hint"),
    [
        ("steps: [{name: a, args: [$HOME]}]", "V18", "write $$HOME"),
        ("steps: [{name: a, args: ['${HOME}']}]", "V18", "write $${HOME}"),
        ("steps: [{name: a, args: [$SHORT_SH]}]", "V18", 'did you mean "SHORT_SHA"?'),
        (
            "{steps: [{name: a, args: [$TAG, $_TAG]}], substitutions: {_TAG: x}}",
            "V18",
            'did you mean "_TAG"?',
        ),
        (
            "{steps: [{name: a, args: [$_REGON, $_REGION]}], substitutions: {_REGION: x}}",
            "V17",
            'did you mean "_REGION"?',
        ),
        ("steps: [{name: a, args: [$_X]}]", "V17", "--substitutions=_X=..."),
        ("steps: [{name: a, args: [$_PR_NUMBER]}]", "V17", "only builds of pull requests"),
        (
            "{steps: [{name: a, args: ['${_X:-d}']}], substitutions: {_X: x}}",
            "V19",
            "options.dynamicSubstitutions: true",
        ),
        (
            "{steps: [{name: a, script: 'echo $_X'}], substitutions: {_X: x}}",
            "V19",
            "automapSubstitutions: true",
        ),
        ("{steps: [{name: a, args: [$$_X]}], substitutions: {_X: x}}", "V19", "write $_X"),
        ("{steps: [{name: a}], substitutions: {_X: x}}", "V19", "ALLOW_LOOSE"),
        ("{steps: [{name: a}], substitutions: {my-key: x}}", "V15", 'name it "_MY_KEY"'),
        ("{steps: [{name: a}], substitutions: {TAG_NAME: x}}", "V15", "--substitutions=TAG_NAME="),
        ("steps: [{name: a, id: b}, {name: a, waitFor: [B]}]", "V27", 'did you mean "b"?'),
        ("steps: [{name: a, waitFor: [b]}, {name: a, id: b}]", "V27", "move it before this one"),
        ("steps: [{name: a, id: b, waitFor: [b]}]", "V27", "can't wait for itself"),
        ("steps: [{name: a, env: ['A: 1']}]", "V30", "write A=1"),
        ("steps: [{name: 'https://a/b'}]", "V69", "leave out http"),
        (
            "{steps: [{name: a, args: ['${_X@Q}', $_X]}], substitutions: {_X: x}, "
            "options: {dynamicSubstitutions: true}}",
            "expression",
            "write $${_X@Q}",
        ),
        (
            "{steps: [{name: a}], options: {dynamicSubstitutions: true}, substitutions: "
            "{_A: $_B, _B: $_A}}",
            "cycle",
            "",
        ),
    ],
)
def test_a_problem_says_what_to_do(text, rule, hint):
    found = [problem for problem in check(text) if problem.rule == rule]
    assert found
    assert hint in found[0].hint


def test_values_from_outside_count_and_win():
    text = "{steps: [{name: a, args: [$_X]}]}"
    assert check(text, substitutions={"_X": "1"}) == []
    found = check(text, substitutions={"_X": "1", "_Y": "2", "PROJECT_ID": "p"})
    assert [(problem.rule, problem.path) for problem in found] == [
        ("V16", "--substitutions PROJECT_ID"),
        ("V19", "--substitutions _Y"),
    ]


def test_a_triggered_build_is_loose_and_dynamic():
    text = """\
        steps:
        - name: 'gcr.io/$REPO_NAME/${_N:-x}:$SHORT_SHA'
        images: ['i:$TAG_NAME']
        substitutions: {_UNUSED: x}
        """
    assert check(text, triggered=True) == []
    assert [found.rule for found in errors_of(check(text))] == ["V19"]


def test_an_image_that_needs_a_repository_is_only_warned_about_when_none_is_known():
    found = check("{steps: [{name: a}], images: ['gcr.io/$PROJECT_ID/a:$SHORT_SHA']}")
    assert [(problem.rule, problem.severity) for problem in found] == [("V70", Severity.WARNING)]
    assert "SHORT_SHA has no value here" in found[0].message
    text = "{steps: [{name: $_I}], options: {substitutionOption: ALLOW_LOOSE}}"
    assert [problem.severity for problem in check(text)] == [Severity.WARNING]


def test_a_field_that_is_only_recorded_is_warned_about_when_it_would_change_the_build():
    text = """\
        steps: [{name: a}]
        options: {requestedVerifyOption: VERIFIED}
        dependencies: [{empty: true}]
        """
    for problem in check(text):
        owner = BuildOptions if problem.path.startswith("options") else Build
        verdict = stand_of(owner, problem.path.rpartition(".")[2])
        assert (problem.rule, problem.severity) == ("not-done-here", Severity.WARNING)
        assert verdict is not None
        assert verdict.stand is Stand.RECORDED
        assert problem.message.endswith(f" has no effect here: {verdict.reason}")


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("steps: [{name: a, id: b, arg: x}, {name: a, waitFor: [B]}]", {"unknown-field", "V27"}),
        ("timeout: 10\nsteps: [{name: a}, {name: a, waitFor: [b]}]", {"duration", "V27"}),
        ("steps: [{name: a, idd: b}, {name: a, waitFor: [b]}]", {"unknown-field"}),
        ("steps: [a, {name: a, waitFor: [b]}]", {"wrong-type"}),
    ],
)
def test_a_missing_id_is_told_unless_it_may_be_in_what_could_not_be_read(text, rules):
    assert {problem.rule for problem in errors_of(check(text))} == rules


def test_what_could_not_be_read_brings_no_further_problems():
    found = check("{steps: [{name: 1, args: $_A}], substitutions: {_A: 1.10, _B: x}}")
    assert {problem.rule for problem in errors_of(found)}.isdisjoint({"V17", "V19", "V22"})
    found = check("{stps: [{name: a}]}")
    assert not {problem.rule for problem in found} & {"V20"}


@pytest.mark.parametrize("text", ["", "[]", "a: [", "steps: 1", "\x00", "- - -", "steps: [[]]"])
def test_what_is_no_build_is_an_error(text):
    assert errors_of(check_build(load_build(text.encode(), file="x"), file="x"))
