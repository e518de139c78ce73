"""What is said after a build."""

import re

import pytest

from buildrunner.engine import events
from buildrunner.engine.deployments import Deployment
from buildrunner.logs.console.summary import render_summary
from buildrunner.logs.console.wording import Look, clock, count, printable, seconds, size
from buildrunner.plan.build_plan import BuildPlan, StepPlan
from tests.unit.logs.builds import BUILD_ID, at, diamond, ended, finished, started, view_of

PLAIN = Look()


def summary(*happened, command="buildrunner submit ."):
    return render_summary(view_of(diamond(), *happened), PLAIN, command)


def success(*more):
    each = [event for n in range(4) for event in (started(n, n), ended(n, n + 1, run_s=0.7))]
    return summary(*each, *more, finished(4))


def test_a_success_is_a_table_and_a_verdict():
    text = success()
    assert text.splitlines()[1].split() == ["STEP", "STATUS", "TIME", "PULL", "START", "RUN"]
    assert text.splitlines()[2].split() == [
        "#0",
        "deps",
        "SUCCESS",
        "1.0",
        "s",
        "0.0",
        "s",
        "0.0",
        "s",
        "0.7",
        "s",
    ]
    assert text.endswith(f"\nBuild {BUILD_ID} SUCCESS in 4.0 s\n")


@pytest.mark.parametrize(
    ("pushed", "reused", "layers"),
    [
        (1, 5, "1 layer pushed, 5 already there, "),
        (0, 2, "0 layers pushed, 2 already there, "),
        (0, 0, ""),  # Podman does not tell
    ],
)
def test_images_come_with_digest_size_and_the_layers_that_the_engine_tells_of(
    pushed, reused, layers
):
    text = success(
        events.ImagePushed(
            at=at(4),
            name="registry.example/app:1",
            digest="sha256:22",
            size_bytes=3 * 2**20,
            layers_pushed=pushed,
            layers_reused=reused,
            push_s=1.25,
        )
    )
    assert "registry.example/app:1\n" in text
    assert f"sha256:22, 3.0 MiB, {layers}1.2 s" in text


def test_deployments_come_with_digests_and_what_ran_before():
    one, two = (f"app@sha256:{digit * 64}" for digit in "12")
    reported = Deployment(
        target="run://p/r/web", images=(two,), previous_images=(one,), reported=True
    )
    suggested = Deployment(target="run://p/r/api", images=("api:1",))
    text = summary(started(0, 0), ended(0, 1, deployments=(reported, suggested)), finished(4))
    assert text.partition("DEPLOYED\n")[2].splitlines()[:6] == [
        "run://p/r/web",
        f"  {two}",
        f"  before: {one}",
        "run://p/r/api",
        "  api:1",
        "  as the step's command says: its image did not report what it deployed",
    ]


def failure(**more):
    return summary(
        started(0, 0),
        ended(0, 1),
        started(2, 1),
        ended(2, 3, "FAILURE", last_lines=("E   assert 1 == 2", "1 failed"), **more),
        finished(3, "FAILURE", failing_step=2, error="build step 2 failed"),
    )


def test_a_failure_begins_with_the_step_its_code_and_its_last_lines():
    lines = failure(exit_code=3).splitlines()
    assert lines[1] == 'Step #2 - "test" failed: exit code 3  (python)'
    assert lines[2:4] == ["  │ E   assert 1 == 2", "  │ 1 failed"]


def test_a_failure_ends_with_the_next_command():
    text = failure(exit_code=3)
    assert "buildrunner builds log 6f0b1c9e" in text
    assert "  try again:  buildrunner submit .\n" in text
    assert "  from here:  buildrunner submit . --from test  # lacks what earlier" in text


def test_an_id_with_blanks_can_be_pasted_into_a_shell():
    steps = (
        StepPlan(index=0, image="python"),
        StepPlan(index=1, id="unit tests", image="python", depends_on=(0,)),
    )
    view = view_of(
        BuildPlan(build_id=BUILD_ID, project_id="p", steps=steps),
        started(1, 0),
        ended(1, 1, "FAILURE"),
        finished(1, "FAILURE", failing_step=1, error="x"),
    )
    said = render_summary(view, PLAIN, "buildrunner submit .")
    assert "buildrunner submit . --from 'unit tests'  #" in said


def test_from_here_keeps_the_choice_of_steps_but_where_it_begins():
    events = (
        started(2, 1),
        ended(2, 3, "FAILURE"),
        finished(3, "FAILURE", failing_step=2, error="x"),
    )
    command = "buildrunner submit . --from 'unit tests' --until test --skip=lint"
    said = summary(*events, command=command)
    assert f"  try again:  {command}\n" in said
    assert "  from here:  buildrunner submit . --until test --skip=lint --from test  #" in said


def test_the_columns_stand_below_each_other_where_ids_have_wide_letters():
    steps = (StepPlan(index=0, id="漢字", image="a"), StepPlan(index=1, id="e\u0301x", image="a"))
    plan = BuildPlan(build_id=BUILD_ID, project_id="p", steps=steps)
    lines = render_summary(view_of(plan, finished(1, "FAILURE")), PLAIN, "").splitlines()
    (wide,) = [line for line in lines if line.startswith("#0")]
    (marked,) = [line for line in lines if line.startswith("#1")]
    assert wide.startswith("#0 漢字  NOT RUN")
    assert marked.startswith("#1 e\u0301x    NOT RUN")


def test_a_part_of_a_build_names_its_steps_as_the_whole_build_does():
    steps = (StepPlan(index=2, image="a"), StepPlan(index=3, image="b", depends_on=(0,)))
    plan = BuildPlan(build_id=BUILD_ID, project_id="p", steps=steps, left_out=("Step #0",))
    view = view_of(
        plan,
        started(2, 0),
        ended(2, 1, "SUCCESS"),
        started(3, 1),
        ended(3, 2, "FAILURE"),
        finished(2, "FAILURE", failing_step=3, error="x"),
    )
    said = render_summary(view, PLAIN, "buildrunner submit .")
    assert "Step #3 failed" in said
    assert [line.split()[:2] for line in said.splitlines() if line.startswith("#")] == [
        ["#2", "SUCCESS"],
        ["#3", "FAILURE"],
    ]
    assert "buildrunner submit . --from 3  #" in said


def test_the_first_step_is_not_called_a_part_of_the_build():
    text = summary(
        started(0, 0),
        ended(0, 1, "FAILURE"),
        finished(1, "FAILURE", failing_step=0, error="x"),
    )
    assert "  try again:  buildrunner submit .\n" in text
    assert "from here" not in text


@pytest.mark.parametrize(
    ("why", "is_advised"),
    [("failed to do request: Head ...: no such host", True), ("python:none: not found", False)],
)
def test_a_from_line_whose_registry_is_out_of_reach_names_stand_ins(why, is_advised):
    said = f"python:3: failed to resolve source metadata for docker.io/library/python:3: {why}"
    text = summary(
        started(2, 1),
        ended(2, 3, "FAILURE", exit_code=1, last_lines=("------", said)),
        finished(3, "FAILURE", failing_step=2, error="x"),
    )
    advice = (
        "  FROM:       docker.io/library/python:3 can't be pulled; `buildrunner builders install"
    )
    assert (advice in text) is is_advised


def test_lack_of_memory_is_called_that():
    text = failure(exit_code=137, oom_killed=True)
    assert "failed: killed for lack of memory (OOM), exit code 137" in text
    assert "FAILURE (OOM)" in text
    assert "more memory" in text or "ran out of memory" in text


def test_what_never_ran_says_so():
    text = failure(exit_code=3)
    assert [line.split()[:4] for line in text.splitlines() if line.startswith("#3")] == [
        ["#3", "NOT", "RUN", "-"]
    ]


def test_a_step_timeout_names_the_limit():
    text = summary(started(2, 0), ended(2, 60, "TIMEOUT"), finished(60, "FAILURE", failing_step=2))
    assert "it took longer than its timeout of 1m00s" in text


def test_a_build_timeout_names_the_flag():
    text = summary(finished(60, "TIMEOUT", error="context deadline exceeded"))
    assert "TIMEOUT in 1m00s: context deadline exceeded" in text
    assert "buildrunner submit . --timeout DURATION" in text


@pytest.mark.parametrize("given", ["--timeout 2s", "--timeout=2s"])
def test_a_build_timeout_names_the_flag_once(given):
    text = summary(finished(2, "TIMEOUT"), command=f"buildrunner submit {given} .")
    assert "buildrunner submit . --timeout DURATION" in text


def test_a_forgiven_failure_is_marked():
    text = summary(started(0, 0), ended(0, 1, "FAILURE", exit_code=2, forgiven=True), finished(1))
    assert "FAILURE (2) allowed" in text


def test_warnings_are_repeated_at_the_end():
    text = success(events.Warned(at=at(1), text="secret values are short"))
    assert "warning: secret values are short" in text


def test_a_build_that_has_not_ended_has_no_summary():
    assert summary() == ""


@pytest.mark.parametrize(
    ("duration_s", "words"),
    [(-1, "0.0 s"), (0.04, "0.0 s"), (59.94, "59.9 s"), (125, "2m05s"), (3723, "1h02m03s")],
)
def test_durations(duration_s, words):
    assert seconds(duration_s) == words


def test_other_numbers():
    assert [size(n) for n in (0, 1023, 1024, 5 * 2**40)] == ["0 B", "1023 B", "1.0 KiB", "5.0 TiB"]
    assert [clock(s) for s in (7.9, 754, 3723)] == ["0:07", "12:34", "1:02:03"]
    assert [count(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("downloading 1%\rdownloading 99%", "downloading 99%"),
        ("Sending build context  898.6kB\r\r", "Sending build context  898.6kB"),
        ("\r", ""),
        ("plain", "plain"),
    ],
)
def test_of_a_progress_bar_the_last_state_is_shown(line, shown):
    text = summary(
        started(2, 1),
        ended(2, 3, "FAILURE", exit_code=1, last_lines=(line,)),
        finished(3, "FAILURE", failing_step=2, error="x"),
    )
    assert f"\n  │ {shown}\n" in text


def test_a_steps_last_lines_can_colour_but_not_steer():
    happened = (
        started(2, 1),
        ended(2, 3, "FAILURE", exit_code=1, last_lines=("\x1b[31mred\x1b[2J\x1b]0;title\x07",)),
        finished(3, "FAILURE", failing_step=2),
    )
    plain = summary(*happened)
    assert "│ red\n" in plain
    coloured = render_summary(view_of(diamond(), *happened), Look(colour=True), "buildrunner")
    assert "\x1b[31mred\x1b[0m\n" in coloured


@pytest.mark.parametrize("colour", [False, True])
def test_the_colours_of_a_failed_docker_build_never_show_as_text(colour):
    line = "\x1b[91mE: Unable to locate package nosuch\n\x1b[0m"
    happened = (
        started(2, 1),
        ended(2, 3, "FAILURE", exit_code=1, last_lines=(line, "\x1b[0m", "\x1b[1;38:5:9mx")),
        finished(3, "FAILURE", failing_step=2),
    )
    text = render_summary(view_of(diamond(), *happened), Look(colour=colour), "buildrunner")
    assert "\\x1b" not in text
    assert ("\x1b[91mE: Unable" in text) is colour
    assert colour or "\x1b" not in text


@pytest.mark.parametrize(
    ("code", "words"), [(127, "a program was not found"), (126, "can't be executed"), (1, "")]
)
def test_a_program_that_is_missing_is_called_that(code, words):
    text = failure(exit_code=code)
    if words:
        assert re.search(rf"^  code {code}:   .*{words}.*: ", text, re.MULTILINE)
    else:
        assert "  code" not in text


@pytest.mark.parametrize(
    ("script", "last", "hint"),
    [
        ("#!/no/bash\nx", "exec /builder/script: no such file or directory", "#!/no/bash"),
        ("#!/bin/sh\r\nx", "exec /builder/script: no such file or directory", "#!/bin/sh\\r"),
        ("#!/bin/sh\nx", "cat: a: no such file or directory", ""),
        (None, "exec /builder/script: no such file or directory", ""),
    ],
)
def test_a_script_whose_interpreter_is_missing_is_explained(script, last, hint):
    plan = BuildPlan(
        build_id=BUILD_ID, project_id="p", steps=(StepPlan(index=0, image="a", script=script),)
    )
    view = view_of(
        plan,
        started(0, 0),
        ended(0, 1, "FAILURE", exit_code=1, last_lines=(last,)),
        finished(1, "FAILURE", failing_step=0),
    )
    said = re.findall(r"  script:     .*lacks: (.*)", render_summary(view, PLAIN, ""))
    assert said == ([hint] if hint else [])


PUSH = 'error pushing image "localhost:1/x": connection refused'


@pytest.mark.parametrize("log_shown", [False, True])
def test_an_error_that_the_log_ends_with_is_not_said_again_below_it(log_shown):
    def said(*happened):
        return render_summary(view_of(diamond(), *happened), PLAIN, "", log_shown=log_shown)

    pushed = said(finished(3, "FAILURE", error=PUSH))
    assert (PUSH in pushed) is not log_shown
    pulled = said(
        started(0, 0),
        ended(0, 1, "FAILURE", error="error pulling build step 0"),
        finished(3, "FAILURE", failing_step=0, error="error pulling build step 0"),
    )
    assert ("error pulling" in pulled) is not log_shown
    assert "\nStep #0" in pulled
    code = said(
        started(0, 0),
        ended(0, 1, "FAILURE", exit_code=3),
        finished(3, "FAILURE", failing_step=0, error="step exited with non-zero status: 3"),
    )
    assert "exit code 3" in code


def test_control_characters_are_spelled_out():
    assert printable("a\x1bb\x00\u202e") == "a\\x1bb\\x00\\u202e"
    assert printable("ünï\n日本") == "ünï\n日本"
