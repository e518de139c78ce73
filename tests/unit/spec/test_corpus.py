"""The configs in ``tests/corpus``: our verdict, and that of the official client's parser."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
import yaml
from google.cloud.devtools import cloudbuild_v1
from google.protobuf import json_format

from buildrunner.plan.resolve import PlanContext
from buildrunner.problem import Severity
from buildrunner.spec.reading.decode import load_build
from buildrunner.spec.validation.check import SAMPLE, TRIGGERED_SAMPLE, check_build, errors_of
from tests.plans import plan_build

CORPUS = Path(__file__).parents[2] / "corpus"
CONFIGS = sorted(
    path
    for path in CORPUS.iterdir()
    if path.suffix in (".yaml", ".json") and not path.name.endswith(".expected.json")
)

# Rules of reading that are about form, not about types: the official parser never sees the YAML.
OF_FORM = {"source-in-config", "two-spellings", "duplicate-key"}


def expected_of(config):
    return json.loads((CORPUS / f"{config.stem}.expected.json").read_text())


def judged(config):
    expected = expected_of(config)
    loaded = load_build(config.read_bytes(), file=config.name)
    problems = check_build(
        loaded,
        file=config.name,
        substitutions=expected.get("substitutions"),
        triggered=expected.get("triggered", False),
    )
    return expected, loaded, problems


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_our_verdict(config):
    expected, _, problems = judged(config)
    found = [
        f"{'warning ' if problem.severity is Severity.WARNING else ''}{problem.rule}:{problem.line}"
        for problem in problems
        if problem.rule != "not-done-here"  # about buildrunner, not about the config
    ]
    assert sorted(found) == sorted(expected["problems"])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_what_has_no_errors_has_a_plan(config):
    expected, loaded, problems = judged(config)
    if errors_of(problems):
        assert "runs" not in expected
        return
    triggered = expected.get("triggered", False)
    context = PlanContext(
        built_ins=TRIGGERED_SAMPLE if triggered else SAMPLE,
        substitutions=expected.get("substitutions", {}),
        triggered=triggered,
    )
    plan = plan_build(loaded.build, context=context)
    assert len(plan.steps) == len(loaded.build.steps)
    if "runs" in expected:
        assert len(expected["runs"]["steps"]) == len(plan.steps)


def dated_as_text(value):
    """What YAML takes for a date stays what JSON can hold."""
    if isinstance(value, dict):
        return {key: dated_as_text(each) for key, each in value.items()}
    if isinstance(value, list):
        return [dated_as_text(each) for each in value]
    return 20200101 if isinstance(value, date) else value


def read_by_others(config):
    """The values of a config, as JSON where it is that."""
    text = config.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_the_official_parsers_verdict_on_the_types(config):
    expected, loaded, _ = judged(config)
    ours = {problem.rule for problem in loaded.problems if problem.rule not in OF_FORM}
    strict = {"scalar-for-list", "null-value"} & ours
    well_typed = not errors_of(loaded.problems) or not ours - {"output-only"}
    try:
        document = dated_as_text(read_by_others(config))
        json_format.ParseDict(document, cloudbuild_v1.Build.pb()())
        official = True
    except (yaml.YAMLError, json_format.ParseError, AttributeError, TypeError):
        official = False
    if expected.get("newer"):
        assert not official
        return
    # What gcloud lets pass (a scalar for a list, null for ''), we let pass with a warning.
    assert official == (well_typed and not strict)


def test_there_are_enough_of_them():
    assert len(CONFIGS) >= 60
    assert sum("runs" in expected_of(config) for config in CONFIGS) >= 30
