"""Pushes the images of a build once all steps have succeeded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.engine.events import ImagePushed, PushStarted
from buildrunner.engine.image_aliases import split_reference
from buildrunner.engine.image_pulls import TransferReport
from buildrunner.engine.outcome import PushedName, Span
from buildrunner.engine.retry import LONGEST_WAIT_S, PUSH_TRIES, backoff_delays
from buildrunner.errors import ImagePushError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.containers.engine_types import PushedImage
    from buildrunner.engine.clock import Clock
    from buildrunner.engine.events import BuildEvent
    from buildrunner.engine.log_pipeline import LogPipeline
    from buildrunner.registries.docker_config import DockerLogins


def missing_images(engine: ContainerEngine, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that the engine does not have, all of them, in order.

    Source: semantics 6.2 (``docker images -q NAME``): a name without a tag is satisfied by any tag.
    """
    return [name for name in names if not _is_here(engine, name)]


class ImagePush:
    """The push phase of one build; runs in one thread.

    Args:
        engine: who has the images.
        log: the build's log.
        halt: set when the build ends early.
        clock: time and jitter.
        report: takes events, from this thread.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        log: LogPipeline,
        *,
        halt: threading.Event,
        clock: Clock,
        report: Callable[[BuildEvent], None],
    ) -> None:
        self._engine = engine
        self._log = log
        self._halt = halt
        self._clock = clock
        self._report = report
        self._logins: DockerLogins | None = None
        self._first_push: dict[str, Span] = {}
        self.pushed: list[PushedName] = []
        """``results.images`` so far; what was pushed before a failure stays pushed."""

    def push_all(self, names: Sequence[str], logins: DockerLogins | None = None) -> None:
        """Push one after the other, in list order. A name without a tag pushes all its tags.

        ``logins`` are those that the steps made; without one, the user's own counts.

        Raises:
            ImagePushError: one could not be pushed; those after it were not tried.
        """
        self._logins = logins
        for name in names:
            repository, tag = split_reference(name)
            tags = (tag,) if tag else self._engine.tags_of(repository)
            for one in tags:
                self._push(f"{repository}:{one}")

    def _push(self, name: str) -> None:
        began = self._clock.now()
        image = self._try_hard(name)
        for line in image.log:
            self._log.line(line)
        span = self._first_push.setdefault(image.digest, Span(began, self._clock.now()))
        repository, tag = split_reference(image.name)
        names = (repository, image.name) if tag == "latest" else (image.name,)
        self.pushed += [
            PushedName(
                name=each,
                digest=image.digest,
                timing=span,
                size_bytes=image.size_bytes,
                layers_pushed=image.layers_pushed,
                layers_reused=image.layers_reused,
            )
            for each in names
        ]
        now = self._clock.now()
        self._report(
            ImagePushed(
                at=now,
                name=image.name,
                digest=image.digest,
                size_bytes=image.size_bytes,
                layers_pushed=image.layers_pushed,
                layers_reused=image.layers_reused,
                push_s=(now - began).total_seconds(),
            )
        )

    def _try_hard(self, name: str) -> PushedImage:
        """Source: semantics 6.3; unlike the local builder, a refusal by the registry is final."""
        delays = backoff_delays(PUSH_TRIES, self._clock.chance)
        progress = TransferReport("push", name, self._clock, self._report)
        login = self._logins.login_for(name) if self._logins else None
        attempt = 0
        while True:
            attempt += 1
            self._log.line(f"Pushing {name}")
            self._report(PushStarted(at=self._clock.now(), image=name, attempt=attempt))
            try:
                return self._engine.push_image(
                    name, on_progress=progress.moved, cancel=self._halt, login=login
                )
            except ImagePushError as error:
                if error.unauthorized or not error.transient or self._halt.is_set():
                    raise _with_name(name, error) from error
                delay = next(delays, None)
                if delay is None:
                    self._log.line("ERROR: failed to push because we ran out of retries.")
                    raise _with_name(name, error) from error
                self._log.line(f"ERROR: push attempt {attempt} detected failure, retrying: {error}")
                self._halt.wait(max(delay, min(error.retry_after_s, LONGEST_WAIT_S)))


def _is_here(engine: ContainerEngine, name: str) -> bool:
    repository, tag = split_reference(name)
    if tag:
        return engine.find_image(name) is not None
    return bool(engine.tags_of(repository))


def _with_name(name: str, error: ImagePushError) -> ImagePushError:
    return ImagePushError(
        f'error pushing image "{name}": {error}',
        transient=error.transient,
        unauthorized=error.unauthorized,
        hint=error.hint,
    )
