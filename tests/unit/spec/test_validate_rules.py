"""Every rule V03-V71: a build that just passes, and its neighbour that just fails."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from buildrunner.problem import Severity
from buildrunner.spec.model.build import (
    Build,
    BuildOptions,
    BuildStep,
    DockerDaemon,
    InlineSecret,
    LoggingMode,
    Secret,
    SecretManagerSecret,
    Secrets,
    SubstitutionOption,
    Volume,
)
from buildrunner.spec.model.results import (
    ArtifactObjects,
    Artifacts,
    GenericArtifact,
    GoModule,
    MavenArtifact,
    NpmPackage,
    PythonPackage,
)
from buildrunner.spec.model.source import Source, StorageSource
from buildrunner.spec.validation import references
from buildrunner.spec.validation.check import SAMPLE, check_build, errors_of

DAY = timedelta(hours=24)
SECOND = timedelta(seconds=1)
LOOSE = BuildOptions(substitution_option=SubstitutionOption.ALLOW_LOOSE)


def step(**fields):
    return BuildStep(**{"name": "busybox", **fields})


def build(*steps, **fields):
    return Build(**{"steps": steps or (step(),), **fields})


def options(**fields):
    return BuildOptions(**fields)


def loose(**user):
    return build(substitutions=user, options=LOOSE)


def stored(bucket):
    return build(source=Source(storage_source=StorageSource(bucket=bucket, object="o.tgz")))


def objects(location="gs://bkt/d", paths=("a",)):
    return build(artifacts=Artifacts(objects=ArtifactObjects(location=location, paths=paths)))


def uploading(location, **user):
    return msgspec.structs.replace(objects(location), substitutions=user)


def available(*names, used=None, value=b"x"):
    return build(
        step(secret_env=names if used is None else used),
        available_secrets=Secrets(
            secret_manager=tuple(
                SecretManagerSecret(version_name="projects/p/secrets/s/versions/1", env=name)
                for name in names
            )
        ),
    )


def legacy(values, used=("A",), key="k"):
    return build(step(secret_env=used), secrets=(Secret(kms_key_name=key, secret_env=values),))


def volume(name="vol", path="/data"):
    return Volume(name=name, path=path)


def generic(place, **user):
    artifact = GenericArtifact(folder="out", registry_path=place)
    return build(artifacts=Artifacts(generic_artifacts=(artifact,)), substitutions=user)


def shared(*volumes):
    return build(step(volumes=volumes), step(volumes=volumes))


# rule, what passes, what fails, words of the message, path
CASES = [
    ("V03", build(timeout=DAY), build(timeout=DAY + SECOND), "24h0m0s", "timeout"),
    ("V04", build(timeout=0 * DAY), build(timeout=-SECOND), ">=0", "timeout"),
    ("V05", build(queue_ttl=SECOND), build(queue_ttl=-SECOND), "queueTtl", "queueTtl"),
    (
        "V06",
        build(options=options(disk_size_gb=4000)),
        build(options=options(disk_size_gb=4001)),
        "maximum of 4000",
        "options.diskSizeGb",
    ),
    (
        "V07",
        build(logs_bucket="gs://bucket/folder"),
        build(logs_bucket="https://bucket"),
        "logs bucket",
        "logsBucket",
    ),
    (
        "V08",
        build(tags=tuple(f"t{number}" for number in range(64))),
        build(tags=tuple(f"t{number}" for number in range(65))),
        "number of tags 65",
        "tags",
    ),
    (
        "V09",
        build(service_account="projects/p/serviceAccounts/a@b", logs_bucket="bucket"),
        build(service_account="a@b", logs_bucket="bucket"),
        "projects/P/serviceAccounts/A",
        "serviceAccount",
    ),
    (
        "V11",
        loose(**{f"_V{number}": "" for number in range(200)}),
        loose(**{f"_V{number}": "" for number in range(201)}),
        "number of substitutions 201",
        "substitutions",
    ),
    (
        "V12",
        loose(**{"_" + "A" * 99: ""}),
        loose(**{"_" + "A" * 100: ""}),
        "max: 100",
        "substitutions._" + "A" * 100,
    ),
    ("V13", loose(_A="ä" * 2000), loose(_A="ä" * 2000 + "x"), "max: 4000", "substitutions._A"),
    ("V14", loose(_A="1", TAG_NAME="v"), loose(FOO="1"), '"FOO"', "substitutions.FOO"),
    ("V16", loose(_BUILD_ID="1"), loose(BUILD_ID="1"), '"BUILD_ID"', "substitutions.BUILD_ID"),
    (
        "V17",
        build(step(args=("$_A",)), options=LOOSE),
        build(step(args=("$_A",))),
        'key in the template "_A" is not matched',
        "steps[0].args[0]",
    ),
    (
        "V18",
        build(step(env=("A=$$HOME",))),
        build(step(env=("A=$HOME",))),
        '"HOME" is not a valid built-in substitution',
        "steps[0].env[0]",
    ),
    (
        "V19",
        build(step(args=("${_A}",)), substitutions={"_A": "1"}),
        build(step(args=("$${_A}",)), substitutions={"_A": "1"}),
        'key "_A" in the substitution data',
        "substitutions._A",
    ),
    ("V20", build(), Build(), "no build steps", "steps"),
    (
        "V21",
        build(*[step()] * 300),
        build(*[step()] * 301),
        "more than 300 build steps",
        "steps",
    ),
    ("V22", build(), build(BuildStep()), "build step 0 must specify name", "steps[0]"),
    (
        "V23",
        build(step(name="a" + "$_N" * 333), options=LOOSE),
        build(step(name="ab" + "$_N" * 333), options=LOOSE),
        "name too long (max: 1000)",
        "steps[0].name",
    ),
    ("V24", build(step(args=("a",) * 100)), build(step(args=("a",) * 101)), "max: 100", None),
    (
        "V25",
        build(step(args=("a" * 10_000,))),
        build(step(args=("a" * 10_001,))),
        "build step 0 arg 0 too long (max: 10000)",
        "steps[0].args[0]",
    ),
    ("V26", build(step(dir="d" * 1000)), build(step(dir="d" * 1001)), "max: 1000", None),
    (
        "V27",
        build(step(id="a"), step(wait_for=("a", "-", "a"))),
        build(step(wait_for=("a",)), step(id="a")),
        'build step #0 depends on "a", which has not been defined',
        "steps[0].waitFor[0]",
    ),
    (
        "V28",
        build(step(id="a"), step(id="b")),
        build(step(id="a"), step(id="a")),
        'build step #1 - "a": the ID is not unique',
        "steps[1].id",
    ),
    ("V29", build(step(id="--")), build(step(id="-")), "reserved", "steps[0].id"),
    (
        "V30",
        build(step(env=("A=", "B==", "my.key=1"))),
        build(step(id="x", env=("A",))),
        'build step #0 - "x": the Env entry "A" must be of the form "KEY=VALUE"',
        "steps[0].env[0]",
    ),
    (
        "V31",
        build(step(timeout=0 * DAY)),
        build(step(timeout=-SECOND)),
        "must be >0",
        "steps[0].timeout",
    ),
    (
        "V32",
        build(step(timeout=DAY)),
        build(step(timeout=DAY + SECOND)),
        "24h0m0s",
        "steps[0].timeout",
    ),
    (
        "V33",
        build(step(timeout=60 * SECOND), timeout=60 * SECOND),
        build(step(timeout=61 * SECOND), timeout=60 * SECOND),
        "61s must be <= build timeout 60s",
        "steps[0].timeout",
    ),
    (
        "V34",
        build(step(allow_exit_codes=tuple(range(1, 256)))),
        build(step(allow_exit_codes=tuple(range(1, 257)))),
        "max: 255",
        "steps[0].allowExitCodes",
    ),
    (
        "V35",
        build(step(script="true", env=("A=1",))),
        build(step(script="true", args=("x",))),
        "script cannot be combined with args or entrypoint",
        "steps[0].script",
    ),
    (
        "V36",
        build(step(script="x" * 2**20)),
        build(step(script="x" * (2**20 + 1))),
        "1048576 bytes",
        "steps[0].script",
    ),
    (
        "V37",
        build(options=options(env=("A=1",) * 100)),
        build(options=options(env=("A=1",) * 101)),
        "invalid .options.env field: too many envs (max: 100)",
        "options.env",
    ),
    (
        "V38",
        build(step(env=("A=" + "x" * 32766,))),
        build(step(env=("A=" + "x" * 32767,))),
        "env 0 too long",
        "steps[0].env[0]",
    ),
    (
        "V39",
        msgspec.structs.replace(available("A", used=()), options=options(secret_env=("A",))),
        msgspec.structs.replace(available("A", used=()), options=options(secret_env=("A", "A"))),
        'Build uses global secretEnv "A" more than once',
        "options.secretEnv[1]",
    ),
    (
        "V40",
        available("A"),
        msgspec.structs.replace(available("A"), options=options(secret_env=("A",))),
        'Step 0 uses the global secretEnv "A"',
        "steps[0].secretEnv[0]",
    ),
    ("V41", available("A"), available("A", used=("A", "A")), "more than once", None),
    (
        "V42",
        legacy({"A": b"x"}),
        build(
            step(secret_env=("A", "B")),
            secrets=(
                Secret(kms_key_name="k", secret_env={"A": b"x"}),
                Secret(kms_key_name="k", secret_env={"B": b"x"}),
            ),
        ),
        'kmsKeyName "k" is used by more than one secret',
        "secrets[1].kmsKeyName",
    ),
    ("V43", legacy({"A": b"x"}), legacy({}, used=()), "secret 0 defines no secretEnvs", None),
    ("V44", available("A", "B"), available("A", "A", used=("A",)), "more than once", None),
    ("V45", available("A"), available("A", used=("A", "B")), '"B" is used without', None),
    ("V46", available("A"), available("A", "B", used=("A",)), '"B" is defined without', None),
    (
        "V47",
        available(*(f"A{number}" for number in range(100))),
        available(*(f"A{number}" for number in range(101))),
        "more than 100 secret values",
        None,
    ),
    (
        "V48",
        legacy({"A": b"x" * 65536}),
        legacy({"A": b"x" * 65537}),
        'secretEnv value for "A" cannot exceed 65536B',
        "secrets[0].secretEnv.A",
    ),
    (
        "V49",
        msgspec.structs.replace(available("A"), options=options(env=("B=1",))),
        msgspec.structs.replace(available("A"), options=options(env=("A=1",))),
        'step 0 has secret and non-secret env "A"',
        "options.env[0]",
    ),
    (
        "V50",
        build(step(), step(), options=options(volumes=(volume(),))),
        build(step(), options=options(volumes=(volume(),))),
        "fewer than two steps",
        "options.volumes",
    ),
    ("V51", shared(volume("ab")), shared(volume("a")), 'volume name "a" does not match', None),
    ("V52", shared(volume(path="/d")), shared(volume(path="d")), "must be absolute", None),
    (
        "V53",
        shared(volume(path="/workspace/sub")),
        shared(volume(path="/workspace/sub/..")),
        "is reserved",
        "steps[0].volumes[0].path",
    ),
    (
        "V54",
        shared(volume(path="/cloudbuilder")),
        shared(volume(path="/x/../cloudbuild/a")),
        "cannot start with /cloudbuild/",
        None,
    ),
    (
        "V55",
        shared(volume("one", "/a"), volume("two", "/b")),
        shared(volume("one", "/a"), volume("one", "/b")),
        'volume name "one" is defined in more than one',
        "steps[0].volumes[1].name",
    ),
    (
        "V56",
        shared(volume("one", "/a"), volume("two", "/b")),
        shared(volume("one", "/a"), volume("two", "/a/.")),
        "is defined in more than one volume entry",
        "steps[0].volumes[1].path",
    ),
    (
        "V57",
        msgspec.structs.replace(
            shared(volume("one", "/a")), options=options(volumes=(volume("two", "/b"),))
        ),
        msgspec.structs.replace(
            shared(volume("one", "/a")), options=options(volumes=(volume("one", "/b"),))
        ),
        'build step #0: volume name "one" conflicts with global volume',
        "steps[0].volumes[0].name",
    ),
    (
        "V58",
        msgspec.structs.replace(
            shared(volume("one", "/a")), options=options(volumes=(volume("two", "/b"),))
        ),
        msgspec.structs.replace(
            shared(volume("one", "/a")), options=options(volumes=(volume("two", "/a/"),))
        ),
        "conflicts with global volume",
        "steps[0].volumes[0].path",
    ),
    (
        "V59",
        shared(volume()),
        build(step(volumes=(volume(),)), step()),
        'Volume "vol" is only used by one step',
        "steps[0].volumes[0].name",
    ),
    ("V60", build(images=("i",) * 100), build(images=("i",) * 101), "100 images", "images"),
    (
        "V61",
        build(images=("a" + "$_I" * 333,), options=LOOSE),
        build(images=("ab" + "$_I" * 333,), options=LOOSE),
        "image 0 too long (max: 1000)",
        "images[0]",
    ),
    (
        "V62",
        build(images=("a", "b"), artifacts=Artifacts(images=("a", "b"))),
        build(images=("a", "b"), artifacts=Artifacts(images=("b", "a"))),
        "cannot specify different .images and .artifacts.images",
        "artifacts.images",
    ),
    ("V63", objects(), objects(location=""), "field is empty", "artifacts.objects.location"),
    ("V64", objects("gs://$PROJECT_ID"), objects("$PROJECT_ID"), "must begin with 'gs://'", None),
    (
        "V64",
        uploading("$_L/x", _L="gs://bkt"),
        uploading("$_L/x", _L="b"),
        'location value "b/x"',
        "artifacts.objects.location",
    ),
    (
        "bucket-name",
        objects("gs://bkt/x"),
        objects("gs://B/x"),
        '"gs://B/x" names no bucket',
        "artifacts.objects.location",
    ),
    (
        "bucket-name",
        stored("bkt"),
        stored("bkt/other"),
        '"bkt/other" is not the name of a bucket',
        "source.storageSource.bucket",
    ),
    ("V65", objects(), objects(paths=()), ".artifacts.paths field empty", None),
    (
        "V66",
        objects(paths=tuple(f"p{number}" for number in range(100))),
        objects(paths=tuple(f"p{number}" for number in range(101))),
        "has length 101",
        "artifacts.objects.paths",
    ),
    ("V67", objects(paths=("a", "b")), objects(paths=("a", "a")), 'duplicates ["a"]', None),
    ("V68", objects(paths=("a_b",)), objects(paths=("a b",)), '"a b" contains whitespace', None),
    (
        "V69",
        build(step(name="host:5000/a/b:tag@sha256:" + "0" * 64)),
        build(step(name="a b")),
        'invalid build step name "a b"',
        "steps[0].name",
    ),
    (
        "V70",
        build(images=("Host.example/app:V1",)),
        build(images=("host/App",)),
        'invalid image name "host/App" contains uppercase letters',
        "images[0]",
    ),
    (
        "attachment-tag",
        build(images=("app:sha256-" + "0" * 63, "app:sha256-1.att", "app:x-sha256-" + "0" * 64)),
        build(images=("app:$_TAG",), substitutions={"_TAG": f"sha256-{'0' * 64}.att"}),
        "signatures and attestations of the image with that digest",
        "images[0]",
    ),
    (
        "V71",
        build(tags=("a" * 128, "a.b-c", "$TAG_NAME", "")),
        build(tags=("a" * 129,)),
        "invalid build tag",
        "tags[0]",
    ),
    (
        "no-docker-images",
        build(images=("a",), options=options(docker_daemon=DockerDaemon.PRIVILEGED)),
        build(images=("a",), options=options(docker_daemon=DockerDaemon.NO_DOCKER)),
        "NO_DOCKER",
        "options.dockerDaemon",
    ),
    (
        "artifact-field",
        build(artifacts=Artifacts(npm_packages=(NpmPackage(repository="r", package_path="p"),))),
        build(artifacts=Artifacts(npm_packages=(NpmPackage(repository="r"),))),
        "npmPackages must specify packagePath",
        "artifacts.npmPackages[0]",
    ),
    (
        "artifact-field",
        generic("$_AT/x", _AT="https://files.example.com"),
        generic("$_AT/x", _AT="files.example.com"),
        '"files.example.com/x" is not an address',
        "artifacts.genericArtifacts[0].registryPath",
    ),
]


@pytest.mark.parametrize(
    ("rule", "good", "bad", "words", "path"), CASES, ids=[case[0] for case in CASES]
)
def test_the_neighbours_of_a_rule(rule, good, bad, words, path):
    assert errors_of(check_build(good, built_ins=SAMPLE)) == []
    errors = [
        found for found in errors_of(check_build(bad, built_ins=SAMPLE)) if found.rule == rule
    ]
    assert errors, f"{rule} does not fire"
    assert words in errors[0].message
    if path is not None:
        assert errors[0].path == path


@pytest.mark.parametrize(
    ("rule", "silent", "warned"),
    [
        ("V10", build(), build(service_account="projects/p/serviceAccounts/a")),
        (
            "V11",
            loose(**{f"_V{n}": "" for n in range(100)}),
            loose(**{f"_V{n}": "" for n in range(101)}),
        ),
        ("V21", build(*[step()] * 100), build(*[step()] * 101)),
        ("V25", build(step(args=("a" * 4000,))), build(step(args=("a" * 4001,)))),
        ("V36", build(step(script="a" * 10_000)), build(step(script="a" * 10_001))),
        (
            "script-crlf",
            build(step(script="#!/bin/sh\ntrue\r\n")),
            build(step(script="#!/bin/sh\r\ntrue\r\n")),
        ),
        (
            "not-dynamic",
            build(step(args=("${HOME:-x}", "$${TAG_NAME#v}"))),
            build(step(args=("${TAG_NAME#v}",))),
        ),
        (
            "not-dynamic",
            build(step(args=("$_A",)), substitutions={"_A": "$$PROJECT_ID $HOME"}),
            build(step(args=("$_A",)), substitutions={"_A": "gcr.io/$PROJECT_ID/a"}),
        ),
    ],
)
def test_what_is_only_warned_about(rule, silent, warned):
    assert check_build(silent, built_ins=SAMPLE) == []
    found = check_build(warned, built_ins=SAMPLE)
    assert [(problem.rule, problem.severity) for problem in found] == [(rule, Severity.WARNING)]


@pytest.mark.parametrize(
    "accepted",
    [
        build(step(dir="../..")),
        build(step(dir="/etc")),
        build(step(), step(wait_for=("-",))),
        build(step(env=("A=1", "A=2"))),
        build(step(allow_failure=True, allow_exit_codes=(1,))),
        build(images=("nobody/builds-this",)),
        shared(volume(path="/builder")),
        build(timeout=0 * DAY),
        build(
            service_account="projects/p/serviceAccounts/a",
            options=options(logging=LoggingMode.CLOUD_LOGGING_ONLY),
        ),
    ],
)
def test_what_is_accepted_on_purpose(accepted):
    assert check_build(accepted, built_ins=SAMPLE) == []


@pytest.mark.parametrize(
    "path", ["/workspace", "/builder/home/", "/var/run/docker.sock", "/builder/outputs"]
)
def test_paths_that_every_step_has_are_reserved(path):
    errors = errors_of(check_build(shared(volume(path=path))))
    assert {error.rule for error in errors} == {"V53"}


@pytest.mark.parametrize(
    ("artifacts", "missing"),
    [
        (
            Artifacts(maven_artifacts=(MavenArtifact(),)),
            {"repository", "artifactId", "groupId", "version", "path"},
        ),
        (Artifacts(go_modules=(GoModule(),)), {"repositoryName", "modulePath", "moduleVersion"}),
        (Artifacts(python_packages=(PythonPackage(),)), {"repository", "paths"}),
        (Artifacts(npm_packages=(NpmPackage(),)), {"repository", "packagePath"}),
        (Artifacts(maven_artifacts=(MavenArtifact(deploy_folder="d"),)), {"repository"}),
        (Artifacts(generic_artifacts=(GenericArtifact(),)), {"folder", "registryPath"}),
    ],
)
def test_packages_name_all_that_their_registry_needs(artifacts, missing):
    errors = errors_of(check_build(build(artifacts=artifacts)))
    assert {error.message.rpartition(" ")[2] for error in errors} == missing


def test_inline_secrets_count_like_the_others():
    secrets = Secrets(inline=(InlineSecret(kms_key_name="k", env_map={"A": b"x", "B": b"y"}),))
    assert check_build(build(step(secret_env=("A", "B")), available_secrets=secrets)) == []
    errors = errors_of(check_build(build(step(secret_env=("A",)), available_secrets=secrets)))
    assert [(error.rule, error.path) for error in errors] == [
        ("V46", "availableSecrets.inline[0].envMap.B")
    ]


def test_every_rule_of_the_semantics_has_a_case():
    by_the_decoder = {"V01", "V02"}
    elsewhere = {"V10", "V15"}  # a warning; a rule about files
    expected = {f"V{number:02}" for number in range(1, 72)} - by_the_decoder - elsewhere
    assert expected <= {case[0] for case in CASES}


@pytest.mark.parametrize(
    "fields",
    [
        {"images": ("$_A" * 2100,) * 3},
        {"tags": ("$_A" * 2100,) * 3},
        {"steps": (step(name="$_A" * 2100),) * 3},
    ],
)
def test_a_check_makes_no_values_beyond_the_limit_of_a_build(fields):
    """Issue: 100 images of 9,000 characters took 12 MB each, and their texts stayed in memory."""
    before = references._parsed.cache_info().currsize
    subject = build(substitutions={"_A": "a" * 4000}, **fields)
    found = errors_of(check_build(subject, built_ins=SAMPLE))
    assert "substituted-size" in {error.rule for error in found}
    assert references._parsed.cache_info().currsize <= before + 1  # "busybox" of the step
