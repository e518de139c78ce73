"""From a Build to a BuildPlan, rule by rule."""

from __future__ import annotations

from datetime import timedelta

import pytest

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import BuildPlan, ResourceLimits, SecretReference, VolumeMount
from buildrunner.plan.compile import (
    DEFAULT_TIMEOUT_S,
    MACHINE_LIMITS,
    source_dir_of,
    working_directory,
)
from buildrunner.plan.privilege import Privilege
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.spec.model.build import (
    Build,
    BuildOptions,
    BuildStep,
    DockerDaemon,
    InlineSecret,
    LoggingMode,
    MachineType,
    Secret,
    SecretManagerSecret,
    Secrets,
    SubstitutionOption,
    Volume,
)
from buildrunner.spec.model.results import ArtifactObjects, Artifacts
from buildrunner.spec.model.source import GitSource, RepoSource, Source, StorageSource
from buildrunner.spec.substitutions.templates import MAX_SUBSTITUTED_LENGTH
from buildrunner.spec.substitutions.variables import BuiltIns
from tests.plans import plan_build

CONTEXT = PlanContext(built_ins=BuiltIns(project_id="p1", project_number="7", build_id="b1"))


def step(**fields):
    return BuildStep(**{"name": "busybox", **fields})


def plan(*steps, context=CONTEXT, **fields):
    return plan_build(Build(steps=steps or (step(),), **fields), context=context)


@pytest.mark.parametrize(
    ("source_dir", "step_dir", "expected"),
    [
        ("", "", "/workspace"),
        ("", "a", "/workspace/a"),
        ("", "./a//b/", "/workspace/a/b"),
        ("", "/abs/x", "/abs/x"),
        ("s", "", "/workspace/s"),
        ("s", "a", "/workspace/s/a"),
        ("s", "/abs", "/abs"),
        ("", "..", "/"),
        ("a", "../../", "/"),
        ("a/b/c", "../../", "/workspace/a"),
        ("", "../../../etc", "/etc"),
        ("", "/../x/.", "/x"),
        ("", "//a", "/a"),
    ],
)
def test_the_working_directory_is_lexically_clean(source_dir, step_dir, expected):
    assert working_directory(source_dir, step_dir) == expected
    context = PlanContext(built_ins=BuiltIns(), source_dir=source_dir)
    assert plan(step(dir=step_dir), context=context).steps[0].workdir == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, ""),
        (Source(repo_source=RepoSource(dir="d")), "d"),
        (Source(git_source=GitSource(dir="d")), "d"),
        (Source(storage_source=StorageSource(bucket="b")), ""),
    ],
)
def test_the_folder_of_the_source_comes_from_the_build(source, expected):
    assert source_dir_of(Build(source=source)) == expected
    assert plan(source=source).source_dir == expected


@pytest.mark.parametrize(
    ("fields", "entrypoint", "args", "script"),
    [
        ({}, None, None, None),
        ({"args": ("a", "b c")}, None, ("a", "b c"), None),
        ({"entrypoint": "sh -c"}, "sh -c", None, None),
        ({"entrypoint": "sh", "args": ("-c", "x")}, "sh", ("-c", "x"), None),
        ({"script": "echo $PATH\n"}, None, None, "#!/bin/sh\necho $PATH\n"),
        ({"script": "#!/usr/bin/env python3\n1"}, None, None, "#!/usr/bin/env python3\n1"),
        ({"script": " #!/bin/bash"}, None, None, "#!/bin/sh\n #!/bin/bash"),
    ],
)
def test_what_runs(fields, entrypoint, args, script):
    planned = plan(step(**fields)).steps[0]
    assert (planned.entrypoint, planned.args, planned.script) == (entrypoint, args, script)


def test_a_steps_env_wins_over_the_global_one_and_is_sorted_by_key():
    planned = plan(
        step(env=("B=step", "a=1", "A==x", "A=last\nline", "EMPTY=")),
        options=BuildOptions(env=("B=global", "C=$PROJECT_ID")),
    )
    assert planned.steps[0].env == ("A=last\nline", "B=step", "C=p1", "EMPTY=", "a=1")


def test_keys_are_sorted_as_bytes():
    planned = plan(step(env=("ä=1", "z=1", "Z=1", "_=1", "\U0001f600=1", "ﬀ=1")))
    keys = [entry.partition("=")[0] for entry in planned.steps[0].env]
    assert keys == sorted(keys, key=str.encode)


def test_home_is_the_users_only_when_the_user_sets_it():
    assert plan().steps[0].env == ()
    assert plan(step(env=("HOME=/root",))).steps[0].env == ("HOME=/root",)


@pytest.mark.parametrize(
    ("globally", "in_step", "expected"),
    [
        (False, None, False),
        (False, True, True),
        (False, False, False),
        (True, None, True),
        (True, True, True),
        (True, False, False),
    ],
)
def test_automap_of_the_step_wins_in_both_directions(globally, in_step, expected):
    planned = plan(
        step(automap_substitutions=in_step),
        options=BuildOptions(automap_substitutions=globally),
        substitutions={"_X": "v"},
    )
    assert ("_X=v" in planned.steps[0].env) is expected
    assert ("BUILD_ID=b1" in planned.steps[0].env) is expected


def test_env_and_secrets_win_over_automapped_variables():
    planned = plan(
        step(env=("_X=env",), secret_env=("_S",), automap_substitutions=True),
        substitutions={"_X": "v", "_S": "not the secret"},
        available_secrets=Secrets(
            secret_manager=(
                SecretManagerSecret(
                    version_name="projects/$PROJECT_ID/secrets/s/versions/1", env="_S"
                ),
            )
        ),
    )
    assert "_X=env" in planned.steps[0].env
    assert not any(entry.startswith("_S=") for entry in planned.steps[0].env)
    assert planned.steps[0].secrets == (
        SecretReference("_S", "secretManager", "projects/p1/secrets/s/versions/1"),
    )


def test_secrets_are_references_of_all_three_kinds():
    planned = plan(
        step(secret_env=("C", "A")),
        step(),
        options=BuildOptions(secret_env=("B",)),
        secrets=(Secret(kms_key_name="key", secret_env={"A": b"\x00\xff"}),),
        available_secrets=Secrets(
            secret_manager=(SecretManagerSecret(version_name="v", env="B"),),
            inline=(InlineSecret(kms_key_name="other", env_map={"C": b"c"}),),
        ),
    )
    assert planned.steps[0].secrets == (
        SecretReference("A", "kms", "key", "AP8="),
        SecretReference("B", "secretManager", "v"),
        SecretReference("C", "kms", "other", "Yw=="),
    )
    assert [secret.env for secret in planned.steps[1].secrets] == ["B"]


def test_global_volumes_come_first_and_each_name_once():
    planned = plan(
        step(volumes=(Volume(name="own", path="/o/"),)),
        step(volumes=(Volume(name="own", path="/other"),)),
        options=BuildOptions(volumes=(Volume(name="all", path="/a/../g"),)),
    )
    assert planned.steps[0].volumes == (VolumeMount("all", "/g"), VolumeMount("own", "/o"))
    assert planned.steps[1].volumes == (VolumeMount("all", "/g"), VolumeMount("own", "/other"))
    assert planned.volumes == ("all", "own")


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ((), (0, 1)),
        (("-",), ()),
        (("a", "b"), (0, 1)),
        (("b", "a", "a"), (0, 1)),
        (("-", "a"), (0,)),
        (("-", "-"), ()),
    ],
)
def test_what_a_step_waits_for(waits, expected):
    planned = plan(step(id="a"), step(id="b"), step(wait_for=waits))
    assert planned.steps[2].depends_on == expected


def test_the_worked_example_of_a_graph():
    planned = plan(
        step(id="a", wait_for=("-",)),
        step(id="b", wait_for=("-",)),
        step(id="c", wait_for=("a",)),
        step(id="d"),
        step(id="e", wait_for=("-",)),
        step(id="f", wait_for=("e", "c")),
    )
    assert [each.depends_on for each in planned.steps] == [(), (), (0,), (0, 1, 2), (), (2, 4)]


def test_a_plan_of_a_build_that_was_never_checked_is_refused_not_broken():
    with pytest.raises(ConfigError, match="no earlier step has"):
        plan(step(wait_for=("x",)))
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        plan(step(env=("x",)))


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        (None, DEFAULT_TIMEOUT_S),
        (timedelta(), DEFAULT_TIMEOUT_S),
        (timedelta(seconds=1.5), 1.5),
    ],
)
def test_the_builds_timeout(timeout, expected):
    assert plan(timeout=timeout).timeout_s == expected


@pytest.mark.parametrize(
    ("timeout", "expected"), [(None, None), (timedelta(), None), (timedelta(seconds=5), 5.0)]
)
def test_a_steps_timeout(timeout, expected):
    assert plan(step(timeout=timeout)).steps[0].timeout_s == expected


def test_images_come_from_either_list_and_tags_are_cleaned():
    assert plan(images=("a:$BUILD_ID",)).images == ("a:b1",)
    assert plan(artifacts=Artifacts(images=("b", "b"))).images == ("b", "b")
    assert plan(tags=("x", "$TAG_NAME", "y", "x")).tags == ("x", "y")


def test_objects_go_to_a_folder():
    artifacts = Artifacts(objects=ArtifactObjects(location="gs://$PROJECT_ID/d", paths=("a*",)))
    planned = plan(artifacts=artifacts)
    assert (planned.object_location, planned.object_paths) == ("gs://p1/d/", ("a*",))


@pytest.mark.parametrize("machine", MachineType)
def test_every_machine_type_has_limits(machine):
    limits = plan(options=BuildOptions(machine_type=machine)).limits
    assert limits == MACHINE_LIMITS[machine]
    assert (limits == ResourceLimits()) is (machine is MachineType.UNSPECIFIED)


@pytest.mark.parametrize(
    ("daemon", "socket", "privileged"),
    [
        (DockerDaemon.DOCKER_DAEMON_UNSPECIFIED, True, True),
        (DockerDaemon.NO_DOCKER, False, False),
        (DockerDaemon.NON_PRIVILEGED, True, False),
        (DockerDaemon.PRIVILEGED, True, True),
    ],
)
def test_what_steps_may_do_with_the_engine(daemon, socket, privileged):
    options = BuildOptions(docker_daemon=daemon)
    grant = Privilege(docker_socket=True, privileged=True)
    planned = plan(options=options, context=PlanContext(built_ins=BuiltIns(), grant=grant))
    assert (planned.docker_socket, planned.privileged) == (socket, privileged)
    ungranted = plan(options=options)
    assert (ungranted.docker_socket, ungranted.privileged) == (False, False)


def test_only_logging_none_keeps_no_log():
    for mode in LoggingMode:
        planned = plan(options=BuildOptions(logging=mode))
        assert planned.store_log is (mode is not LoggingMode.NONE)


def test_a_plan_survives_json():
    planned = plan(step(env=("A=1",)), step(script="x", wait_for=("-",)), substitutions={"_A": "1"})
    assert BuildPlan.from_json(planned.to_json()) == planned


def test_a_resolved_build_shows_the_values_and_the_options_that_count():
    build = Build(
        steps=(step(name="$_N", args=("$$HOME",)),),
        substitutions={"_N": "${REPO_NAME}-x"},
        tags=("$TAG_NAME",),
    )
    built_ins = BuiltIns(
        project_id="p1", build_id="b1", repo_full_name="o/r", commit_sha="0123456789", tag="v1"
    )
    resolved = resolve(build, context=PlanContext(built_ins=built_ins, triggered=True))
    assert resolved.build.steps[0].name == "r-x"
    assert resolved.build.steps[0].args == ("$HOME",)
    assert resolved.build.options is not None
    assert resolved.build.options.substitution_option is SubstitutionOption.ALLOW_LOOSE
    assert resolved.build.options.dynamic_substitutions is True
    assert resolved.build.substitutions == {
        "COMMIT_SHA": "0123456789",
        "REVISION_ID": "0123456789",
        "SHORT_SHA": "0123456",
        "REPO_NAME": "r",
        "REPO_FULL_NAME": "o/r",
        "REF_NAME": "v1",
        "TAG_NAME": "v1",
        "_N": "r-x",
    }


@pytest.mark.parametrize(
    ("step_id", "label"),
    [
        ("", "Step #0"),
        ("unit tests", 'Step #0 - "unit tests"'),
        ("漢字 é\u200b", 'Step #0 - "漢字 é\u200b"'),
        ("a\nb\r\x1b[31m\u2028", r'Step #0 - "a\nb\r\x1b[31m\u2028"'),
    ],
)
def test_a_label_is_one_line(step_id, label):
    assert plan(step(id=step_id)).steps[0].label == label


def test_the_tags_that_are_shown_are_the_cleaned_ones():
    build = Build(steps=(step(),), tags=("$TAG_NAME", "b", "$_T", "b"), substitutions={"_T": "a"})
    resolved = resolve(build, context=PlanContext(built_ins=BuiltIns(build_id="b")))
    assert resolved.build.tags == ("b", "a")


@pytest.mark.parametrize(
    "given",
    [
        {"images": ("r/$_T:1",)},
        {"artifacts": Artifacts(images=("r/$_T:1",))},
        {"images": ("r/$_T:1",), "artifacts": Artifacts(images=("r/$_T:1",))},
    ],
)
def test_the_images_are_shown_in_both_places(given):
    build = Build(steps=(step(),), substitutions={"_T": "a"}, **given)
    resolved = resolve(build, context=PlanContext(built_ins=BuiltIns(build_id="b"))).build
    assert resolved.images == ("r/a:1",)
    assert resolved.artifacts is not None
    assert resolved.artifacts.images == ("r/a:1",)


def test_a_build_without_images_is_shown_without_artifacts():
    resolved = resolve(Build(steps=(step(),)), context=PlanContext(built_ins=BuiltIns()))
    assert resolved.build.artifacts is None


def test_a_build_that_no_trigger_made_keeps_what_it_was_given():
    build = Build(steps=(step(args=("$_A",)),), substitutions={"_A": "file", "_B": "$_A"})
    context = PlanContext(built_ins=BuiltIns(build_id="b"), substitutions={"_A": "flag"})
    resolved = resolve(build, context=context)
    assert resolved.build.substitutions == {"_A": "flag", "_B": "$_A"}
    assert resolved.build.steps[0].args == ("flag",)
    assert resolved.build.options is None
    assert resolved.variables["BUILD_ID"] == "b"


def test_values_of_commits_are_never_templates():
    built_ins = BuiltIns(
        branch="${_SECRET}$(id)", pull_request={"_HEAD_BRANCH": "$_SECRET${_SECRET}"}
    )
    build = Build(
        steps=(step(args=("$BRANCH_NAME", "$_HEAD_BRANCH", "$_X")),),
        substitutions={"_SECRET": "s", "_X": "${BRANCH_NAME}-${_HEAD_BRANCH}"},
    )
    planned = plan_build(build, context=PlanContext(built_ins=built_ins, triggered=True))
    branch, head = "${_SECRET}$(id)", "$_SECRET${_SECRET}"
    assert planned.steps[0].args == (branch, head, f"{branch}-{head}")


def test_a_small_file_can_not_become_a_huge_build():
    build = Build(steps=(step(args=("$_A" * 3000,) * 10),), substitutions={"_A": "x" * 4000})
    with pytest.raises(ConfigError, match=str(MAX_SUBSTITUTED_LENGTH)):
        plan_build(build, context=CONTEXT)
