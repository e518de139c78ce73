"""The end of a build on the engine: what was made for it goes, what was left behind is told."""

from __future__ import annotations

import threading

from buildrunner.engine.cleanup_parts import CleanUpParts
from buildrunner.engine.live_container import Workbench
from buildrunner.engine.resources import BuildResources
from buildrunner.engine.step_runs import StepRuns
from buildrunner.workspace.protocol import Workspace


def clean_up(
    bench: Workbench,
    steps: StepRuns,
    resources: BuildResources,
    workspace: Workspace,
    *,
    strays: bool,
    sweep: bool,
    leave: bool,
) -> list[str]:
    """Remove what the build made, with time of its own whatever the build's clock says.

    Closes the log, too.

    Args:
        bench: what the steps worked with.
        steps: none of them runs any more.
        resources: network, volumes and home.
        workspace: released.
        strays: remove what the steps themselves left running on the network.
        sweep: look for whatever carries the build's label.
        leave: what the build itself made is removed by somebody else.

    Returns:
        What a person should know about it.
    """
    parts = CleanUpParts()
    changed: list[str] = []

    def work() -> None:
        parts.do(
            "looking whether the source changed",
            lambda: changed.extend(workspace.changed_on_host()),
        )
        if strays:
            parts.do("removing what steps left running", resources.remove_strays)
        if leave:
            return
        parts.do("removing containers that were not needed", steps.discard_rest)
        parts.do("removing the containers of steps", bench.reaper.finish)
        resources.remove(parts, workspace, steps.pool.containers, sweep=sweep)
        parts.do("taking private names off images", bench.private_names.take_away)

    allowed_s = bench.options.cleanup_s
    thread = threading.Thread(target=work, name="build-clean-up", daemon=True)
    thread.start()
    thread.join(allowed_s)
    if thread.is_alive():
        doing = ", ".join(parts.under_way())
        parts.failures.append(f"cleaning up took longer than {allowed_s:g}s; it was still {doing}")
    bench.log.close()
    # An engine that is gone says so of every container and volume: once is enough.
    left = dict.fromkeys([*parts.failures, *bench.reaper.failures])
    return [
        *(f"something of the build was left behind: {failure}" for failure in left),
        *_changed_text(changed),
    ]


def _changed_text(paths: list[str]) -> list[str]:
    if not paths:
        return []
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return [
        f"the source changed while the build ran: {', '.join(paths[:3])}{more}; steps may have "
        "seen a mixture of old and new files"
    ]
