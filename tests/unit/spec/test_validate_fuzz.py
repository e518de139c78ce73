"""Whatever the decoder yields: checking never raises, and what passes can be planned and drawn."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.plan.drawing import draw_mermaid, draw_svg, draw_text, nodes_of_build
from buildrunner.plan.resolve import PlanContext
from buildrunner.plan.step_graph import StepGraph
from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.reading.decode import decode_message, load_build
from buildrunner.spec.substitutions.templates import find_references, names_in, substitute
from buildrunner.spec.substitutions.variables import BUILT_IN, BuiltIns, is_user_variable
from buildrunner.spec.validation.check import MAX_PROBLEMS, check_build, errors_of
from tests.plans import plan_build

QUICK = settings(
    max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
BUILT_INS = BuiltIns(project_id="p1", build_id="12345678-90ab", branch="a/b", tag="v1.2")

# Names and texts come from few pieces, so that they meet: references find keys, ids are waited for.
PIECE = st.sampled_from(
    ["a", "b", "_A", "$_A", "${_A}", "$_B", "$$", "$", "${", "}", "$HOME", "$PROJECT_ID", ":", "/",
     "${_A:-x}", "${_B##*/}", "${TAG_NAME#v}", "${_A:1:-1}", "${_B//a/$_A}", "=", "-", " ", "\n",
     "..", "busybox", "latest", "@", "ä", "😀", "\x00", "${!_A}", "$(body.a)", "#!"]
)  # fmt: skip
TEXT = st.lists(PIECE, max_size=5).map("".join)
NAME = st.sampled_from(["a", "b", "c", "-", "", "_A", "A"])
IMAGE = st.one_of(st.sampled_from(["busybox", "gcr.io/$PROJECT_ID/a", "a:$_A"]), TEXT)
ENV = st.one_of(TEXT, st.builds("{}={}".format, NAME, TEXT))
DURATION = st.sampled_from(["0s", "1s", "1.5s", "86400s", "86401s", "-1s"])
VOLUME = st.fixed_dictionaries(
    {"name": st.sampled_from(["v", "vv", "ww"]), "path": st.sampled_from(["/a", "a", "/workspace"])}
)
KEY = st.sampled_from(["_A", "_B", "_C", "TAG_NAME", "BUILD_ID", "x"])


def listed(each, size=3):
    return st.lists(each, max_size=size)


STEP = st.fixed_dictionaries(
    {"name": IMAGE},
    optional={
        "id": NAME,
        "args": listed(TEXT),
        "env": listed(ENV),
        "dir": TEXT,
        "entrypoint": TEXT,
        "script": TEXT,
        "waitFor": listed(NAME),
        "secretEnv": listed(NAME),
        "volumes": listed(VOLUME, 2),
        "timeout": DURATION,
        "allowFailure": st.booleans(),
        "allowExitCodes": listed(st.integers(-1, 3)),
        "automapSubstitutions": st.booleans(),
    },
)
BUILD = st.fixed_dictionaries(
    {"steps": listed(STEP, 5)},
    optional={
        "substitutions": st.dictionaries(KEY, TEXT, max_size=4),
        "images": listed(IMAGE),
        "tags": listed(TEXT),
        "timeout": DURATION,
        "queueTtl": DURATION,
        "logsBucket": TEXT,
        "serviceAccount": TEXT,
        "options": st.fixed_dictionaries(
            {},
            optional={
                "dynamicSubstitutions": st.booleans(),
                "automapSubstitutions": st.booleans(),
                "substitutionOption": st.sampled_from(["MUST_MATCH", "ALLOW_LOOSE"]),
                "env": listed(ENV),
                "secretEnv": listed(NAME),
                "volumes": listed(VOLUME, 2),
                "machineType": st.sampled_from(["E2_HIGHCPU_8", "UNSPECIFIED"]),
                "dockerDaemon": st.sampled_from(["NO_DOCKER", "PRIVILEGED"]),
                "diskSizeGb": st.sampled_from(["100", 4001]),
            },
        ),
        "artifacts": st.fixed_dictionaries(
            {},
            optional={
                "images": listed(IMAGE),
                "objects": st.fixed_dictionaries({"location": TEXT, "paths": listed(TEXT)}),
                "npmPackages": listed(st.fixed_dictionaries({"repository": TEXT}), 1),
            },
        ),
        "availableSecrets": st.fixed_dictionaries(
            {"secretManager": listed(st.fixed_dictionaries({"versionName": TEXT, "env": NAME}), 2)}
        ),
    },
)


@QUICK
@given(BUILD, st.booleans(), st.dictionaries(KEY, TEXT, max_size=2))
def test_what_passes_the_checks_can_be_planned_and_what_fails_says_why(value, triggered, given_):
    build = decode_message(Build, value).value
    problems = check_build(build, substitutions=given_, built_ins=BUILT_INS, triggered=triggered)
    assert all(problem.message and problem.rule for problem in problems)
    context = PlanContext(built_ins=BUILT_INS, substitutions=given_, triggered=triggered)
    try:
        plan = plan_build(build, context=context)
    except ConfigError:
        assert errors_of(problems)
        return
    assert BuildPlan.from_json(plan.to_json()) == plan
    assert all(step.workdir.startswith("/") for step in plan.steps)
    if plan.steps:
        nodes = nodes_of_build(build)
        draw_text(nodes)
        draw_svg(nodes)
        draw_mermaid(nodes)
    graph = StepGraph(plan.steps)
    while not graph.is_over:
        for index in graph.ready():
            graph.start(index)
        for index in graph.running:
            graph.finish(index, Status.SUCCESS)
    assert set(graph.statuses) <= {Status.SUCCESS}


@QUICK
@given(BUILD, st.booleans())
def test_problems_of_a_file_stand_in_its_order(value, triggered):
    text = json.dumps(value, indent=1).encode()
    loaded = load_build(text, file="f.json")
    problems = check_build(loaded, file="f.json", triggered=triggered)
    places = [(problem.line, problem.column) for problem in problems]
    assert places == sorted(places)
    assert all(problem.file == "f.json" and problem.line > 0 for problem in problems)


@given(TEXT, TEXT, TEXT)
def test_values_are_inserted_as_they_are(before, value, after):
    template = before + after
    pieces = []
    position = 0
    for reference in find_references(template):
        pieces.append(template[position : reference.start])
        pieces.append("$" if reference.expression is None else value)
        position = reference.end
    known = dict.fromkeys(names_in(template), value)
    assert substitute(template, known.get) == "".join(pieces) + template[position:]


@given(st.text(alphabet="ab{}/ .:-\\()é", max_size=30))
def test_a_text_without_a_dollar_stands_for_itself(text):
    assert substitute(text, {}.get) == text
    assert substitute(text, {}.get, dynamic=True) == text


@given(st.text(max_size=30))
def test_an_escaped_text_stands_for_the_text(text):
    assert substitute(text.replace("$", "$$"), {"_A": "x"}.get) == text
    assert substitute(text.replace("$", "$$"), {"_A": "x"}.get, dynamic=True) == text


@given(TEXT)
def test_what_is_found_has_a_name_of_a_variable(text):
    for name in names_in(text):
        assert name in BUILT_IN or is_user_variable(name) or name.isupper() or set(name) == {"_"}


def calls(text):
    """How many functions checking a config calls: time, without the machine's moods."""
    count = 0

    def note(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        check_build(load_build(text.encode(), file="f"), file="f")
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "repeated",
    [
        "- {name: a, args: ['$HOME $_X ${_Y']}\n",
        "- {name: a, id: s, waitFor: [tset, nope]}\n",
        "- {name: a, env: [A, 'B: 1'], secretEnv: [A, B]}\n",
        "- {name: a, volumes: [{name: vv, path: b}, {name: vv, path: b}]}\n",
        "- {name: 'A/b:$_', script: 'a', args: ['${_X:-${_X:-']}\n",
    ],
)
def test_work_is_linear_in_the_size(repeated):
    small, large = calls("steps:\n" + repeated * 20), calls("steps:\n" + repeated * 200)
    assert large < 12 * small  # ten times the text; quadratic would be a hundred times


def test_no_more_problems_than_anybody_reads_but_none_is_hidden_silently():
    problems = check_build(load_build(b"steps:\n" + b"- {name: $X}\n" * 290, file="f"), file="f")
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1].message == "91 more problems are not shown"
    assert problems[-1].line == 201
    assert errors_of(problems[-1:])
