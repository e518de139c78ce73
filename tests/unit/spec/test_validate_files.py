"""Problems of config files: all at once, in file order, each in its place with its cure."""

from __future__ import annotations

from textwrap import dedent

import pytest

from buildrunner.problem import Severity
from buildrunner.spec.model.build import Build, BuildOptions
from buildrunner.spec.model.stands import Stand, stand_of
from buildrunner.spec.reading.decode import load_build
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.spec.validation.check import SAMPLE, check_build, errors_of


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
        ("steps: [{name: a, args: [$_X]}]", "V17", "use --triggered"),
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


def test_a_duration_with_another_unit_is_for_triggers_only():
    text = "{steps: [{name: a, timeout: 2m}], timeout: 1h}"
    assert [problem.rule for problem in errors_of(check(text))] == ["duration-unit"] * 2
    found = check(text, triggered=True)
    assert [(problem.rule, problem.severity) for problem in found] == [
        ("duration-unit", Severity.WARNING)
    ] * 2
    assert found[0].hint == "write it as '120s'"
    too_long = check("{steps: [{name: a, timeout: 2h}], timeout: 1h}", triggered=True)
    assert [problem.rule for problem in errors_of(too_long)] == ["V33"]


def test_an_image_that_needs_a_repository_is_only_warned_about_when_none_is_known():
    found = check("{steps: [{name: a}], images: ['gcr.io/$PROJECT_ID/a:$SHORT_SHA']}")
    assert [(problem.rule, problem.severity) for problem in found] == [("V70", Severity.WARNING)]
    assert found[0].message.endswith(" as long as SHORT_SHA has no value")
    assert found[0].hint == (
        "a trigger, `submit --triggered` or --substitutions=SHORT_SHA=... gives it one"
    )
    text = "{steps: [{name: $_I}], options: {substitutionOption: ALLOW_LOOSE}}"
    assert [problem.severity for problem in check(text)] == [Severity.WARNING]


@pytest.mark.parametrize(
    ("text", "rule", "unset"),
    [
        ("{steps: [{name: 'ubuntu:$_X'}]}", "V69", "_X has"),
        ("{images: ['a:$_X']}", "V70", "_X has"),
        ("{images: ['a:$TAG_NAME$_X']}", "V70", "TAG_NAME and _X have"),
        ("{tags: ['-$_X']}", "V71", "_X has"),
        ("{logsBucket: 'gs://${_X}'}", "V07", "_X has"),
        ("{serviceAccount: 'a/$_X'}", "V09", "_X has"),
        ("{artifacts: {objects: {location: '$_X/a', paths: [b]}}}", "V64", "_X has"),
        (
            "{artifacts: {genericArtifacts: [{folder: f, registryPath: 'r/$_X'}]}}",
            "artifact-field",
            "_X has",
        ),
        # a value that is missing behind other values
        ("{images: ['a:$_M'], substitutions: {_M: '${TAG_NAME%%.*}-x'}}", "V70", "TAG_NAME has"),
        ("{images: ['a:$_M'], substitutions: {_M: '$_N', _N: '${_Y}-'}}", "V70", "_Y has"),
        ("{images: ['a:$_V'], substitutions: {_V: '${_V}'}}", "V70", "_V has"),
    ],
)
def test_a_missing_value_is_an_error_only_once_it_is_known_to_be_missing(text, rule, unset):
    options = "options: {substitutionOption: ALLOW_LOOSE, dynamicSubstitutions: true}"
    config = f"{text[:-1]}, {options}}}"
    if "steps" not in text:
        config = f"{config[:-1]}, steps: [{{name: a}}]}}"
    found = [problem for problem in check(config) if problem.rule == rule]
    assert [problem.severity for problem in found] == [Severity.WARNING]
    assert f" as long as {unset} no value" in found[0].message
    assert "or --substitutions=" in found[0].hint
    known = errors_of(check(config, built_ins=SAMPLE))
    assert {problem.rule for problem in known} <= {rule, "cycle"}
    assert known


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (
            "gcr.io/p/a:$TAG_NAME",
            "TAG_NAME has no value; give it one with --substitutions=TAG_NAME=... or, from the "
            "folder's Git repository, with `submit --triggered`",
        ),
        ("a:$_X", "_X has no value; give it one with --substitutions=_X=..."),
        (
            "$_X/$REPO_NAME:",
            "_X and REPO_NAME have no value; give it one with --substitutions=_X=... or, from the "
            "folder's Git repository, with `submit --triggered`",
        ),
        ("a b$_X", "blanks are not allowed"),
    ],
)
def test_a_build_says_which_variable_leaves_an_image_without_a_name(image, hint):
    config = f"""\
        steps: [{{name: a}}]
        images: ['{image}']
        substitutions: {{_X: ''}}
        options: {{substitutionOption: ALLOW_LOOSE}}
        """
    found = errors_of(check(config, built_ins=BuiltIns(project_id="p", build_id="b")))
    assert [problem.hint for problem in found] == [hint]


def test_what_no_value_mends_is_an_error_at_once():
    config = """\
        steps: [{name: a}]
        images: ['a b:$_X', 'a:$_E$_Y']
        substitutions: {_E: ' ', _Y: x}
        options: {substitutionOption: ALLOW_LOOSE}
        """
    assert [(problem.rule, problem.path) for problem in errors_of(check(config))] == [
        ("V70", "images[1]")
    ]


@pytest.mark.parametrize("triggered", [False, True])
def test_a_value_that_refers_to_itself_waits_for_one_from_outside(triggered):
    config = """\
        steps: [{name: a, args: [$_VERSION]}]
        substitutions: {_VERSION: '${_VERSION}'}
        options: {dynamicSubstitutions: true}
        """
    found = check(config, triggered=triggered)
    assert [(problem.rule, problem.severity, problem.line) for problem in found] == [
        ("cycle", Severity.WARNING, 2)
    ]
    assert check(config, substitutions={"_VERSION": "1"}, triggered=triggered) == []
    known = check(config, built_ins=SAMPLE, triggered=triggered)
    assert [(problem.rule, problem.severity) for problem in known] == [("cycle", Severity.ERROR)]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "text", ["${TF_VAR_org_id:?}", "${Foo}", "${!Foo}", "${#Foo}", "${_fOO:-x}"]
)
def test_a_name_with_a_lower_case_letter_in_braces_is_the_shells(text, dynamic):
    config = f"""\
        steps: [{{name: a, args: ['{text}']}}]
        options: {{dynamicSubstitutions: {str(dynamic).lower()}}}
        """
    assert check(config) == []
    assert check(config, built_ins=SAMPLE) == []


def test_a_field_that_is_only_recorded_is_warned_about_when_it_would_change_the_build():
    text = """\
        steps: [{name: a}]
        options: {pubsubTopic: projects/p/topics/t}
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
