"""Finds the steps' images on the engine, or prefetches them: each is pulled once, in parallel.

An image that an earlier step may build is not prefetched: a pull that ends late would replace the
newly built image by an old version.

A trusted build gets the images of the engine, and those that the user's registry logins can pull.
The config of an untrusted build could name a private image that way. Such a build gets only images
that everyone can pull: each is pulled without a login, even if the engine has one of that name, and
only from a registry that the server's source policy allows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import msgspec

from buildrunner.containers.image_name import ImageName, is_image_id
from buildrunner.containers.protocol import ContainerEngine, ImageInfo, TransferProgress
from buildrunner.engine.cancellation import Clock
from buildrunner.engine.events import BuildEvent, PullFinished, PullStarted, TransferMoved
from buildrunner.engine.log.pipeline import StepLog
from buildrunner.errors import EngineError, ImagePullError
from buildrunner.plan.build_plan import BuildPlan, StepPlan

_HINT = (
    "builds from strangers get only images that everyone can pull; the server's administrator can "
    "allow others: [images] untrusted"
)


class PublicImages:
    """The images that the steps of an untrusted build may use.

    Args:
        allowed: names, or patterns with ``*``, of images that are always allowed.
        refusal: returns why a registry's host may not be contacted; empty if it may.
    """

    def __init__(self, allowed: Iterable[str], refusal: Callable[[str], str]) -> None:
        self._allowed = tuple(allowed)
        self._refusal = refusal

    def allows(self, name: str) -> bool:
        """Return whether the image may be used from the engine, or pulled with a login."""
        if is_image_id(name):
            return False
        requested = ImageName.parse(name)
        # In a name with tag and digest, the digest counts.
        version = f"@{requested.digest}" if requested.digest else f":{requested.tag or 'latest'}"
        names = {requested.familiar, f"{requested.familiar}{version}", requested.reference}
        return any(fnmatchcase(one, pattern) for pattern in self._allowed for one in names)

    def check(self, name: str) -> None:
        """Check whether the image's registry may be contacted.

        Raises:
            ImagePullError: the registry may not be contacted.
        """
        if is_image_id(name):
            raise ImagePullError(f"{name} is no image of a registry", hint=_HINT)
        requested = ImageName.parse(name)
        reason = self._refusal(requested.registry)
        if reason:
            host = requested.registry.rpartition(":")[0] or requested.registry
            raise ImagePullError(
                f"the image {name} can't be pulled: {reason}",
                hint="the server's administrator can allow the registry: serve "
                f'--allow-source-host {host}; or the image: untrusted = ["{requested.familiar}"] '
                "below [images] of the server's config.toml",
            )


class StepImages:
    """Finds and pulls the images of one build's steps. Thread-safe.

    Args:
        engine: the engine that runs the steps.
        public: the images that an untrusted build may use; None for a trusted build.
    """

    def __init__(self, engine: ContainerEngine, public: PublicImages | None) -> None:
        self._engine = engine
        self._public = public
        self._pulled: dict[str, ImageInfo] = {}

    def find(self, name: str) -> ImageInfo | None:
        """Return the image if the engine has it and the build may use it.

        Raises:
            EngineError: the engine does not answer.
        """
        if self._public is None or self._public.allows(name):
            return self._engine.find_image(name)
        return self._pulled.get(name)

    def pull(
        self,
        name: str,
        *,
        on_progress: Callable[[TransferProgress], None],
        cancel: threading.Event,
    ) -> ImageInfo:
        """See `Images.pull_image`."""
        if self._public is None or self._public.allows(name):
            return self._engine.pull_image(name, on_progress=on_progress, cancel=cancel)
        self._public.check(name)
        try:
            image = self._engine.pull_image(
                name, on_progress=on_progress, cancel=cancel, anonymous=True
            )
        except ImagePullError as error:
            raise ImagePullError(
                str(error),
                transient=error.transient,
                unresolved=error.unresolved,
                retry_after_s=error.retry_after_s,
                hint=error.hint if error.transient else _HINT,
            ) from error
        self._pulled[name] = image
        return image


_REPORT_EVERY_S = 0.1
_OTHERS_S = 1.0
_NAMES_AN_IMAGE = frozenset({"-t", "--tag", "--destination", "-d", "tag"})


class _Pull:
    """The pull of one image. Its thread always sets ``done``, also after a failure."""

    def __init__(self, served: ServedImage, round_: int) -> None:
        self.served = served
        self.round = round_
        self.done = threading.Event()
        self.announced = False
        self.failing = False  # a try has failed; a retry may follow
        self.image: ImageInfo | None = None
        self.error: EngineError | None = None


class ImagePulls:
    """Finds and pulls the images of one build.

    Args:
        plan: the build.
        images: finds and pulls one image.
        aliases: image that runs instead of another, by the other's name.
        halt: set if the build ends early; releases all waiting threads.
        clock: times the pauses between tries.
        report: takes events, from any thread.
    """

    def __init__(
        self,
        plan: BuildPlan,
        images: StepImages,
        aliases: Mapping[str, str],
        *,
        halt: threading.Event,
        clock: Clock,
        report: Callable[[BuildEvent], None],
    ) -> None:
        self._plan = plan
        self._images = images
        self._halt = halt
        self._clock = clock
        self._report = report
        self._served = {step.image: serve_image(step.image, aliases) for step in plan.steps}
        self._positions = {step.index: at for at, step in enumerate(plan.steps)}
        self._built = built_by_steps(plan) if plan.docker_socket else {}
        self._lock = threading.Lock()
        self._pulls: dict[str, _Pull] = {}
        self._round = 0

    def served(self, step: StepPlan) -> ServedImage:
        """Return the image that runs for a step's image name."""
        return self._served[step.image]

    def prefetch(self) -> None:
        """Start to pull missing images; returns once these are known (some 0.4 ms per image).

        Errors wait until a step needs the image.
        """
        for served, first_user in self._first_users().items():
            if self._built.get(served.requested, first_user) < first_user:
                continue
            try:
                missing = self._images.find(served.serving) is None
            except EngineError:
                return  # the step that needs the image reports the error
            if missing and not self._halt.is_set():
                self._pull(served)

    def may_be_built(self, step: StepPlan) -> bool:
        """Return whether an earlier step seems to build the step's image."""
        position = self._positions[step.index]
        return self._built.get(step.image, position) < position

    def is_pulling(self, step: StepPlan) -> bool:
        """Return whether the step's image is being pulled now."""
        with self._lock:
            pull = self._pulls.get(self.served(step).serving)
        return pull is not None and not pull.done.is_set()

    def step_ended(self) -> None:
        """Forget failed pulls after a step, which may have built or pushed these images."""
        self._round += 1

    def local(self, step: StepPlan) -> ImageInfo | None:
        """Return the step's image if the engine has it by now. Does not wait."""
        return self._images.find(self.served(step).serving)

    def obtain(self, step: StepPlan, log: StepLog) -> ImageInfo:
        """Return the step's image, pulled if necessary. Writes the log's lines about it.

        Source: semantics 5.7. The log shows the pull of a prefetched image at the first step that
        uses the image, as if it had been pulled then.

        Raises:
            ImagePullError: the image can't be pulled.
            EngineError: the engine refused a request, or does not answer.
        """
        served = self.served(step)
        with self._lock:
            pull = self._pulls.get(served.serving)
        on_its_way = pull is not None and not pull.done.is_set()
        image = self._images.find(served.serving)
        if image is None:
            log.line(f"Pulling image: {served.requested}{served.note}")
            return self._await_pull(pull if pull and on_its_way else self._pull(served), log)
        # The image exists a moment before the engine has finished the pull. An image that a step
        # has built meanwhile has no digest: don't wait for its pull.
        is_new = pull is not None and not pull.announced
        if pull and is_new and (pull.image == image or (on_its_way and image.digest)):
            log.line(f"Pulling image: {served.requested}{served.note}")
            return self._await_pull(pull, log)
        known = " (with digest)" if image.digest else ""
        log.line(f"Already have image{known}: {served.requested}{served.note}")
        return image

    def also_missing(self, step: StepPlan) -> tuple[str, ...]:
        """Return the images of other steps whose pulls fail, too.

        Waits a moment for their pulls, so that one error names all images.
        """
        self.prefetch()  # the prefetch may not have started all pulls
        with self._lock:
            others = [
                pull for name, pull in self._pulls.items() if name != self.served(step).serving
            ]
        deadline = self._clock.monotonic() + _OTHERS_S
        for pull in others:
            if not pull.failing:
                pull.done.wait(max(0.0, deadline - self._clock.monotonic()))
        return tuple(
            pull.served.requested for pull in others if pull.failing and pull.image is None
        )

    def _await_pull(self, pull: _Pull, log: StepLog) -> ImageInfo:
        pull.done.wait()
        pull.announced = True
        image = pull.image
        if image is None:
            error = pull.error or ImagePullError("the pull was given up")
            gave_up = isinstance(error, ImagePullError) and error.transient and not error.unresolved
            if gave_up and not self._halt.is_set():
                log.line("ERROR: failed to pull because we ran out of retries.")
            raise error
        if image.digest:
            log.line(f"Digest: {image.digest}")
        name = pull.served.requested
        if "@" not in name and ":" not in name.rpartition("/")[2]:
            name += ":latest"
        log.line(f"Status: Downloaded newer image for {name}")
        return image

    def _pull(self, served: ServedImage) -> _Pull:
        """Join the running pull of a missing image, or start one.

        A failed pull counts until another step has run. A successful one no longer counts if
        the image was removed since.
        """
        with self._lock:
            pull = self._pulls.get(served.serving)
            if pull is not None and not pull.done.is_set():
                return pull
            if pull is not None and pull.error is not None and pull.round == self._round:
                return pull
            pull = self._pulls[served.serving] = _Pull(served, self._round)
        threading.Thread(target=self._run, args=(pull,), daemon=True).start()
        return pull

    def _run(self, pull: _Pull) -> None:
        name = pull.served.requested
        steps = tuple(step.index for step in self._plan.steps if step.image == name)
        try:
            self._report(PullStarted(at=self._clock.now(), image=name, steps=steps))
            pull.image = self._try_hard(pull)
        except EngineError as error:
            pull.error = error
        finally:
            # Reported before any step continues, so that the events come in this order.
            self._report(
                PullFinished(
                    at=self._clock.now(),
                    image=name,
                    digest=pull.image.digest if pull.image else "",
                    error=str(pull.error or ""),
                )
            )
            pull.done.set()

    def _try_hard(self, pull: _Pull) -> ImageInfo:
        served, resolved, tries = pull.served, False, 0
        delays = backoff_delays(PULL_TRIES, self._clock.chance)
        progress = TransferReport("pull", served.requested, self._clock, self._report)
        while True:
            try:
                return self._images.pull(
                    served.serving, on_progress=progress.moved, cancel=self._halt
                )
            except ImagePullError as error:
                if self._halt.is_set():
                    raise
                pull.failing = True
                resolved = resolved or not error.unresolved
                tries += 1
                if not error.transient or (not resolved and tries == _UNRESOLVED_TRIES):
                    raise
                delay = next(delays, None)
                asked_s = min(error.retry_after_s, LONGEST_WAIT_S)
                if delay is None or self._halt.wait(max(delay, asked_s)):
                    raise

    def _first_users(self) -> dict[ServedImage, int]:
        """Return the position of the first step that uses each image."""
        first: dict[ServedImage, int] = {}
        for position, step in enumerate(self._plan.steps):
            first.setdefault(self.served(step), position)
        return first


class TransferReport:
    """Sums the layers of one pull or push, and reports at most ten times a second."""

    def __init__(
        self, direction: str, image: str, clock: Clock, report: Callable[[BuildEvent], None]
    ) -> None:
        self._direction = direction
        self._image = image
        self._clock = clock
        self._report = report
        self._layers: dict[str, tuple[int, int]] = {}
        self._next = 0.0

    def moved(self, progress: TransferProgress) -> None:
        """Take one progress message."""
        if progress.total_bytes:
            self._layers[progress.layer] = (progress.current_bytes, progress.total_bytes)
        now = self._clock.monotonic()
        if now < self._next:
            return
        self._next = now + _REPORT_EVERY_S
        self._report(
            TransferMoved(
                at=self._clock.now(),
                direction=self._direction,
                image=self._image,
                current_bytes=sum(current for current, _ in self._layers.values()),
                total_bytes=sum(total for _, total in self._layers.values()),
                status=progress.status,
            )
        )


def built_by_steps(plan: BuildPlan) -> dict[str, int]:
    """Return the images that steps seem to build, each with the first step that may do so.

    Every entry of ``images`` counts as built by the first step, since only steps can build it.
    Other names count if a step mentions them as a build's tag, or (if they can be nothing but an
    image: with a slash or a colon) anywhere.
    """
    wanted = {step.image for step in plan.steps}
    built = dict.fromkeys((name for name in plan.images if name in wanted), 0)
    for position, step in enumerate(plan.steps):
        words = _words(step)
        for before, word in zip(("", *words), words, strict=False):
            sure = "/" in word or ":" in word or before in _NAMES_AN_IMAGE
            for name in (word, word.removesuffix(":latest")) if sure else ():
                if name in wanted:
                    built.setdefault(name, position)
    return built


def _words(step: StepPlan) -> list[str]:
    text = "\n".join((*(step.args or ()), step.script or "", *step.env))
    for mark in "\"'=;,()":
        text = text.replace(mark, " ")
    return text.split()


_GCB_INTERNAL = "gcr.io/cloud-builders/gcb-internal"


class ServedImage(msgspec.Struct, frozen=True):
    """The image that runs for the name ``requested`` of the config.

    Attributes:
        requested: the name in the config.
        serving: the name to look up and run.
        drops_program: the first argument names a program that is the entrypoint of ``serving``.
    """

    requested: str
    serving: str
    drops_program: bool = False

    @property
    def note(self) -> str:
        """Return the log's remark after the name; empty without an alias."""
        return "" if self.requested == self.serving else f" (alias of {self.serving})"


def serve_image(requested: str, aliases: Mapping[str, str]) -> ServedImage:
    """Apply the alias map to one image name.

    An alias for the exact name wins; an alias without a tag applies to every tag of its repository.
    ``gcb-internal`` takes the program as its first argument; the image that replaces
    ``gcb-internal`` has the program as its entrypoint.
    """
    repository, _tag = split_reference(requested)
    serving = aliases.get(requested) or aliases.get(repository) or requested
    return ServedImage(requested, serving, serving != requested and repository == _GCB_INTERNAL)


def split_reference(name: str) -> tuple[str, str]:
    """Split ``host:5000/repo:tag`` or ``repo@sha256:...`` into repository and tag or digest.

    The tag begins at the last colon after the last slash, so that a registry's port stays (the
    local builder cuts at the first colon, which breaks such names).
    """
    head, at, digest = name.partition("@")
    slash = head.rfind("/")
    colon = head.rfind(":")
    repository, tag = (head[:colon], head[colon + 1 :]) if colon > slash else (head, "")
    return repository, digest if at else tag


PULL_TRIES = 11
_UNRESOLVED_TRIES = 2  # tries if the registry's host never had an address
PUSH_TRIES = 10
LONGEST_WAIT_S = 60.0
"""Longest wait between two attempts that a registry can demand."""

_FIRST_S = 0.5
_FACTOR = 1.3
_CAP_S = 10.0
_JITTER = 0.4


def backoff_delays(tries: int, chance: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait before the second, third, ... of ``tries`` tries.

    Source: the local builder (0.5 s times 1.3 per retry, at most 10 s, minus up to 40 %).

    Args:
        tries: the number of tries.
        chance: returns a random number from 0 to 1.
    """
    delay = _FIRST_S
    for _ in range(tries - 1):
        delay = min(delay * _FACTOR, _CAP_S)
        yield delay * (1 - _JITTER * chance())
