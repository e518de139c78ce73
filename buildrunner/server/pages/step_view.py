"""What the pages show of a step, made from what is stored. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.plan.drawing import short_image
from buildrunner.server.pages.terminal_text import shown_text
from buildrunner.server.pages.wording import seconds_between

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.engine.events import StepFinished

FINAL = frozenset({"SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED"})
"""Statuses that a build never leaves."""

BAD = frozenset({"FAILURE", "TIMEOUT", "INTERNAL_ERROR"})
"""Statuses of what has failed."""


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """One step.

    Attributes:
        index: from 0.
        title: its id, or the short name of its image.
        image: as written.
        command: what runs in it, on one line.
        script: its whole script; empty for none.
        status: name of its status; QUEUED before it began, NOT_RUN when it never will.
        seconds: how long it took.
        pull_s, start_s, run_s: how much of that was getting the image, starting the container, and
            its own work.
        digest: of the image that ran; empty when not known.
        exit_code: None unless it failed by itself.
        error: one sentence when it failed.
        last_lines: the end of its log when it failed.
        waits_for: titles of the steps that it waits for.
        timeout: as written; empty for none.
        env: its environment, as written; secret variables by name only.
        secrets: names of its secret variables.
        ended: when it did.
        forgiven: it failed, and the build went on all the same.
    """

    index: int
    title: str
    image: str
    command: str
    status: str
    script: str = ""
    seconds: float | None = None
    pull_s: float | None = None
    start_s: float | None = None
    run_s: float | None = None
    digest: str = ""
    ended: datetime | None = None
    forgiven: bool = False
    exit_code: int | None = None
    error: str = ""
    last_lines: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    timeout: str = ""
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    @property
    def is_bad(self) -> bool:
        """It failed."""
        return self.status in BAD


def step_views(
    document: Mapping[str, Any], finished: Mapping[int, StepFinished]
) -> tuple[StepView, ...]:
    """The steps of a build.

    Args:
        document: the build.
        finished: the last event of each step that ended, by its index.
    """
    described = document.get("steps", ())
    titles = [step.get("id") or short_image(step.get("name", "")) for step in described]
    digests = document.get("results", {}).get("buildStepImages", ())
    views = []
    for index, step in enumerate(described):
        event = finished.get(index)
        timing, pull = step.get("timing", {}), step.get("pullTiming", {})
        told = event is not None and event.status in BAD
        views.append(
            StepView(
                index=index,
                title=titles[index],
                image=step.get("name", ""),
                command=_command(step),
                script=str(step.get("script", "")),
                status=_status(step, document),
                seconds=seconds_between(timing.get("startTime"), timing.get("endTime")),
                pull_s=seconds_between(pull.get("startTime"), pull.get("endTime")),
                start_s=event.start_s if event else None,
                run_s=event.run_s if event else None,
                digest=(digests[index] if index < len(digests) else "")
                or (event.image_digest if event else ""),
                ended=event.at if event else None,
                forgiven=bool(event and event.forgiven),
                exit_code=step.get("exitCode") or None,
                error=event.error if event is not None and told else "",
                last_lines=tuple(map(shown_text, event.last_lines)) if event and told else (),
                waits_for=tuple(step.get("waitFor", ())),
                timeout=step.get("timeout", ""),
                env=tuple(step.get("env", ())),
                secrets=tuple(step.get("secretEnv", ())),
            )
        )
    return tuple(views)


def _status(step: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """A step that waits when the build is over will never run."""
    status = str(step.get("status", "QUEUED"))
    return "NOT_RUN" if status == "QUEUED" and document.get("status") in FINAL else status


def _command(step: Mapping[str, Any]) -> str:
    if step.get("script"):
        return str(step["script"]).strip().partition("\n")[0]
    words = [step["entrypoint"]] if step.get("entrypoint") else []
    return " ".join([*words, *map(str, step.get("args", ()))]).replace("\n", " ")
