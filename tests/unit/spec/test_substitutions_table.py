"""The 92 rows of the substitution table of the semantics, each by its number."""

from __future__ import annotations

import pytest

from buildrunner.errors import ConfigError
from buildrunner.plan.resolve import PlanContext
from buildrunner.problem import Severity
from buildrunner.spec.model.build import Build, BuildOptions, BuildStep, SubstitutionOption
from buildrunner.spec.substitutions.payload import bind
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.spec.validation.check import check_build
from tests.plans import plan_build

BOTH = ("S", "L")
WORLD = {"_VAR": "World"}


def judged(
    user: dict[str, str],
    step: BuildStep,
    mode: str,
    *,
    dynamic: bool = False,
    built_ins: BuiltIns,
    **fields: object,
) -> tuple[Build, list[str]]:
    option = SubstitutionOption.MUST_MATCH if mode == "S" else SubstitutionOption.ALLOW_LOOSE
    automap = bool(fields.pop("automap", False))
    build = Build(
        steps=(step,),
        substitutions=user,
        options=BuildOptions(
            substitution_option=option,
            dynamic_substitutions=dynamic,
            automap_substitutions=automap,
        ),
        **fields,
    )
    problems = check_build(build, built_ins=built_ins)
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    return build, [f"{problem.rule} {problem.message}" for problem in errors]


def planned(build: Build, built_ins: BuiltIns):
    return plan_build(build, context=PlanContext(built_ins=built_ins))


# number, map, template, modes, dynamic, expected text or (rule, words of its message), built-ins
P1 = BuiltIns(project_id="p1", build_id="12345678-90ab", branch="feature/Add-Login", tag="v1.2.3")
NO_SOURCE = BuiltIns(project_id="p1", build_id="b1")

ROWS = [
    (1, WORLD, "Hello $_VAR", BOTH, False, "Hello World", NO_SOURCE),
    (2, WORLD, "Hello ${_VAR}", BOTH, False, "Hello World", NO_SOURCE),
    (3, WORLD, "$_VARfoo", BOTH, False, "Worldfoo", NO_SOURCE),
    (4, WORLD, "${_VAR}_FOO", BOTH, False, "World_FOO", NO_SOURCE),
    (5, WORLD, "$_VAR_FOO, $_VAR", ("L",), False, ", World", NO_SOURCE),
    (6, WORLD, "$_VAR_FOO, $_VAR", ("S",), False, [("V17", "_VAR_FOO")], NO_SOURCE),
    (7, WORLD, "$_VAR$_VAR", BOTH, False, "WorldWorld", NO_SOURCE),
    (8, WORLD, "$$_VAR", ("L",), False, "$_VAR", NO_SOURCE),
    (9, WORLD, "$$_VAR", ("S",), False, [("V19", "_VAR")], NO_SOURCE),
    (10, WORLD, "$$$_VAR", BOTH, False, "$World", NO_SOURCE),
    (11, WORLD, "$$$$_VAR", ("L",), False, "$$_VAR", NO_SOURCE),
    (12, WORLD, "$${_VAR}_FOO, $_VAR", BOTH, False, "${_VAR}_FOO, World", NO_SOURCE),
    (13, WORLD, "$_VAR.$_VAR-$_VAR/$_VAR", BOTH, False, "World.World-World/World", NO_SOURCE),
    (14, WORLD, "$_VAR}x", BOTH, False, "World}x", NO_SOURCE),
    (15, WORLD, "${_VAR", ("L",), False, "${_VAR", NO_SOURCE),
    (16, WORLD, "${_VAR }", ("L",), False, "${_VAR }", NO_SOURCE),
    (17, WORLD, r"\$_VAR", BOTH, False, r"\World", NO_SOURCE),
    (18, {}, "cost: 5$", BOTH, False, "cost: 5$", NO_SOURCE),
    (19, {}, "$", BOTH, False, "$", NO_SOURCE),
    (20, {}, "$$", BOTH, False, "$", NO_SOURCE),
    (21, {}, "$$$", BOTH, False, "$$", NO_SOURCE),
    (22, {}, "$1 $? $@ $# $- $(date)", BOTH, False, "$1 $? $@ $# $- $(date)", NO_SOURCE),
    (23, {}, "$foo ${foo}", BOTH, False, "$foo ${foo}", NO_SOURCE),
    (24, {}, "${}", BOTH, False, "${}", NO_SOURCE),
    (25, {}, "$_", BOTH, False, [("V18", '"_"')], NO_SOURCE),
    (26, {}, "$HOME/x", BOTH, False, [("V18", '"HOME"')], NO_SOURCE),
    (27, {}, "$$HOME/x", BOTH, False, "$HOME/x", NO_SOURCE),
    (28, {}, "echo $PATH", ("L",), False, [("V18", '"PATH"')], NO_SOURCE),
    (29, {}, "$BUILDER_OUTPUT/output", BOTH, False, [("V18", '"BUILDER_OUTPUT"')], NO_SOURCE),
    (30, {}, "$PROJECT_ID", BOTH, False, "p1", NO_SOURCE),
    (31, {}, "b-${BUILD_ID}", BOTH, False, "b-b1", NO_SOURCE),
    (32, {}, "img:$TAG_NAME", ("S",), False, "img:", NO_SOURCE),
    (35, {"SHORT_SHA": "abc"}, "$SHORT_SHA", ("S",), False, "abc", NO_SOURCE),
    (36, {"SHORT_SHA": "abc"}, "x", ("S",), False, [("V19", '"SHORT_SHA"')], NO_SOURCE),
    (37, {"PROJECT_ID": "q"}, "$PROJECT_ID", BOTH, False, [("V16", "PROJECT_ID")], NO_SOURCE),
    (38, {"BUILD_ID": "q"}, "x", ("L",), False, [("V16", "BUILD_ID")], NO_SOURCE),
    (39, {"FOO": "1"}, "$FOO", BOTH, False, [("V14", '"FOO"')], NO_SOURCE),
    (40, {"_foo": "1"}, "x", BOTH, False, [("V14", '"_foo"')], NO_SOURCE),
    (41, {"_": "1"}, "x", BOTH, False, [("V14", '"_"')], NO_SOURCE),
    (42, {"_1": "x"}, "$_1", BOTH, False, "x", NO_SOURCE),
    (43, {"_A": ""}, "[$_A]", ("S",), False, "[]", NO_SOURCE),
    (44, {}, "[$_A]", ("S",), False, [("V17", '"_A"')], NO_SOURCE),
    (45, {}, "[$_A]", ("L",), False, "[]", NO_SOURCE),
    (46, {"_A": "1", "_B": "2"}, "$_A", ("S",), False, [("V19", '"_B"')], NO_SOURCE),
    (
        47,
        {"_A": "1", "_B": "2"},
        "$_C",
        ("S",),
        False,
        [("V17", '"_C"'), ("V19", '"_A"'), ("V19", '"_B"')],
        NO_SOURCE,
    ),
    (48, {"_A": "$_B", "_B": "x"}, "$_A $_B", BOTH, False, "$_B x", NO_SOURCE),
    (49, {"_A": "$_B", "_B": "x"}, "$_A", ("S",), True, "x", NO_SOURCE),
    (50, {"_A": "$_B", "_B": "$_C", "_C": "z"}, "$_A", BOTH, True, "z", NO_SOURCE),
    (51, {"_A": "$_B", "_B": "$_A"}, "$_A", BOTH, True, [("cycle", "_A -> _B -> _A")], NO_SOURCE),
    (
        52,
        {"_I": "gcr.io/${PROJECT_ID}/a"},
        "$_I",
        BOTH,
        False,
        "gcr.io/${PROJECT_ID}/a",
        NO_SOURCE,
    ),
    (53, {"_I": "gcr.io/${PROJECT_ID}/a"}, "$_I", BOTH, True, "gcr.io/p1/a", NO_SOURCE),
    (54, {"_R": "rel-${BUILD_ID:0:8}"}, "$_R", BOTH, True, "rel-12345678", P1),
    (55, {"_B": r"${BRANCH_NAME//\//-}"}, "$_B", BOTH, True, "feature-Add-Login", P1),
    (56, {"_B": "${BRANCH_NAME,,}"}, "$_B", BOTH, True, "feature/add-login", P1),
    (57, {"_B": "${BRANCH_NAME^^}"}, "$_B", BOTH, True, "FEATURE/ADD-LOGIN", P1),
    (58, {"_V": "${TAG_NAME#v}"}, "$_V", BOTH, True, "1.2.3", P1),
    (59, {"_V": "${TAG_NAME%.*}"}, "$_V", BOTH, True, "v1.2", P1),
    (60, {"_V": "${TAG_NAME%%.*}"}, "$_V", BOTH, True, "v1", P1),
    (61, {"_V": "${TAG_NAME##*.}"}, "$_V", BOTH, True, "3", P1),
    (62, {"_V": "${TAG_NAME:-dev}"}, "$_V", BOTH, True, "dev", NO_SOURCE),
    (63, {"_V": "${TAG_NAME-dev}"}, "$_V", BOTH, True, "", NO_SOURCE),
    (64, {"_V": "${TAG_NAME:+release}"}, "$_V", BOTH, True, "release", P1),
    (65, {"_V": "x-${TAG_NAME//./-}-y"}, "$_V", BOTH, True, "x-v1-2-3-y", P1),
    (66, {"_V": "${TAG_NAME/#v/V}"}, "$_V", BOTH, True, "V1.2.3", P1),
    (67, {"_V": "${#TAG_NAME}"}, "$_V", BOTH, True, "6", P1),
    (68, {"_V": "${BUILD_ID: -4}"}, "$_V", BOTH, True, "90ab", P1),
    (69, {"_I": "gcr.io/p/app:1", "_N": "${_I##*/}"}, "$_N", BOTH, True, "app:1", NO_SOURCE),
    (70, {"_X": "1"}, "${_X:-2}", ("S",), False, [("V19", '"_X"')], NO_SOURCE),
    (71, {"_X": "1"}, "${_X:-2}", ("L",), False, "${_X:-2}", NO_SOURCE),
    (72, {"_X": "1"}, "${_X:-2}", BOTH, True, "1", NO_SOURCE),
    (73, {"_X": "a$$b"}, "$_X", BOTH, False, "a$$b", NO_SOURCE),
    (74, {"_X": "a$$b"}, "$_X", BOTH, True, "a$b", NO_SOURCE),
    (90, {"_Ä": "1"}, "x", BOTH, False, [("V14", '"_Ä"')], NO_SOURCE),
    (91, WORLD, "Hello, 世界 $_VAR", BOTH, False, "Hello, 世界 World", NO_SOURCE),
    (92, {"COMMIT_SHA": "0123456789abcdef"}, "[$SHORT_SHA]", ("L",), False, "[]", NO_SOURCE),
]


@pytest.mark.parametrize(
    ("user", "template", "mode", "dynamic", "expected", "built_ins"),
    [
        pytest.param(user, template, mode, dynamic, expected, built_ins, id=f"{number}{mode}")
        for number, user, template, modes, dynamic, expected, built_ins in ROWS
        for mode in modes
    ],
)
def test_row_of_the_table(user, template, mode, dynamic, expected, built_ins):
    step = BuildStep(name="busybox", args=(template,))
    build, errors = judged(user, step, mode, dynamic=dynamic, built_ins=built_ins)
    if isinstance(expected, str):
        assert errors == []
        assert planned(build, built_ins).steps[0].args == (expected,)
        return
    assert len(errors) == len(expected)
    for error, (rule, words) in zip(errors, expected, strict=True):
        assert error.startswith(f"{rule} ")
        assert words in error


def test_row_33_an_image_name_that_becomes_invalid_is_v70():
    _, errors = judged(
        {}, BuildStep(name="busybox"), "S", built_ins=NO_SOURCE, images=("img:$TAG_NAME",)
    )
    assert [error[:3] for error in errors] == ["V70"]
    assert 'invalid image name "img:"' in errors[0]


def test_row_34_an_empty_tag_is_dropped():
    build, errors = judged(
        {}, BuildStep(name="busybox"), "S", built_ins=NO_SOURCE, tags=("$BRANCH_NAME",)
    )
    assert errors == []
    assert planned(build, NO_SOURCE).tags == ()


@pytest.mark.parametrize(
    ("user", "body", "template", "expected"),
    [
        pytest.param(
            {"_X": "$(body.ref)"}, {"ref": "refs/heads/main"}, "$_X", "refs/heads/main", id="75"
        ),
        pytest.param(
            {"_X": "$(body.ref)", "_Y": "${_X##*/}"},
            {"ref": "refs/heads/main"},
            "$_Y",
            "main",
            id="76",
        ),
        pytest.param({"_X": "$(body.n)"}, {"n": {"a": [1]}}, "$_X", '{"a":[1]}', id="77"),
        pytest.param({"_X": "$(body.none)"}, {}, "[$_X]", "[]", id="78"),
        pytest.param({"_X": "$(body.a)-$(body.b)"}, {"a": 1, "b": "z"}, "$_X", "1-z", id="79"),
        pytest.param(
            {"_X": "$(body.a)", "_Y": "secret"},
            {"a": "$(body.b) ${_Y}", "b": "no"},
            "$_X",
            "$(body.b) ${_Y}",
            id="80",
        ),
    ],
)
def test_row_of_a_webhook(user, body, template, expected):
    bound = bind(user, {"body": body})
    build = Build(steps=(BuildStep(name="busybox", args=(template,)),), substitutions=bound.values)
    plan = plan_build(build, context=PlanContext(built_ins=NO_SOURCE, triggered=True))
    assert plan.steps[0].args == (expected,)


def test_row_81_a_script_is_never_substituted():
    step = BuildStep(name="busybox", script="echo $_X")
    build, errors = judged({"_X": "v"}, step, "S", built_ins=NO_SOURCE)
    assert [error[:3] for error in errors] == ["V19"]
    assert planned(build, NO_SOURCE).steps[0].script == "#!/bin/sh\necho $_X"


def test_row_82_automap_is_a_use_and_sets_the_environment():
    step = BuildStep(name="busybox", script="echo $_X")
    build, errors = judged({"_X": "v"}, step, "S", built_ins=NO_SOURCE, automap=True)
    assert errors == []
    assert "_X=v" in planned(build, NO_SOURCE).steps[0].env


def test_row_83_env_carries_a_value_into_a_script():
    step = BuildStep(name="busybox", env=("A=$_X",), script="echo $A")
    build, errors = judged({"_X": "v"}, step, "S", built_ins=NO_SOURCE)
    assert errors == []
    assert planned(build, NO_SOURCE).steps[0].env == ("A=v",)


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize(
    ("user", "fields", "attribute", "expected"),
    [
        pytest.param({"_K": "NAME"}, {"env": ("$_K=1",)}, "env", ("NAME=1",), id="84"),
        pytest.param({"_D": "sub"}, {"dir": "$_D/x"}, "workdir", "/workspace/sub/x", id="85"),
        pytest.param({"_N": "ubuntu"}, {"name": "$_N:22.04"}, "image", "ubuntu:22.04", id="86"),
        pytest.param({"_E": "bash"}, {"entrypoint": "$_E"}, "entrypoint", "bash", id="87"),
    ],
)
def test_row_of_a_field(mode, user, fields, attribute, expected):
    step = BuildStep(**{"name": "busybox", **fields})
    build, errors = judged(user, step, mode, built_ins=NO_SOURCE)
    assert errors == []
    assert getattr(planned(build, NO_SOURCE).steps[0], attribute) == expected


def test_row_88_a_step_name_that_becomes_empty_is_v69():
    _, errors = judged({}, BuildStep(name="$_N"), "L", built_ins=NO_SOURCE)
    assert [error[:3] for error in errors] == ["V69"]


@pytest.mark.parametrize("mode", BOTH)
def test_row_89_a_tag_with_a_blank_is_v71(mode):
    _, errors = judged(
        {"_T": "a b"}, BuildStep(name="busybox"), mode, built_ins=NO_SOURCE, tags=("$_T",)
    )
    assert [error[:3] for error in errors] == ["V71"]


def test_every_row_is_here():
    in_table = {row[0] for row in ROWS}
    by_function = {33, 34, *range(75, 90)}
    assert in_table | by_function == set(range(1, 93))


def test_a_cycle_that_only_shows_when_resolving_is_a_config_error():
    build = Build(steps=(BuildStep(name="busybox"),), substitutions={"_A": "${_B:-x}", "_B": "$_A"})
    with pytest.raises(ConfigError, match="_A -> _B -> _A"):
        plan_build(build, context=PlanContext(built_ins=NO_SOURCE, triggered=True))
