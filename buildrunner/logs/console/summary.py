"""The summary after a build: the failure first, then each step, then the images. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from buildrunner.engine.events import BuildFinished, StepFinished
from buildrunner.logs.console.build_view import BuildView, StepView
from buildrunner.logs.console.wording import (
    BOLD,
    DIM,
    RED,
    RESET,
    STATUS_COLOURS,
    Look,
    count,
    painted,
    printable,
    seconds,
    size,
)
from buildrunner.plan.drawing import display_width, padded

_OOM_HINT = "it ran out of memory: give the machine more, or let the step use less"
_NO_FILE = ": no such file or directory"
# Source: BuildKit, for a FROM line whose registry does not answer.
_NO_REGISTRY = re.compile(r"failed to resolve source metadata for (\S+): failed to do request")
_NO_REGISTRY_HINT = (
    "can't be pulled; `buildrunner builders install --for CONFIG --stand-ins` makes an image that"
    " stands in for it, if there is one"
)
# Source: the exit codes of shells and of `docker run`.
_CODE_HINTS = {
    126: "a program can't be executed: check its path, its mode (chmod +x) and its #! line",
    127: "a program was not found: use an image that has it, or install it earlier in the step",
}


def render_summary(
    view: BuildView,
    look: Look,
    command: str,
    log_command: str = "buildrunner builds log",
    retry_command: str = "",
    *,
    log_shown: bool = False,
) -> str:
    """Return the summary of a finished build, as whole lines.

    Args:
        view: the build.
        look: what the output can show.
        command: command that submits the same build again; empty if parts of the build can't be
            submitted.
        log_command: command that shows the whole log, without the build's id.
        retry_command: command that resumes a build with its workspace, without the build's id and
            the step; empty if no workspace is kept.
        log_shown: the log is shown right above, and its last line says why the build failed.

    Order: the failing step with its last lines, the table of steps, images, deployments, warnings,
    the verdict, the next commands.
    """
    if view.finished is None:
        return ""
    parts = [
        *_failure(view, view.finished, look, log_shown=log_shown),
        *_steps(view, look),
        *_images(view, look),
        *_deployments(view, look),
        *(
            painted("warning: ", STATUS_COLOURS["CANCELLED"], colour=look.colour) + text
            for text in view.warnings
        ),
        _verdict(view, view.finished, look, log_shown=log_shown),
        *_next(view, view.finished, look, command, log_command, retry_command),
    ]
    return "\n".join(parts) + "\n"


def _failure(view: BuildView, finished: BuildFinished, look: Look, *, log_shown: bool) -> list[str]:
    if finished.failing_step is None:
        return []
    step = view.step(finished.failing_step)
    ended = step.finished
    if ended is None:
        return []
    title = painted(f"{printable(step.plan.label)} failed", RED, colour=look.colour)
    cause = _cause(step, ended, log_shown=log_shown)
    lines = ["", f"{title}{cause}  ({printable(step.plan.image)})"]
    if ended.last_lines:
        bar = "│" if look.unicode else "|"
        edge = painted(bar, DIM, colour=look.colour)
        lines.extend(f"  {edge} {_harmless(line, look)}" for line in ended.last_lines)
    return lines


def _cause(step: StepView, ended: StepFinished, *, log_shown: bool) -> str:
    if ended.oom_killed:
        return f": killed for lack of memory (OOM), exit code {ended.exit_code}"
    if ended.status == "TIMEOUT":
        limit = f" of {seconds(step.plan.timeout_s)}" if step.plan.timeout_s else ""
        return f": it took longer than its timeout{limit}"
    if ended.exit_code is not None:
        return f": exit code {ended.exit_code}"
    return "" if log_shown else f": {printable(ended.error) or ended.status}"


def _harmless(line: str, look: Look) -> str:
    """Return a step's line without control sequences, except colours.

    A progress bar rewrites its line after each carriage return: only the last state is returned.
    """
    line = next((part for part in reversed(line.split("\r")) if part), "")
    if line.isprintable():
        return line
    from buildrunner.logs.console.outputs import without_colours, without_controls

    data = without_controls(line.encode("utf-8", "replace"))
    if look.colour:
        return f"{data.decode()}{RESET}"
    return printable(without_colours(data).decode())


def _steps(view: BuildView, look: Look) -> list[str]:
    if not view.steps:  # the build ended before it was planned
        return []
    rows: list[tuple[str, ...]] = [("STEP", "STATUS", "TIME", "PULL", "START", "RUN")]
    rows.extend(_step_row(step, view) for step in view.steps)
    widths = [max(display_width(row[column]) for row in rows) for column in range(6)]
    lines = [""]
    for position, row in enumerate(rows):
        cells = [padded(row[0], widths[0]), row[1].ljust(widths[1])]
        cells.extend(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
        if position == 0:
            lines.append(painted("  ".join(cells).rstrip(), DIM, colour=look.colour))
            continue
        code = STATUS_COLOURS.get(view.steps[position - 1].status, "")
        cells[1] = painted(cells[1], code, colour=look.colour)
        lines.append("  ".join(cells).rstrip())
    return lines


def _step_row(step: StepView, view: BuildView) -> tuple[str, ...]:
    name = printable(f"#{step.plan.index} {step.plan.shown_id}".rstrip())
    ended = step.finished
    if ended is None:
        return name, "NOT RUN" if step.status == "QUEUED" else step.status, "-", "-", "-", "-"
    status = ended.status
    if ended.oom_killed:
        status += " (OOM)"
    elif ended.exit_code:
        status += f" ({ended.exit_code})"
    if ended.forgiven:
        status += " allowed"
    begun = step.started_at or view.started_at
    whole = (ended.at - begun).total_seconds() if begun else 0.0
    spans = (whole, ended.pull_s, ended.start_s, ended.run_s)
    return (name, status, *(seconds(span) for span in spans))


def _images(view: BuildView, look: Look) -> Iterable[str]:
    if not view.pushed:
        return
    yield ""
    yield painted("IMAGES", DIM, colour=look.colour)
    for image in view.pushed:
        yield f"{image.name}"
        layers = []
        if image.layers_pushed or image.layers_reused:  # Podman does not report it
            layers.append(f"{count(image.layers_pushed, 'layer')} pushed")
        if image.layers_reused:
            layers.append(f"{image.layers_reused} already there")
        sized = [size(image.size_bytes)] if image.size_bytes else []
        digest = [image.digest] if image.digest else []
        yield "  " + ", ".join([*digest, *sized, *layers, seconds(image.push_s)])


def _deployments(view: BuildView, look: Look) -> Iterable[str]:
    made = [one for step in view.steps if step.finished for one in step.finished.deployments]
    if not made:
        return
    yield ""
    yield painted("DEPLOYED", DIM, colour=look.colour)
    for one in made:
        yield one.target
        yield from (f"  {image}" for image in one.images)
        yield from (f"  before: {image}" for image in one.previous_images)
        if not one.reported:
            yield "  as the step's command says: its image did not report what it deployed"


def _verdict(view: BuildView, finished: BuildFinished, look: Look, *, log_shown: bool) -> str:
    status = painted(
        finished.status, f"{BOLD};{STATUS_COLOURS.get(finished.status, '')}", colour=look.colour
    )
    took = (finished.at - view.started_at).total_seconds() if view.started_at else 0.0
    cause = ""
    if finished.stopped_by:
        cause = f": {printable(finished.stopped_by)}"
    elif finished.failing_step is None and finished.error and not log_shown:
        cause = f": {printable(finished.error)}"
    return f"\nBuild {view.plan.build_id} {status} in {seconds(took)}{cause}"


def _advice(step: StepView, ended: StepFinished) -> list[str]:
    """Return advice for the way in which a step failed; empty if there is none."""
    if ended.oom_killed:
        return [f"  memory:     {_OOM_HINT}"]
    if ended.exit_code in _CODE_HINTS:
        return [f"  code {ended.exit_code}:   {_CODE_HINTS[ended.exit_code]}"]
    last = ended.last_lines[-1] if ended.last_lines else ""
    if step.plan.script and last.startswith("exec ") and last.endswith(_NO_FILE):
        interpreter = printable(step.plan.script.partition("\n")[0])
        return [f"  script:     its first line names a program that the image lacks: {interpreter}"]
    if missing := _NO_REGISTRY.search(last):
        return [f"  FROM:       {printable(missing[1])} {_NO_REGISTRY_HINT}"]
    return []


def _next(
    view: BuildView,
    finished: BuildFinished,
    look: Look,
    command: str,
    log_command: str,
    retry_command: str,
) -> list[str]:
    if finished.status == "SUCCESS":
        return []
    short = view.plan.build_id.partition("-")[0]
    lines = [f"  whole log:  {log_command} {short}"]
    if finished.failing_step is not None:
        step = view.step(finished.failing_step)
        again = shlex.quote(step.plan.id or str(step.plan.index))
        if command:
            lines.append(f"  try again:  {command}")
        if step is not view.steps[0]:
            # A local build starts from the source: the results of earlier steps are deleted with
            # their build.
            if command:
                part = f"{_without(command, '--from')} --from {again}"
                lines.append(f"  from here:  {part}  # lacks what earlier steps wrote")
            elif retry_command:
                lines.append(f"  from here:  {retry_command} {short} --from {again}")
        if step.finished is not None:
            lines += _advice(step, step.finished)
    elif finished.status == "TIMEOUT" and command:
        lines.append(f"  more time:  {_without(command, '--timeout')} --timeout DURATION")
    return [painted(line, DIM, colour=look.colour) for line in lines]


def _without(command: str, flag: str) -> str:
    """Return the command without that flag and its value."""
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        if word == flag:
            next(words, None)
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return shlex.join(kept)
