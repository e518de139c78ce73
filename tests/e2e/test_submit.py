"""`buildrunner submit` from the shell, on a real engine."""

import fcntl
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import uuid

import pytest

from tests.conftest import wait_until
from tests.e2e.submit_bench import Bench, interrupt, read_until

pytestmark = pytest.mark.docker

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
SLOW = "steps: [{name: IMAGE, id: slow, script: 'echo ready; exec sleep 600'}]\n"
# Ends when it is told to, without the ten seconds that it has.
POLITE = "steps: [{name: IMAGE, script: 'trap exit TERM; sleep 600 & wait'}]\n"


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    folder = tmp_path / "source"
    folder.mkdir()
    return Bench(folder, tmp_path / "data", docker_engine, busybox)


def test_what_is_piped_is_cloud_builds_own_text(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [cat, greeting]}]\n")
    bench.write("greeting", "hello\nworld\n")
    done = bench.run("submit", ".")
    assert done.code == 0
    assert re.fullmatch(
        f'starting build "{UUID}"\n\nFETCHSOURCE\nSource: 2 files totalling [0-9]+ bytes\n'
        f"BUILD\nAlready have image: {bench.image}\nhello\nworld\nPUSH\nDONE\n",
        done.out,
    )
    assert "\x1b" not in done.out + done.err
    assert f"Build {done.build_id} SUCCESS in" in done.err
    assert bench.left_behind(done.build_id) == []


def test_parallel_steps_have_prefixes_and_whole_lines(bench):
    bench.write(
        "cloudbuild.yaml",
        """
steps:
- {name: IMAGE, id: one, waitFor: ['-'], script: 'for n in 1 2 3; do echo a$n; done'}
- {name: IMAGE, waitFor: ['-'], script: 'for n in 1 2 3; do echo b$n; done'}
- {name: IMAGE, id: last, script: 'echo c'}
""",
    )
    done = bench.run("submit")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line for line in lines if line.startswith('Step #0 - "one": a')] == [
        f'Step #0 - "one": a{n}' for n in (1, 2, 3)
    ]
    assert [line for line in lines if line.startswith("Step #1: b")] == [
        f"Step #1: b{n}" for n in (1, 2, 3)
    ]
    start_of_last = lines.index('Starting Step #2 - "last"')
    assert lines.index('Finished Step #0 - "one"') < start_of_last
    assert lines.index("Finished Step #1") < start_of_last


def test_a_failure_exits_1_and_begins_with_the_failing_step(bench):
    bench.write(
        "cloudbuild.yaml",
        "steps: [{name: IMAGE, id: bad, script: 'echo about to fail; exit 3'}, {name: IMAGE}]\n",
    )
    done = bench.run("submit", ".")
    assert done.code == 1
    assert done.out.endswith(
        f'ERROR\nERROR: build step 0 "{bench.image}" failed: step exited with non-zero status: 3\n'
    )
    first = [line for line in done.err.splitlines() if line][:2]
    assert first == [f'Step #0 - "bad" failed: exit code 3  ({bench.image})', "  │ about to fail"]
    assert "NOT RUN" in done.err
    assert "  try again:  buildrunner submit .\n" in done.err
    assert bench.left_behind(done.build_id) == []


def test_try_again_runs_the_same_steps(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'exit 1'}, {name: IMAGE}]\n")
    done = bench.run("submit", ".", "--until", "0", "--image-alias=a=b")
    assert done.code == 1
    assert "  try again:  buildrunner submit . --until 0 --image-alias=a=b\n" in done.err


def test_a_missing_program_is_called_that_below_the_log(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, entrypoint: nosuch}]\n")
    done = bench.run("submit", ".")
    assert done.code == 1
    first = [line for line in done.err.splitlines() if line][:2]
    assert first[0] == f"Step #0 failed: exit code 127  ({bench.image})"
    assert re.fullmatch("  │ the container can't start: .*nosuch.*", first[1])
    assert "  code 127:   a program was not found: " in done.err


def test_what_the_log_ends_with_is_not_said_again_where_both_go_to_one_place(bench):
    bench.write(
        "cloudbuild.yaml",
        """
steps: [{name: IMAGE, secretEnv: [A]}]
availableSecrets: {secretManager: [{versionName: projects/p/secrets/s/versions/1, env: A}]}
""",
    )
    together = bench.run("submit", ".", stderr=subprocess.STDOUT)
    assert (together.code, together.out.count("was not found")) == (1, 1)
    apart = bench.run("submit", ".")
    assert (apart.out.count("was not found"), apart.err.count("was not found")) == (1, 1)
    quiet = bench.run("submit", ".", "--quiet", stderr=subprocess.STDOUT)
    assert quiet.out.count("was not found") == 1


def test_a_build_timeout_exits_4(bench):
    bench.write("cloudbuild.yaml", POLITE)
    done = bench.run("submit", ".", "--timeout", "1s")
    assert done.code == 4
    assert done.out.endswith("TIMEOUT\nERROR: context deadline exceeded\n")
    assert "--timeout DURATION" in done.err
    assert "the build took longer than its timeout of 1s" in done.err
    assert bench.left_behind(done.build_id) == []


@pytest.mark.parametrize(
    ("number", "by"), [(2, "Ctrl-C"), (15, "SIGTERM"), (1, "SIGHUP")], ids=["INT", "TERM", "HUP"]
)
def test_a_signal_cancels_and_leaves_nothing(bench, number, by):
    bench.write("cloudbuild.yaml", SLOW)
    process = bench.start("submit", ".")
    seen = read_until(process, "ready\n")
    done = interrupt(process, number)
    assert done.code == 130
    assert done.out.endswith("CANCELLED\nERROR: context canceled\n")
    assert "Cancelling ..." in done.err
    build_id = re.search(UUID, seen)[0]
    assert bench.left_behind(build_id) == []
    described = bench.builds("describe", build_id)
    assert described["status"] == "CANCELLED"
    assert described["statusDetail"].startswith(f"cancelled by {by}")
    assert f": cancelled by {by}" in done.err


def test_a_second_interrupt_leaves_no_more_behind(bench):
    bench.write(
        "cloudbuild.yaml",
        "steps:\n- name: IMAGE\n"
        "  script: 'trap \"\" TERM INT; echo ready; while :; do sleep 1; done'\n",
    )
    process = bench.start("submit", ".")
    seen = read_until(process, "ready\n")
    process.send_signal(2)
    done = interrupt(process, 2)
    assert done.code == 130
    assert bench.left_behind(re.search(UUID, seen)[0]) == []


def test_a_killed_process_is_cleaned_up_after_and_shown_as_dead(bench):
    bench.write("cloudbuild.yaml", SLOW)
    process = bench.start("submit", ".")
    build_id = re.search(UUID, read_until(process, "ready\n"))[0]
    wait_until(lambda: bench.builds("list", "--ongoing"))
    process.kill()
    process.communicate()
    wait_until(lambda: not bench.left_behind(build_id))
    found = bench.builds("describe", build_id)
    assert (found["status"], found["statusDetail"]) == (
        "INTERNAL_ERROR",
        "the buildrunner process died",
    )


def test_substitutions_come_from_flags_as_with_gcloud(bench):
    bench.write(
        "cloudbuild.yaml",
        """
steps: [{name: IMAGE, args: [echo, '$_A|${_B}|$PROJECT_ID|$LOCATION|$COMMIT_SHA']}]
substitutions: {_A: file, _B: file}
""",
    )
    done = bench.run(
        "submit",
        ".",
        "--substitutions=^:^_A=x,y",
        "--substitutions",
        "COMMIT_SHA=abc",
        "--project",
        "mine",
        "--region=europe-west1",
    )
    assert done.code == 0, done.err
    assert "\nx,y|file|mine|europe-west1|abc\n" in done.out


def test_a_part_of_the_build_can_be_run(bench):
    bench.write(
        "cloudbuild.yaml",
        "steps: ["
        + ", ".join(f"{{name: IMAGE, id: s{n}, args: [echo, ran{n}]}}" for n in range(4))
        + "]",
    )
    for flags, expected in (
        (["--step", "s1"], [1]),
        (["--from", "s2"], [2, 3]),
        (["--until", "s1"], [0, 1]),
        (["--skip", "s0", "--skip", "3"], [1, 2]),
    ):
        done = bench.run("submit", ".", *flags)
        assert done.code == 0, done.err
        assert [line for line in done.out.splitlines() if "ran" in line] == [
            f'Step #{n} - "s{n}": ran{n}' for n in expected
        ]
        assert re.findall(r"^#(\d) s\d +SUCCESS", done.err, re.MULTILINE) == list(
            map(str, expected)
        )
        steps = bench.builds("list")[0]["steps"]
        assert [n for n in range(4) if steps[n].get("status") == "SUCCESS"] == expected
        assert [n for n in range(4) if "status" not in steps[n]] == sorted(
            {*range(4)} - {*expected}
        )


def test_no_source_and_config_and_source_flags(bench):
    bench.write("app/file", "")
    bench.write("ci.yaml", "steps: [{name: IMAGE, args: [ls, -A]}]\n")
    assert "\nci.yaml\n" in bench.run("submit", "ci.yaml").out
    assert "\nfile\n" in bench.run("submit", "--config", "ci.yaml", "--source", "app").out
    empty = bench.run("submit", "ci.yaml", "--no-source").out
    assert f"Already have image: {bench.image}\nPUSH\n" in empty


@pytest.mark.parametrize("arguments", [("-",), ("--config", "-"), ("--config=-", ".")])
def test_a_config_comes_from_standard_input(bench, arguments):
    command = [sys.executable, "-m", "buildrunner", "submit", *arguments]
    config = f"steps: [{{name: '{bench.image}', args: [ls, -A]}}]"
    bench.write("app", "")
    done = subprocess.run(
        command,
        cwd=bench.folder,
        env=bench.environ,
        input=config.encode(),
        capture_output=True,
        check=True,
    )
    assert b"\napp\n" in done.stdout


SECRET_CONFIG = """
steps: [{name: IMAGE, script: 'echo "the key is $KEY"', secretEnv: [KEY]}]
availableSecrets:
  secretManager: [{versionName: projects/p/secrets/api-key/versions/1, env: KEY}]
"""


def test_a_mapped_secret_reaches_the_step_and_no_log(bench):
    bench.write("cloudbuild.yaml", SECRET_CONFIG)
    done = bench.run(
        "submit", ".", "--secret", "api-key=env:MY_KEY", environ={"MY_KEY": "hunter2hunter2"}
    )
    assert done.code == 0, done.err
    assert "the key is ***" in done.out
    kept = json.dumps(bench.builds("list"))
    assert (
        "hunter2" not in done.out + done.err + kept + bench.run("builds", "log", done.build_id).out
    )


def test_steps_get_the_users_registry_logins_only_when_told_to(bench, tmp_path):
    (tmp_path / "data" / "docker").mkdir(parents=True)
    config = tmp_path / "data" / "docker" / "config.json"
    config.write_text('{"auths": {"registry.example": {"auth": "dXNlcjpwYXNz"}}}')
    bench.write(
        "cloudbuild.yaml",
        "steps: [{name: IMAGE, script: 'cat $HOME/.docker/config.json || echo none'}]\n"
        "images: [registry.example/app]\n",
    )
    shared = bench.run("submit", ".", "--no-push", "--share-registry-logins")
    assert '"registry.example":{"auth":"dXNlcjpwYXNz"}' in shared.out
    assert "\nnone\n" in bench.run("submit", ".", "--no-push").out


def test_a_missing_secret_fails_before_any_step(bench):
    bench.write("cloudbuild.yaml", SECRET_CONFIG)
    done = bench.run("submit", ".")
    assert done.code == 1
    assert "projects/p/secrets/api-key/versions/1" in done.out
    assert "KEY" in done.out
    assert "the key is" not in done.out
    assert bench.left_behind(done.build_id) == []


def test_json_output_is_events_and_lines_and_the_build(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\n")
    done = bench.run("submit", ".", "--output", "json")
    assert done.code == 0
    events = [json.loads(line) for line in done.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "buildStarted"
    assert kinds[-2:] == ["buildFinished", "result"]
    assert {"event": "log", "step": 0, "text": "hello"}.items() <= next(
        event for event in events if event.get("text") == "hello"
    ).items()
    assert events[-1]["build"]["status"] == "SUCCESS"
    assert events[-1]["exitCode"] == 0
    assert events[-1]["build"] == bench.builds("describe", events[-1]["build"]["id"])


def test_quiet_shows_no_log_but_keeps_it(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\n")
    done = bench.run("submit", ".", "--quiet")
    assert done.out == ""
    assert "\nhello\n" in bench.run("builds", "log", done.build_id[:8]).out


def test_logging_none_keeps_no_log(bench):
    bench.write(
        "cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\noptions: {logging: NONE}\n"
    )
    done = bench.run("submit", ".")
    assert "\nhello\n" in done.out
    missing = bench.run("builds", "log", done.build_id)
    assert missing.code == 2
    assert "has no log" in missing.err


def test_a_reader_that_went_away_does_not_stop_the_build(bench):
    bench.write(
        "cloudbuild.yaml",
        "steps: [{name: IMAGE, script: 'seq 50000; echo end'}]\n",
    )
    read, write = os.pipe()
    process = bench.start("submit", ".", stdout=write)
    os.close(write)
    os.read(read, 100)
    os.close(read)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    build_id = re.search(f"Build ({UUID}) SUCCESS", err)[1]
    assert "\nend\n" in bench.run("builds", "log", build_id).out


@pytest.mark.parametrize(
    ("flags", "lost"),
    [((), "the log there is cut; `buildrunner builds log"), (("--output", "json"), "events are")],
)
def test_a_full_disk_behind_the_output_is_told_and_does_not_stop_the_build(bench, flags, lost):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\n")
    with open("/dev/full", "w") as full:
        done = bench.run("submit", ".", *flags, stdout=full)
    assert done.code == 0
    assert "warning: standard output can't be written (No space left on device)" in done.err
    assert lost in done.err
    (build,) = bench.builds("list")
    assert build["status"] == "SUCCESS"
    assert "hello\n" in bench.run("builds", "log", build["id"]).out


def test_without_any_standard_stream_the_build_runs_and_no_other_file_is_written(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\n")
    command = f"exec '{sys.executable}' -m buildrunner submit . <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=bench.folder, env=bench.environ, check=False)
    assert done.returncode == 0
    (build,) = bench.builds("list")
    assert build["status"] == "SUCCESS"
    assert "\nhello\n" in bench.run("builds", "log", build["id"]).out


def test_an_interrupt_ends_the_wait_for_an_output_that_takes_nothing(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'seq 100000'}]\n")
    read, write = os.pipe()  # takes 64 KiB, then nothing
    process = bench.start("submit", ".", stdout=write)
    os.close(write)
    wait_until(lambda: [b for b in bench.builds("list") if b["status"] == "SUCCESS"])
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    os.close(read)
    assert process.returncode == 0
    assert "SUCCESS" in err


def test_a_terminal_that_goes_away_cancels_and_the_build_is_kept(bench):
    bench.write("cloudbuild.yaml", SLOW)
    master, slave = pty.openpty()
    process = bench.start(
        "submit",
        ".",
        stdout=slave,
        stderr=slave,
        environ={"TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(master, 65536)
    os.close(master)  # the kernel sends SIGHUP
    assert process.wait(60) == 130
    (build,) = bench.builds("list")
    assert build["status"] == "CANCELLED"
    assert bench.left_behind(build["id"]) == []


def test_many_lines_arrive_in_order_and_whole(bench):
    count = 200_000
    bench.write("cloudbuild.yaml", f"steps: [{{name: IMAGE, script: 'seq {count}'}}]\n")
    done = bench.run("submit", ".")
    numbers = re.findall(r"^\d+$", done.out, re.MULTILINE)
    assert numbers == [str(n) for n in range(1, count + 1)]


def test_on_a_terminal_there_are_colours_and_a_status_line(bench):
    bench.write(
        "cloudbuild.yaml",
        "steps: [{name: IMAGE, id: one, script: 'echo hello; sleep 1'}, {name: IMAGE, id: two}]\n",
    )
    master, slave = pty.openpty()
    process = bench.start("submit", ".", stdout=slave, stderr=slave, environ={"TERM": "xterm"})
    os.close(slave)
    received = bytearray()

    def read():
        while True:
            try:
                received.extend(os.read(master, 65536))
            except OSError:  # the other side was closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    process.wait(90)
    reader.join()
    os.close(master)
    text = received.decode()
    assert process.returncode == 0, text
    assert '\x1b[36mStep #0 - "one":\x1b[0m hello\r\n' in text
    assert "─" in text
    assert "one " in text
    assert "\x1b[J" in text
    after = text[text.rindex("DONE") :]
    assert re.search(r"Build \S+ \x1b\[1;32mSUCCESS\x1b\[0m in", after)


def run_with_a_terminal_for_the_dialogue(bench, stdout):
    """A build whose standard error alone is a terminal, and what that terminal got."""
    master, slave = pty.openpty()
    process = bench.start("submit", ".", stdout=stdout, stderr=slave, environ={"TERM": "xterm"})
    os.close(slave)
    received = b""
    while True:
        try:
            received += os.read(master, 65536)
        except OSError:  # the other side was closed
            break
    os.close(master)
    return process, received.decode()


def test_there_is_no_status_line_where_the_log_goes_into_a_pipe(bench):
    # `| tee log` shows the log on the same terminal: its lines would begin after our status.
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\n")
    process, said = run_with_a_terminal_for_the_dialogue(bench, subprocess.PIPE)
    assert "\nhello\n" in process.communicate(timeout=90)[0]
    assert "\x1b[J" not in said
    assert said.startswith("\r\n")  # the summary
    assert "\x1b[1;32mSUCCESS" in said


def test_there_is_a_status_line_where_the_log_goes_into_a_file(bench, tmp_path):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, args: [echo, hello]}]\n")
    with open(tmp_path / "log", "w") as log:
        process, said = run_with_a_terminal_for_the_dialogue(bench, log)
    assert process.wait(90) == 0
    assert "\x1b[J" in said
    assert "\nhello\n" in (tmp_path / "log").read_text()


def test_two_builds_at_once_do_not_disturb_each_other(bench):
    bench.write("cloudbuild.yaml", "steps: [{name: IMAGE, script: 'sleep 1; echo fine'}]\n")
    processes = [bench.start("submit", ".") for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert "\nfine\n" in out
    assert len(bench.builds("list")) == 3


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("flags", [(), ("--no-source",)], ids=["folder", "no source"])
def test_the_workspace_is_written_to_a_folder_also_of_a_failed_build(bench, tmp_path, code, flags):
    bench.write(
        "cloudbuild.yaml",
        f"""
steps:
- name: IMAGE
  script: |
    mkdir -p out; echo made > out/file; chmod 750 out/file; ln -s /etc/hosts link; rm -f greeting
    exit {code}
""",
    )
    bench.write("greeting", "hello\n")
    target = tmp_path / "taken home"
    done = bench.run("submit", "cloudbuild.yaml", *flags, "--write-workspace", str(target))
    assert done.code == min(code, 1), done.err
    assert (target / "out" / "file").read_text() == "made\n"
    status = (target / "out" / "file").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o750, os.getuid())
    assert str((target / "link").readlink()) == "/etc/hosts"
    names = {path.name for path in target.iterdir()}
    assert names == {"out", "link"} | ({"cloudbuild.yaml"} if not flags else set())
    assert (bench.folder / "greeting").exists()
    assert re.search(rf"^Workspace written to {target}: \d files, \d+ B$", done.err, re.MULTILINE)
    assert bench.left_behind(done.build_id) == []
    again = bench.run("submit", ".", "--write-workspace", str(target))
    assert (again.code, "is not empty" in again.err) == (2, True)


def test_a_workspace_that_never_was_is_an_error(bench, tmp_path):
    bench.write(
        "cloudbuild.yaml",
        "{steps: [{name: IMAGE}], source: {storageSource: {bucket: none, object: a.tgz}}}",
    )
    folders = ("--storage", f"gs://none=file://{tmp_path}/none")
    target = ("--write-workspace", str(tmp_path / "out"))
    done = bench.run("submit", "cloudbuild.yaml", "--no-source", *folders, *target)
    assert done.code == 1
    assert f"error: the workspace is not in {tmp_path}/out: the build ended before" in done.err


def test_a_tag_builds_the_dockerfile_and_pushes(bench, registry):
    bench.write("Dockerfile", "FROM IMAGE\nCOPY . /app\n")
    bench.write("docker-builder/Dockerfile", "unused")
    tag = f"{registry.address}/app:1"
    plan = bench.run("submit", ".", "--tag", tag, "--dry-run", "--format", "json")
    assert plan.code == 0, plan.err
    step = json.loads(plan.out)["steps"][0]
    assert step["args"] == ["build", "--network", "cloudbuild", "-t", tag, "."]
    assert json.loads(plan.out)["images"] == [tag]


def test_pushed_images_are_reported_with_digest_and_layers(bench, registry, docker_engine):
    import subprocess

    name = f"{registry.address}/made-by-test:{os.getpid()}"
    # A layer of its own: the registry has those of the test image from other tests.
    dockerfile = f"FROM {bench.image}\nLABEL test={uuid.uuid4()}\nRUN cat /proc/uptime > /made\n"
    subprocess.run(
        ["docker", "build", "-q", "-t", name, "-"],
        input=dockerfile.encode(),
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        check=True,
    )
    bench.write(
        "cloudbuild.yaml", f"steps: [{{name: IMAGE, args: ['true']}}]\nimages: ['{name}']\n"
    )
    try:
        done = bench.run("submit", ".")
        assert done.code == 0, done.out + done.err
        digest = re.search(r"sha256:[0-9a-f]{64}", done.err)[0]
        assert re.search(rf"{digest}, .*[12] layers? pushed", done.err)
        (image,) = bench.builds("describe", done.build_id)["results"]["images"]
        assert (image["name"], image["digest"]) == (name, digest)
        again = bench.run("submit", ".")
        assert "0 layers pushed, 2 already there" in again.err
        unpushed = bench.run("submit", ".", "--no-push")
        assert "IMAGES" not in unpushed.err
    finally:
        subprocess.run(["docker", "rmi", name], check=False, capture_output=True)
