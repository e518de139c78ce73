"""Secrets from the shell to the step, and nowhere else: a real engine, the real command."""

import base64
import json
import os
import pty
import re
import shlex
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import remove_image, start_registry, stop
from tests.e2e.submit_bench import DEADLINE_S, Bench, Done, interrupt, read_until
from tests.fixtures_google import GoogleServer

pytestmark = pytest.mark.docker

VALUE = "hunter2/+x&y 'q' \"d\" ü$z"
NAME = "projects/my-project/secrets/api-key"
CONFIG = """
availableSecrets:
  secretManager:
  - {versionName: projects/my-project/secrets/api-key/versions/latest, env: KEY}
"""


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


def secrets(bench, *arguments, value=b""):
    done = subprocess.run(
        [sys.executable, "-m", "buildrunner", "secrets", *arguments],
        cwd=bench.folder,
        env=bench.environ,
        input=value,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def store_folder(bench):
    return Path(bench.environ["XDG_DATA_HOME"]) / "buildrunner" / "secrets"


def traces(value):
    """Every form in which a value may have got somewhere."""
    raw = value.encode()
    found = {
        raw,
        raw.hex().encode(),
        raw.hex(" ").encode(),
        quote(value, safe="").encode(),
        json.dumps(value)[1:-1].encode(),
        json.dumps(value, ensure_ascii=False)[1:-1].encode(),
        shlex.quote(value).encode(),
        value.replace("'", "'\\''").encode(),
    }
    for shift in range(3):  # what is certain of it wherever it stands
        encoded = base64.b64encode(b"\0" * shift + raw)
        found.add(encoded[4 * (shift > 0) : len(encoded) // 4 * 4 - 4])
    return found


def assert_no_trace(data, where, value=VALUE):
    for trace in traces(value):
        assert trace not in data, f"{trace!r} in {where}"


def assert_no_trace_in_files(bench, value=VALUE):
    files = [path for path in Path(bench.environ["XDG_DATA_HOME"]).rglob("*") if path.is_file()]
    assert any(path.name == "builds.db" for path in files)
    for path in files:
        assert_no_trace(path.read_bytes(), path, value)


def every_command_line():
    """The arguments of every process of this machine."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield (folder / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue


LEAKY = r"""
#!/bin/sh
echo "raw: $KEY"
echo "quoted: '$(printf %s "$KEY" | sed "s/'/'\\\\''/g")'"
printf %s "$KEY" | base64
printf 'x%s' "$KEY" | base64
printf 'user:%s' "$KEY" | base64
printf %s "$KEY" | od -An -v -tx1
printf %s "$KEY" | xxd -p
printf %s "$KEY" | hexdump -C
export -p
env
cat "/workspace/forms"
printf %s "$KEY" > "$BUILDER_OUTPUT/output"
set -x
: "$KEY"
printf %s "$KEY" >&2
exit 3
"""


def test_a_step_that_tells_everything_leaves_no_trace(bench):
    assert secrets(bench, "set", "api-key", value=VALUE.encode()).code == 0
    bench.write("forms", f"{quote(VALUE, safe='')}\n{json.dumps(VALUE)}\n{VALUE.encode().hex()}\n")
    bench.write("leaky", LEAKY.lstrip())
    bench.write(
        "cloudbuild.yaml",
        CONFIG
        + """
steps:
- {name: IMAGE, id: tells, args: [sh, leaky], secretEnv: [KEY], allowFailure: true}
- {name: IMAGE, id: tells again, args: [sh, leaky], secretEnv: [KEY]}
""",
    )
    text = bench.run("submit", ".")
    assert text.code == 1
    assert 'Step #0 - "tells": raw: ***' in text.out
    assert "  │ " in text.err
    as_json = bench.run("submit", ".", "--output", "json")
    finished = [
        event
        for event in map(json.loads, as_json.out.splitlines())
        if event["event"] == "stepFinished"
    ]
    assert {base64.b64decode(event["output"]) for event in finished} == {b"***"}
    assert finished[1]["lastLines"]
    for done in (text, as_json, bench.run("builds", "log", text.build_id)):
        assert_no_trace(f"{done.out}{done.err}".encode(), "what is shown")
        assert "hunter2" not in done.out + done.err
    assert_no_trace(json.dumps(bench.builds("list")).encode(), "builds list")
    (bench.folder / "forms").unlink()
    assert_no_trace_in_files(bench)
    shown = subprocess.run(
        ["docker", "image", "history", "--no-trunc", bench.image], capture_output=True, check=True
    )
    assert_no_trace(shown.stdout, "the image's history")


def test_only_the_steps_that_name_it_get_it_and_no_process_shows_it(bench):
    assert secrets(bench, "set", NAME, value=VALUE.encode()).code == 0
    bench.write(
        "cloudbuild.yaml",
        CONFIG
        + """
steps:
- {name: IMAGE, id: has, waitFor: ['-'], secretEnv: [KEY],
   script: 'echo has-$KEY; exec sleep 600'}
- {name: IMAGE, id: hasnot, waitFor: ['-'], script: 'echo other-$KEY-; exec sleep 600'}
""",
    )
    process = bench.start("submit", ".")
    seen = read_until(process, "has-***")
    if "other--" not in seen:
        seen += read_until(process, "other--")
    build_id = re.search(r'starting build "([^"]+)"', seen)[1]
    label = f"label=buildrunner.build={build_id}"
    inspected = {}
    for kind, listing in (
        ("container", ["ps", "--all", "--no-trunc"]),
        ("volume", ["volume", "ls"]),
    ):
        names = docker(*listing, "--quiet", "--filter", label).split()
        assert names
        for name in names:
            told = json.loads(docker(kind, "inspect", name))[0]
            inspected[told["Name"].lstrip("/")] = told
    holders = [name for name, told in inspected.items() if VALUE in all_text(told)]
    assert holders == [f"step_0-{build_id}"]
    assert f"KEY={VALUE}" in inspected[holders[0]]["Config"]["Env"]
    for line in every_command_line():
        assert_no_trace(line, "a command line")
    done = interrupt(process)
    assert done.code == 130
    assert_no_trace(f"{seen}{done.out}{done.err}".encode(), "what is shown")
    assert_no_trace_in_files(bench)
    assert bench.left_behind(build_id) == []


def test_nothing_that_a_build_leaves_behind_has_the_value(bench, docker_engine, tmp_path):
    """Log, store, image, registry, artifacts' manifest, stored log, plan: all of them searched."""
    if docker_engine.find_image("buildrunner/docker:latest") is None:
        argv = [sys.executable, "-m", "buildrunner", "builders", "install", "docker"]
        subprocess.run(argv, check=True, capture_output=True)
    registry = start_registry(tmp_path)
    image = f"{registry.address}/secrets-{uuid.uuid4().hex[:8]}:1"
    assert secrets(bench, "set", "api-key", value=VALUE.encode()).code == 0
    bench.write("Dockerfile", 'FROM IMAGE\nRUN echo "in the image: $KEY" > /made\n')
    bench.write(
        "cloudbuild.yaml",
        CONFIG
        + f"""
steps:
- name: gcr.io/cloud-builders/docker
  secretEnv: [KEY]
  script: 'echo "has $KEY"; docker build -t {image} . && echo made > made'
- {{name: IMAGE, script: 'echo "has not $KEY"; env'}}
images: ['{image}']
logsBucket: gs://logs
artifacts: {{objects: {{location: 'gs://objects', paths: [made]}}}}
""",
    )
    places = [f"gs://{name}=file://{tmp_path}/{name}" for name in ("logs", "objects")]
    storage = [flag for place in places for flag in ("--storage", place)]
    try:
        plan = bench.run("submit", ".", "--dry-run", "--format", "json")
        done = bench.run("submit", ".", *storage)
        assert done.code == 0, done.out + done.err
        saved = subprocess.run(["docker", "save", image], capture_output=True, check=True).stdout
        told = docker("image", "inspect", image) + docker("history", "--no-trunc", image)
    finally:
        stop(registry.process)
        remove_image(image)
    assert "has ***" in done.out
    assert "has not \n" in done.out
    assert b"in the image: \n" in saved
    assert_no_trace(plan.out.encode(), "the plan")
    assert_no_trace(f"{done.out}{done.err}".encode(), "what is shown")
    assert_no_trace(saved, "the image")
    assert_no_trace(told.encode(), "what the engine tells of the image")
    assert_no_trace(json.dumps(bench.builds("describe", done.build_id)).encode(), "describe")
    log = tmp_path / "logs" / f"log-{done.build_id}.txt"
    assert "has ***" in log.read_text()
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"builds.db", "made", log.name} <= {path.name for path in stored}
    for path in stored:  # the registry's files, the buckets, the store of builds and of secrets
        assert_no_trace(path.read_bytes(), path)
    assert bench.left_behind(done.build_id) == []


def all_text(told):
    """All strings of a JSON value, as they are."""
    if isinstance(told, dict):
        return "".join(f"{key}\0{all_text(value)}\0" for key, value in told.items())
    if isinstance(told, list):
        return "".join(f"{all_text(value)}\0" for value in told)
    return str(told)


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("value", [VALUE, "with newline\n", "two\nlines\n", "a\r\nb\r\nlong line"])
def test_a_value_arrives_as_it_was_set(bench, value):
    assert secrets(bench, "set", "api-key", value=value.encode()).code == 0
    expected = base64.b64encode(bytes(byte ^ 1 for byte in value.encode())).decode()
    bench.write("expected", f"{value.encode().hex()}\n")
    bench.write(
        "cloudbuild.yaml",
        CONFIG
        + """
options: {secretEnv: [KEY]}
steps:
- name: IMAGE
  script: |
    [ "$(printf %s "$KEY" | od -An -v -tx1 | tr -d ' \\n')" = "$(cat expected)" ] && echo "same"
- {name: IMAGE, script: '[ -n "$KEY" ] && echo "here too"'}
""",
    )
    done = bench.run("submit", ".")
    assert done.code == 0, done.out + done.err
    assert "Step #0: same" in done.out
    assert "Step #1: here too" in done.out
    assert expected not in done.out


def test_a_dry_run_shows_no_value(bench):
    secrets(bench, "set", "api-key", value=VALUE.encode())
    bench.write(
        "cloudbuild.yaml", CONFIG + "steps: [{name: IMAGE, args: [env], secretEnv: [KEY]}]\n"
    )
    for form in ("text", "json"):
        done = bench.run("submit", ".", "--dry-run", "--format", form)
        assert done.code == 0
        assert "KEY" in done.out
        assert_no_trace(f"{done.out}{done.err}".encode(), "the plan")


def test_missing_secrets_fail_before_any_step_with_the_command_that_helps(bench):
    bench.write(
        "cloudbuild.yaml",
        """
availableSecrets:
  secretManager:
  - {versionName: projects/p/secrets/api-key/versions/latest, env: KEY}
  - {versionName: projects/p/secrets/db-password/versions/3, env: PASSWORD}
steps: [{name: IMAGE, script: 'echo it runs', secretEnv: [KEY, PASSWORD]}]
""",
    )
    done = bench.run("submit", ".")
    assert done.code == 1
    assert "it runs" not in done.out
    for part in (
        'the secret "projects/p/secrets/api-key/versions/latest" for $KEY was not found',
        "`buildrunner secrets set api-key`",
        'the secret "projects/p/secrets/db-password/versions/3" for $PASSWORD was not found',
        "`buildrunner secrets set db-password`",
        "Google is not asked without --google-secrets",
    ):
        assert part in done.out
    assert bench.left_behind(done.build_id) == []


def test_explicit_sources_win_over_the_store(bench):
    secrets(bench, "set", "api-key", value=b"from the store")
    bench.write(
        "cloudbuild.yaml",
        CONFIG
        + """
steps:
- {name: IMAGE, secretEnv: [KEY], script: 'printf "%s" "$KEY" | tr a-z n-za-m'}
""",
    )
    flag = ("--secret", "api-key=env:MY_KEY")
    done = bench.run("submit", ".", *flag, environ={"MY_KEY": "from the flag"})
    assert "sebz gur synt" in done.out
    done = bench.run("submit", ".")
    assert "sebz gur fgber" in done.out


def test_google_answers_when_it_is_asked(bench, tmp_path):
    google = GoogleServer(tmp_path)
    google.versions[f"{NAME}/versions/latest"] = VALUE.encode()
    google.plaintexts["projects/p/locations/l/keyRings/r/cryptoKeys/k", b"sealed"] = b"opened it"
    bench.write(
        "cloudbuild.yaml",
        """
availableSecrets:
  secretManager:
  - {versionName: projects/my-project/secrets/api-key/versions/latest, env: KEY}
  inline:
  - kmsKeyName: projects/p/locations/l/keyRings/r/cryptoKeys/k
    envMap: {OTHER: c2VhbGVk}
steps:
- name: IMAGE
  secretEnv: [KEY, OTHER]
  script: 'echo "$KEY" | cut -c1-4 | tr a-z n-za-m; echo "$OTHER" | tr a-z n-za-m'
""",
    )
    try:
        done = bench.run("submit", ".", "--google-secrets", environ=google.environ)
        refused = bench.run("submit", ".", environ=google.environ)
    finally:
        google.close()
    assert done.code == 0, done.out + done.err
    assert "uhag\nbcrarq vg\n" in done.out
    assert refused.code == 1
    assert [path for _, path, _ in google.requests] == [
        f"/v1/{NAME}/versions/latest:access",
        "/v1/projects/p/locations/l/keyRings/r/cryptoKeys/k:decrypt",
    ]


def test_a_decrypt_command_of_the_user_counts_and_one_of_a_project_does_not(bench):
    config = Path(bench.environ["XDG_CONFIG_HOME"]) / "buildrunner" / "config.toml"
    config.parent.mkdir(parents=True)
    settings = "[secret_sources]\nkms_command = ['sed', 's/sealed/opened/']\n"
    config.write_text(settings)
    bench.write(
        "cloudbuild.yaml",
        """
secrets:
- kmsKeyName: projects/p/locations/l/keyRings/r/cryptoKeys/k
  secretEnv: {OTHER: c2VhbGVk}
steps: [{name: IMAGE, secretEnv: [OTHER], script: 'echo "$OTHER" | tr a-z n-za-m'}]
""",
    )
    assert "\nbcrarq\n" in bench.run("submit", ".").out
    bench.write(".buildrunner.toml", settings)
    done = bench.run("submit", ".")
    assert done.code == 2
    assert "secret_sources: is not for a project's file" in done.err


# -- the commands ----------------------------------------------------------------------------------


def test_set_list_and_rm(bench):
    assert secrets(bench, "list").err == "Listed 0 secrets.\n"
    assert secrets(bench, "set", "api-key", value=b"one1").err == (
        "Created version [1] of the secret [api-key].\n"
    )
    (bench.folder / "value").write_bytes(b"two2\n")
    assert secrets(bench, "set", "api-key", "--file", "value").code == 0
    assert secrets(bench, "set", f"{NAME}/versions/7", "--file", "-", value=b"seven").code == 0
    table = secrets(bench, "list").out.splitlines()
    assert [line.split()[:3] for line in table] == [
        ["NAME", "VERSIONS", "LATEST"],
        ["api-key", "2", "2"],
        [NAME, "1", "7"],
    ]
    listed = json.loads(secrets(bench, "list", "--format", "json").out)
    assert [[one["version"] for one in secret["versions"]] for secret in listed] == [[1, 2], [7]]
    assert "name: api-key\n" in secrets(bench, "list", "--format", "yaml").out
    for form in ("table", "json", "yaml"):
        shown = secrets(bench, "list", "--format", form).out
        assert not any(value in shown for value in ("one1", "two2", "seven"))
    assert secrets(bench, "rm", "api-key/versions/1", "--yes").code == 0
    assert secrets(bench, "rm", "api-key").code == 2  # nobody to ask
    assert secrets(bench, "rm", "api-key", "-y").err == (
        "Removed version [2] of the secret [api-key].\n"
    )
    gone = secrets(bench, "rm", "api-key", "-y")
    assert (gone.code, gone.err.splitlines()[0]) == (2, "error: there is no secret api-key here")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store_folder(bench).iterdir()}
    assert modes == {"key": 0o600, "secrets.json": 0o600, "lock": 0o600}


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "api-key", "hunter22"),
        ("set", "api-key=hunter22"),
        ("set", "api-key", "--value=hunter22"),
        ("set", "api-key", "--value", "hunter22"),
        ("set", "hunter22!"),
    ],
)
def test_a_value_on_the_command_line_is_refused_and_not_repeated(bench, arguments):
    done = secrets(bench, *arguments, value=b"x")
    assert done.code == 2
    assert "hunter22" not in done.out + done.err
    assert not store_folder(bench).exists()


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (b"", "the value is empty"),
        (b"a\0b", "zero byte"),
        (b"hunter22\xff", "not UTF-8"),
        (b"x" * 65537, "larger than 65536"),
    ],
)
def test_a_value_that_no_step_could_get_is_refused(bench, value, part):
    done = secrets(bench, "set", "api-key", value=value)
    assert done.code == 2
    assert part in done.err
    assert "hunter22" not in done.err


def test_a_short_value_and_a_newline_at_its_end_are_mentioned(bench):
    done = secrets(bench, "set", "pin", value=b"123\n")
    assert done.code == 0
    assert "shorter than 4 characters can't be hidden" in done.err
    assert "ends with a newline" in done.err


def test_a_prompt_shows_nothing_and_adds_nothing(bench):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "buildrunner", "secrets", "set", "api-key"],
        cwd=bench.folder,
        env=bench.environ,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    while b"(not shown): " not in seen:
        seen += os.read(master, 1024)
    os.write(master, b"hunter22\n")
    try:
        while chunk := os.read(master, 1024):
            seen += chunk
    except OSError:  # the other side is closed
        pass
    os.close(master)
    assert process.wait(DEADLINE_S) == 0
    assert b"hunter22" not in seen
    assert b"newline" not in seen
    bench.write(
        "cloudbuild.yaml",
        CONFIG + "steps: [{name: IMAGE, secretEnv: [KEY], script: 'printf %s \"$KEY\" | wc -c'}]\n",
    )
    assert "\n8\n" in bench.run("submit", ".").out


def test_a_key_that_others_may_read_is_refused_by_builds_too(bench):
    secrets(bench, "set", "api-key", value=VALUE.encode())
    (store_folder(bench) / "key").chmod(0o644)
    bench.write(
        "cloudbuild.yaml", CONFIG + "steps: [{name: IMAGE, args: ['true'], secretEnv: [KEY]}]\n"
    )
    done = bench.run("submit", ".")
    assert done.code == 1
    assert f"chmod 600 {store_folder(bench)}/key" in done.out
