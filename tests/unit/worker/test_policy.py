"""Which builds a server's policy refuses, and in which words."""

from __future__ import annotations

import pytest

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan
from buildrunner.plan.compile import compile_build
from buildrunner.plan.resolve import PlanContext
from buildrunner.settings import Settings
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.policy import check_policy, check_rules, policy_facts

COMMIT = "c" * 40
MAIN = BuildOrigin(
    repository="https://git.example.com/shop.git",
    ref="refs/heads/main",
    commit=COMMIT,
    config="cloudbuild.yaml",
    config_in_source=True,
    trigger="t1",
    trigger_name="deploy",
)
DOCUMENT = {
    "steps": [{"name": "gcr.io/cloud-builders/docker", "args": ["build", "."]}],
    "images": ["registry.example.com/shop/app:$_TAG"],
    "substitutions": {"_TAG": "v1"},
    "tags": ["prod"],
}
WITHOUT_ENGINE = {"images": [], "substitutions": {}, "options": {"dockerDaemon": "NO_DOCKER"}}
APPROVED = {"approval": {"state": "APPROVED", "result": {"approverAccount": "alice"}}}


def refusal(rule, *, build=None, origin=MAIN, document=None, untrusted=False):
    """Why a build is refused; empty for a build that may begin."""
    loaded = decode_message(Build, {**DOCUMENT, **(build or {})})
    context = PlanContext(built_ins=BuiltIns(project_id="shop", build_id="b1"))
    compiled = compile_build(loaded.value, context, file="cloudbuild.yaml")
    plan = BuildPlan(
        build_id="b1",
        project_id="shop",
        steps=compiled.plan.steps,
        images=compiled.plan.images,
        origin=origin,
    )
    stored = StoredBuild(document=document or {}, request={}, untrusted=untrusted)
    try:
        check_policy({"r": rule}, compiled.build, policy_facts(stored, plan))
    except ConfigError as error:
        return str(error)
    return ""


IMAGES = 'images.all(i, i.startsWith("gcr.io/cloud-builders/"))'
REGISTRY = 'pushed.all(i, i.startsWith("registry.example.com/"))'
APPROVAL = 'trigger != "deploy" || approved'
SOURCE = 'trigger != "deploy" || (verified && ref == "refs/heads/main")'
BY_ALICE = 'approver in ["alice", "bob"]'
NO_DOCKER = 'build.options.docker_daemon == "NO_DOCKER"'
FIELDS = '!("prod" in build.tags) || size(build.steps) == 1'


@pytest.mark.parametrize(
    ("rule", "facts", "passes"),
    [
        (IMAGES, {}, True),
        (IMAGES, {"build": {"steps": [{"name": "evil"}]}}, False),
        (IMAGES, {"build": {"steps": [{"name": "$_TAG"}]}}, False),
        (REGISTRY, {}, True),
        (REGISTRY, {"build": {"images": ["$_TAG"]}}, False),
        (APPROVAL, {}, False),
        (APPROVAL, {"document": {"approval": {"state": "PENDING"}}}, False),
        (APPROVAL, {"document": {"approval": {"state": "REJECTED"}}}, False),
        (APPROVAL, {"document": APPROVED}, True),
        (APPROVAL, {"origin": BuildOrigin()}, True),
        (BY_ALICE, {"document": APPROVED}, True),
        (BY_ALICE, {}, False),
        (SOURCE, {}, True),
        (SOURCE, {"untrusted": True}, False),
        (SOURCE, {"origin": BuildOrigin(trigger="t1", trigger_name="deploy")}, False),
        ("trusted", {"untrusted": True}, False),
        ("trusted", {}, True),
        (f'commit == "{COMMIT}"', {}, True),
        ('repository.startsWith("https://git.example.com/")', {}, True),
        (FIELDS, {}, True),
        (FIELDS, {"build": {"steps": [{"name": "a"}, {"name": "b"}]}}, False),
        ('build.images[0].endsWith(":v1")', {}, True),
        (NO_DOCKER, {}, False),
        (NO_DOCKER, {"build": WITHOUT_ENGINE}, True),
    ],
)
def test_a_rule_decides_on_the_planned_build_and_on_the_servers_facts(rule, facts, passes):
    assert (refusal(rule, **facts) == "") is passes


@pytest.mark.parametrize(
    "image",
    [
        "Registry.EXAMPLE.com/prod/app:1",
        "registry.example.com:443/prod/app",
        "registry.example.com:0443/prod/app",
        "registry.example.com:00000443/prod/app",
        "REGISTRY.example.com:443/prod/app@sha256:" + "0" * 64,
    ],
)
@pytest.mark.parametrize(
    ("rule", "build"),
    [
        ('!pushed.exists(i, i.startsWith("registry.example.com/prod/"))', "images"),
        ('!images.exists(i, i.startsWith("registry.example.com/prod/"))', "steps"),
    ],
)
def test_no_other_spelling_of_a_registry_passes_by_a_rule(rule, build, image):
    pushed = {"images": [image], "substitutions": {}}
    changed = pushed if build == "images" else {"steps": [{"name": image}]}
    assert "is false" in refusal(rule, build=changed)


def test_docker_hub_has_one_name_as_a_registry_in_rules():
    steps = [{"name": "index.docker.io/acme/a"}, {"name": "acme/b"}]
    rule = 'images == ["docker.io/acme/a", "acme/b"]'
    assert refusal(rule, build={"steps": steps}) == ""


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("trusted && false", "the rule r is false: trusted && false"),
        ("unknown == 1", "the rule r can't be evaluated for this build: "),
        ('"yes"', "the rule r gives 'yes', which is neither true nor false"),
        ("images[7] == ''", "the rule r can't be evaluated for this build: "),
        ("build.nothing", "Build has no field nothing"),
    ],
)
def test_a_refusal_names_the_rule_and_says_why(rule, words):
    text = refusal(rule)
    assert text.startswith("the policy of this server refuses the build: the rule r ")
    assert words in text
    assert text.endswith("ask the server's admin")


def test_all_rules_that_are_broken_are_named():
    with pytest.raises(ConfigError) as refused:
        check_policy({"one": "false", "two": "true", "three": "false"}, Build(), {})
    assert [problem.rule for problem in refused.value.problems] == ["policy:one", "policy:three"]


def test_a_server_does_not_start_with_a_rule_that_can_not_be_read():
    settings = Settings(
        policy={"good": "true", "bad": "images.all("},
        projects={"shop": {"policy": {"field": "build.stepz", "none": ""}}},
    )
    with pytest.raises(ConfigError) as refused:
        check_rules(settings)
    assert [problem.path for problem in refused.value.problems] == [
        "policy.rules.bad",
        "projects.shop.policy.rules.field",
        "projects.shop.policy.rules.none",
    ]
    check_rules(Settings(policy={"good": "true"}))


def test_a_project_adds_rules_and_replaces_those_of_a_name():
    own = {"shop": {"policy": {"b": "false", "c": "true"}}}
    settings = Settings(policy={"a": "true", "b": "true"}, projects=own)
    assert settings.of_project("shop").policy == {"a": "true", "b": "false", "c": "true"}
    assert settings.of_project("other").policy == {"a": "true", "b": "true"}
