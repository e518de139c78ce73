"""Making the builder images: each once, parents first, what is up to date not at all."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

from buildrunner.builders.catalog import BUILDERS, ROOT_FILESYSTEM, builder_named
from buildrunner.builders.image_factory import ImageBuild, StoredImage
from buildrunner.builders.root_filesystem import debian_root
from buildrunner.builders.step_files import build_context, content_hash, read_step_files
from buildrunner.errors import EngineError, ImagePullError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from buildrunner.builders.catalog import BuilderImage
    from buildrunner.builders.host_settings import HostSettings
    from buildrunner.builders.image_factory import ImageFactory
    from buildrunner.builders.step_files import Files

LABEL_CONTENT = "buildrunner.content"
"""What an image was made from (`content_hash`): as long as that is the same, it is up to date."""

AT_ONCE = 3
"""Images that are made at the same time: unpacking keeps one core busy, downloads wait."""

# Debian release -> the newest API version that its docker command speaks. The first release that
# the engine still understands is taken: Docker 29 speaks nothing older than 1.44.
_SUITES = {"bookworm": (1, 41), "trixie": (1, 45)}


class Reporter(Protocol):
    """Is told how it goes. Called from several threads."""

    def started(self, name: str) -> None:
        """The image ``name`` is not up to date and is being made."""
        ...

    def moved(self, name: str, line: str) -> None:
        """A line of the build's output."""
        ...

    def finished(self, name: str, image: StoredImage, seconds: float, *, made: bool) -> None:
        """The image is there; ``made`` is False when it was up to date already."""
        ...


class SilentReporter:
    """A `Reporter` for who does not watch."""

    def started(self, name: str) -> None:
        """See `Reporter.started`."""

    def moved(self, name: str, line: str) -> None:
        """See `Reporter.moved`."""

    def finished(self, name: str, image: StoredImage, seconds: float, *, made: bool) -> None:
        """See `Reporter.finished`."""


def with_parents(names: Iterable[str]) -> tuple[BuilderImage, ...]:
    """The builder images of these names and all that they stand on, parents first.

    Args:
        names: names from the catalog; none means all.

    Raises:
        UsageError: there is no builder image of such a name.
    """
    ordered: dict[str, BuilderImage] = {}

    def add(name: str) -> None:
        builder = builder_named(name.removeprefix("buildrunner/").removesuffix(":latest"))
        if builder is None:
            known = ", ".join(builder.name for builder in BUILDERS)
            raise UsageError(f"there is no builder image {name!r}", hint=f"There are: {known}.")
        for parent in builder.parents.values():
            add(parent)
        ordered.setdefault(builder.name, builder)

    for name in list(names) or [builder.name for builder in BUILDERS]:
        add(name)
    return tuple(ordered.values())


def is_current(factory: ImageFactory, name: str) -> bool:
    """Whether the engine has the builder image of that name as it would be made now.

    What its parents are made of is not looked at: a few ms.
    """
    (builder,) = (one for one in with_parents([name]) if one.name == name)
    standing_on = {}
    for argument, parent in builder.parents.items():
        image = factory.find(builder_image(parent))
        if image is None:
            return False
        standing_on[argument] = image.id
    found = factory.find(builder.image)
    content = content_hash(
        read_step_files(builder.folder), {"target": builder.target, **standing_on}
    )
    return found is not None and found.labels.get(LABEL_CONTENT) == content


class Installer:
    """Makes builder images.

    Args:
        factory: the engine.
        settings: how this machine reaches package registries.
        environ: environment for ``mmdebstrap``.
        reporter: is told how it goes.
        force: names of builders to make anew even when they are up to date, without the engine's
            cache.
        clock: seconds, for durations.
    """

    def __init__(
        self,
        factory: ImageFactory,
        settings: HostSettings,
        environ: Mapping[str, str],
        reporter: Reporter,
        *,
        force: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._factory = factory
        self._settings = settings
        self._environ = environ
        self._reporter = reporter
        self._force = force
        self._clock = clock
        self._replaced: list[str] = []

    def install(self, builders: Sequence[BuilderImage], base: str = "") -> dict[str, StoredImage]:
        """Make what is missing or out of date.

        Args:
            builders: as `with_parents` orders them.
            base: image to stand on; empty for Debian's slim image, which is pulled or else made.

        Returns:
            Name -> image, of all ``builders``.

        Raises:
            EngineError: one could not be made; others that were under way are finished first.
        """
        root = self._root(base)
        done: dict[str, StoredImage] = {}
        waiting = list(builders)
        while waiting:
            ready = [b for b in waiting if all(p in done for p in b.parents.values())]
            waiting = [b for b in waiting if b not in ready]
            # Stages of one folder share layers: the first makes them, the others only name them.
            for wave in _one_of_each_folder(ready):
                done.update(self._install_wave(wave, root, dict(done)))
        # What stood on others goes first: an image that has children can't be removed.
        while self._replaced:
            self._factory.discard(self._replaced.pop())
        return done

    def _install_wave(
        self, wave: Sequence[BuilderImage], root: str, parents: Mapping[str, StoredImage]
    ) -> dict[str, StoredImage]:
        done: dict[str, StoredImage] = {}
        failures: list[BaseException] = []
        slots = threading.Semaphore(AT_ONCE)

        def work(builder: BuilderImage) -> None:
            with slots:
                try:
                    done[builder.name] = self._install_one(builder, root, parents)
                except BaseException as error:  # noqa: BLE001  (raised again by the caller)
                    failures.append(error)

        threads = [threading.Thread(target=work, args=(b,), daemon=True) for b in wave]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return done

    def _install_one(
        self, builder: BuilderImage, root: str, parents: Mapping[str, StoredImage]
    ) -> StoredImage:
        start = self._clock()
        forced = builder.name in self._force
        files = self._files(builder)
        standing_on = {arg: parents[parent].id for arg, parent in builder.parents.items()}
        if not standing_on:
            standing_on = {"BASE": self._identity(root)}
        content = content_hash(files, {"target": builder.target, **standing_on})
        found = self._factory.find(builder.image)
        if found and found.labels.get(LABEL_CONTENT) == content and not forced:
            self._reporter.finished(builder.name, found, self._clock() - start, made=False)
            return found
        self._reporter.started(builder.name)
        names = {arg: builder_image(parent) for arg, parent in builder.parents.items()}
        own = {a: v for a, v in self._settings.arguments.items() if a in builder.settings}
        image = self._factory.build(
            ImageBuild(
                image=builder.image,
                context=build_context(files),
                target=builder.target,
                arguments={**self._settings.proxies, **own, **(names or {"BASE": root})},
                labels={LABEL_CONTENT: content},
                use_cache=not forced,
            ),
            lambda line: self._reporter.moved(builder.name, line),
        )
        if found and LABEL_CONTENT in found.labels and found.id != image.id:
            self._replaced.append(found.id)
        self._reporter.finished(builder.name, image, self._clock() - start, made=True)
        return image

    def _files(self, builder: BuilderImage) -> Files:
        files = read_step_files(builder.folder)
        if not builder.parents:
            for number, certificate in enumerate(self._settings.certificates):
                data = f"{certificate}\n".encode()
                files[f"ca-certificates/host-{number}.crt"] = (0o644, data)
        return files

    def _identity(self, image: str) -> str:
        found = self._factory.find(image)
        return found.id if found else ""

    def _root(self, base: str) -> str:
        """The image that ``base`` stands on: there afterwards."""
        if base:
            if self._factory.find(base) is None:
                self._factory.pull(base)
            return base
        suite = self._suite()
        public, ours = f"debian:{suite}-slim", f"{ROOT_FILESYSTEM}:{suite}-slim"
        for image in (public, ours):
            if self._factory.find(image) is not None:
                return image
        try:
            self._factory.pull(public)
        except ImagePullError:
            self._make_root(ours, suite)
            return ours
        return public

    def _make_root(self, image: str, suite: str) -> None:
        name, start = image.partition(":")[0].rpartition("/")[2], self._clock()
        self._reporter.started(name)
        self._reporter.moved(name, f"{suite} from Debian's packages (no image can be pulled)")
        made = self._factory.import_root(image, debian_root(suite, self._environ), {})
        self._reporter.finished(name, made, self._clock() - start, made=True)

    def _suite(self) -> str:
        oldest = self._factory.oldest_api_version()
        major, _, minor = oldest.partition(".")
        for suite, newest_spoken in _SUITES.items():
            if newest_spoken >= (int(major), int(minor)):
                return suite
        raise EngineError(
            f"the engine speaks API {oldest} and newer, and no docker command of Debian does",
            hint="Name an image with a newer one: `buildrunner builders install --base IMAGE`.",
        )


def builder_image(name: str) -> str:
    """The image of the builder of that name."""
    builder = builder_named(name)
    if builder is None:
        raise EngineError(f"the catalog of builder images names {name!r}, which is not in it")
    return builder.image


def _one_of_each_folder(builders: Sequence[BuilderImage]) -> Iterator[list[BuilderImage]]:
    left = list(builders)
    while left:
        wave = list({builder.folder: builder for builder in reversed(left)}.values())[::-1]
        yield wave
        left = [builder for builder in left if builder not in wave]
