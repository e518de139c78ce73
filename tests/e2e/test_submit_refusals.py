"""Bad input: one message, the right exit code, nothing begun, nothing left."""

import pytest

from tests.e2e.submit_bench import Bench

pytestmark = pytest.mark.docker


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cloudbuild.yaml:1:1: the file is empty"),
        ("steps: [", "not valid YAML"),
        ("stpes: []", "did you mean steps?"),
        ("steps: 3", "cloudbuild.yaml:1:8: steps: "),
        ("steps: [{name: a, id: x, waitFor: [tset]}]", "tset"),
        ("steps: [{name: a, args: ['$_NOPE']}]", "_NOPE"),
        ("steps: [{name: a, volumes: [{name: v, path: /workspace}]}]", "/workspace"),
    ],
)
def test_a_bad_config_is_refused_with_its_place(bench, text, message):
    bench.write("cloudbuild.yaml", text)
    done = bench.run("submit", ".")
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("error: cloudbuild.yaml:")
    assert "Traceback" not in done.err
    assert done.out == ""
    assert bench.builds("list") == []


def test_all_problems_come_at_once(bench):
    bench.write("cloudbuild.yaml", "steps:\n- {nmae: a}\n- {name: b, dirr: c}\ntimeout: soon\n")
    done = bench.run("submit", ".")
    assert done.code == 2
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "there is no config nothing.yaml"),
        ([".", "--timeout", "soon"], "--timeout takes a duration"),
        ([".", "--substitutions", "A"], "--substitutions takes KEY=VALUE"),
        ([".", "--step", "nope"], 'no step has the id or index "nope"'),
        ([".", "--ignore-file", "nope"], "nope"),
        ([".", "--async"], "--async can't be honoured"),
        ([".", "--priority", "5"], "--priority is for the queue of a server"),
        ([".", "--machine-type", "huge"], "there is no machine type huge"),
        ([".", "--secret", "a=value"], "env:VARIABLE or file:PATH"),
    ],
)
def test_a_bad_command_line_is_refused(bench, arguments, message):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE}]\n")
    done = bench.run("submit", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1"])
def test_without_an_engine_there_is_one_message_and_nothing_is_kept(bench, host):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE}]\n")
    done = bench.run("submit", ".", environ={"DOCKER_HOST": host})
    assert done.code == 3
    assert done.err.startswith("error: no container engine answers at ")
    assert len(done.err.splitlines()) == 2
    assert bench.builds("list") == []


def test_a_dry_run_needs_no_engine_and_shows_no_secret(bench):
    bench.write(
        "cloudbuild.yaml",
        """
steps:
- {name: IMAGE, id: one, args: [echo, a b], env: [A=1], timeout: 90s}
- name: IMAGE
  id: two
  waitFor: ['-']
  script: echo $KEY
  secretEnv: [KEY]
  volumes: [{name: cache, path: /cache}]
- {name: IMAGE, volumes: [{name: cache, path: /cache}], allowExitCodes: [3], dir: sub}
images: [registry.example/app]
availableSecrets:
  secretManager: [{versionName: projects/p/secrets/k/versions/1, env: KEY}]
""",
    )
    done = bench.run(
        "submit",
        ".",
        "--dry-run",
        "--secret",
        "k=env:K",
        environ={"DOCKER_HOST": "unix:///nowhere", "K": "hunter2hunter2"},
    )
    assert done.code == 0
    for part in (
        "no container engine answers",
        "  1. #0 one, #1 two\n  2. #2\n",
        "echo 'a b'",
        "env       A=1",
        "timeout   1m30s",
        "secret    KEY = <secretManager projects/p/secrets/k/versions/1>",
        "/cache (volume cache)",
        "workdir   /workspace/sub",
        "after     #0 one, #1 two",
        "forgiven  exit codes 3",
        "push\n  registry.example/app",
    ):
        assert part in done.out
    assert "hunter2" not in done.out
    assert bench.builds("list") == []


def test_a_dry_run_names_missing_images(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE}, {name: registry.invalid/none}]\n")
    done = bench.run("submit", ".", "--dry-run")
    assert f"image     {bench.image}\n" in done.out
    assert "image     registry.invalid/none, missing here: will be pulled" in done.out


def test_an_alias_serves_another_image(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: gcr.io/x/y, args: [echo, served]}]\n")
    done = bench.run("submit", ".", "--image-alias", f"gcr.io/x/y={bench.image}")
    assert done.code == 0, done.err
    assert "\nserved\n" in done.out
    bench.write(".buildrunner.toml", '[images]\naliases = {"gcr.io/x/y" = "IMAGE"}\n')
    assert bench.run("trust").code == 0
    assert bench.run("submit", ".").code == 0


def test_a_full_data_folder_is_a_warning_not_a_lost_build(bench, tmp_path):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\n")
    (tmp_path / "data" / "buildrunner").mkdir(parents=True)
    (tmp_path / "data" / "buildrunner" / "builds.db").write_bytes(b"no database" * 100)
    done = bench.run("submit", ".")
    assert done.code == 0
    assert "warning: this build is not kept: " in done.err
