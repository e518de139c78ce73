"""Makes the builder images, parents first. Images that are up to date are left alone."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Protocol

from buildrunner.builders.catalog import BUILDERS, ROOT_FILESYSTEM, BuilderImage, builder_named
from buildrunner.builders.host_settings import HostSettings
from buildrunner.builders.image_contents import (
    HOST_SDK_IMAGE,
    Files,
    build_context,
    content_hash,
    debian_root,
    find_sdk,
    read_step_files,
    sdk_archive,
    sdk_version,
)
from buildrunner.builders.image_factory import ImageBuild, ImageFactory, StoredImage
from buildrunner.errors import EngineError, ImagePullError, UsageError

LABEL_CONTENT = "buildrunner.content"
"""Label with the `content_hash` of an image. The image is up to date while the hash is the same."""

AT_ONCE = 4
"""How many images are made concurrently: unpacking keeps one core busy while downloads wait."""

# Debian release -> the newest API version of its docker command. The first release that
# the engine still supports is used: Docker 29 supports nothing older than 1.44.
_SUITES = {"bookworm": (1, 41), "trixie": (1, 45)}

_logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Receives the progress of an installation. Called from several threads."""

    def started(self, name: str) -> None:
        """The image ``name`` is not up to date and is being made."""
        ...

    def moved(self, name: str, line: str) -> None:
        """Called with a line of the build's output."""
        ...

    def finished(self, name: str, image: StoredImage, seconds: float, *, made: bool) -> None:
        """The image exists; ``made`` is False if it was up to date already."""
        ...

    def failed(self, name: str, error: EngineError) -> None:
        """The image could not be made, or failed its test."""
        ...


class LoggedInstallation:
    """A `Reporter` that writes to the log of this process."""

    def started(self, name: str) -> None:
        """See `Reporter.started`."""
        _logger.info("making the image buildrunner/%s", name)

    def moved(self, name: str, line: str) -> None:
        """See `Reporter.moved`: lines of a build's output are not logged."""

    def finished(self, name: str, image: StoredImage, seconds: float, *, made: bool) -> None:
        """See `Reporter.finished`."""
        if made:
            size_mb = image.size_bytes / 1e6
            _logger.info("made the image buildrunner/%s in %.0f s, %.0f MB", name, seconds, size_mb)

    def failed(self, name: str, error: EngineError) -> None:
        """See `Reporter.failed`."""
        _logger.warning("the image buildrunner/%s could not be made: %s", name, error)


def with_parents(names: Iterable[str]) -> tuple[BuilderImage, ...]:
    """Return the builder images of these names and all their parents, parents first.

    Args:
        names: names from the catalog; none means the common ones.

    Raises:
        UsageError: no builder image has such a name.
    """
    ordered: dict[str, BuilderImage] = {}

    def add(name: str) -> None:
        builder = builder_named(name.removeprefix("buildrunner/").removesuffix(":latest"))
        if builder is None:
            known = ", ".join(builder.name for builder in BUILDERS)
            raise UsageError(f"unknown builder image {name!r}", hint=f"The images are: {known}.")
        for parent in builder.parents.values():
            add(parent)
        ordered.setdefault(builder.name, builder)

    for name in list(names) or [builder.name for builder in BUILDERS if builder.common]:
        add(name)
    return tuple(ordered.values())


def current_image(factory: ImageFactory, name: str) -> StoredImage | None:
    """Return the engine's builder image of that name if it is up to date, else None.

    The contents of its parents are not compared, so this takes a few ms.
    """
    (builder,) = (one for one in with_parents([name]) if one.name == name)
    standing_on = {}
    for argument, parent in builder.parents.items():
        image = factory.find(builder_image(parent))
        if image is None:
            return None
        standing_on[argument] = _identity(image)
    found = factory.find(builder.image)
    content = content_hash(
        read_step_files(builder.folder), {"target": builder.target, **standing_on}
    )
    return found if found and found.labels.get(LABEL_CONTENT) == content else None


class Installer:
    """Makes and tests builder images.

    Args:
        factory: the engine.
        settings: proxies, mirrors and certificates of this machine, and build arguments.
        environ: environment for programs that run here.
        reporter: receives the progress.
        force: images to make even if they are up to date.
        use_cache: whether forced images may reuse layers that were built before.
        public_names: builder -> further names for its image, unless the engine has such an image.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        factory: ImageFactory,
        settings: HostSettings,
        environ: Mapping[str, str],
        reporter: Reporter,
        *,
        force: Collection[str] = (),
        use_cache: bool = False,
        public_names: Mapping[str, Sequence[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._factory = factory
        self._settings = settings
        self._environ = environ
        self._reporter = reporter
        self._force = frozenset(force)
        self._use_cache = use_cache
        self._public_names = public_names or {}
        self._clock = clock
        self._replaced: list[str] = []
        self._host_sdk = threading.Lock()

    def install(self, builders: Sequence[BuilderImage], base: str = "") -> dict[str, StoredImage]:
        """Make the images that are missing or out of date, several at a time, and test each.

        If an image can't be made, its children are skipped; all others are made.

        Args:
            builders: parents among them, as `with_parents` gives them.
            base: the image that the lowest one starts from; empty for a root file system that fits.

        Returns:
            The image of each builder's name.

        Raises:
            EngineError: names every image that could not be made.
        """
        root = self._root(base)
        done: dict[str, StoredImage] = {}
        failed: dict[str, EngineError] = {}
        order = _order(builders)
        waited_for = _dependents(order)
        sorter = TopologicalSorter(order)
        sorter.prepare()
        named = {builder.name: builder for builder in builders}
        waiting: list[str] = []
        results: queue.SimpleQueue[tuple[str, StoredImage | BaseException]] = queue.SimpleQueue()
        running = 0
        while sorter.is_active():
            waiting += sorter.get_ready()
            waiting.sort(key=lambda name: -waited_for[name])
            while waiting and running < AT_ONCE:
                builder = named[waiting.pop(0)]
                running += 1
                if missing := [p for p in builder.parents.values() if p in failed]:
                    results.put((builder.name, EngineError(f"it needs {' and '.join(missing)}")))
                    continue
                arguments = (builder, root, dict(done), results)
                threading.Thread(target=self._work, args=arguments, daemon=True).start()
            name, result = results.get()
            running -= 1
            sorter.done(name)
            if isinstance(result, StoredImage):
                done[name] = result
            elif isinstance(result, EngineError):
                failed[name] = result
                self._reporter.failed(name, result)
            else:
                raise result
        # Children first: an image that has children can't be removed.
        while self._replaced:
            self._factory.discard(self._replaced.pop())
        if self._factory.find(HOST_SDK_IMAGE) is not None:
            self._factory.discard(HOST_SDK_IMAGE)
        if failed:
            raise _all_in_one(failed)
        return done

    def _work(
        self,
        builder: BuilderImage,
        root: str,
        parents: Mapping[str, StoredImage],
        results: queue.SimpleQueue[tuple[str, StoredImage | BaseException]],
    ) -> None:
        try:
            results.put((builder.name, self._install_one(builder, root, parents)))
        except BaseException as error:  # noqa: BLE001  (raised again by the caller)
            results.put((builder.name, error))

    def _install_one(
        self, builder: BuilderImage, root: str, parents: Mapping[str, StoredImage]
    ) -> StoredImage:
        start = self._clock()
        forced = builder.name in self._force
        files = self._files(builder)
        inputs = {arg: _identity(parents[parent]) for arg, parent in builder.parents.items()}
        if not inputs:
            base = self._factory.find(root)
            inputs = {"BASE": _identity(base) if base else ""}
        sdk = self._sdk(builder)
        if sdk:
            inputs["SDK"] = sdk_version(sdk)
        content = content_hash(files, {"target": builder.target, **inputs})
        found = self._factory.find(builder.image)
        if found and found.labels.get(LABEL_CONTENT) == content and not forced:
            self._give_public_names(builder)
            self._reporter.finished(builder.name, found, self._clock() - start, made=False)
            return found
        self._reporter.started(builder.name)
        names = {arg: builder_image(parent) for arg, parent in builder.parents.items()}
        if sdk:
            self._import_sdk(builder, sdk)
            names["SDK"] = HOST_SDK_IMAGE
        taken = {*builder.settings, *builder.arguments}
        own = {a: v for a, v in self._settings.arguments.items() if a in taken}
        image = self._factory.build(
            ImageBuild(
                image=builder.image,
                context=build_context(files),
                target=builder.target,
                arguments={**self._settings.proxies, **own, **(names or {"BASE": root})},
                labels={LABEL_CONTENT: content},
                use_cache=self._use_cache or not forced,
            ),
            lambda line: self._reporter.moved(builder.name, line),
        )
        self._test(builder)
        if found and LABEL_CONTENT in found.labels and found.id != image.id:
            self._replaced.append(found.id)
        self._give_public_names(builder)
        self._reporter.finished(builder.name, image, self._clock() - start, made=True)
        return image

    def _test(self, builder: BuilderImage) -> None:
        """Run the image's test. An image that fails is removed.

        Raises:
            EngineError: the test failed.
        """
        code, output = self._factory.run(builder.image, builder.test_program, builder.test)
        if code == 0:
            return
        self._factory.discard(builder.image)
        command = " ".join([builder.test_program or "(its entrypoint)", *builder.test])
        lines = output.strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        raise EngineError(
            f"the image {builder.image} was made, but its test `{command}` ended with exit code "
            f"{code}{said}"
        )

    def _give_public_names(self, builder: BuilderImage) -> None:
        """Tag the image as the public ones that it serves, for the FROM lines of Dockerfiles.

        A real public image on the engine keeps its name.
        """
        for public in (*builder.serves, *self._public_names.get(builder.name, ())):
            found = self._factory.find(public)
            if found is None or LABEL_CONTENT in found.labels:
                self._factory.tag(builder.image, public)

    def _sdk(self, builder: BuilderImage) -> str:
        """Return the folder of this machine's SDK if the image is to hold it; otherwise empty."""
        if not builder.host_sdk or "GCLOUD_URL" in self._settings.arguments:
            return ""
        return find_sdk(self._environ)

    def _import_sdk(self, builder: BuilderImage, sdk: str) -> None:
        with self._host_sdk:
            if self._factory.find(HOST_SDK_IMAGE) is None:
                note = f"note: Google Cloud SDK {sdk_version(sdk)} from {sdk}"
                self._reporter.moved(builder.name, note)
                parent = builder_image(builder.parents["GIT"])
                self._factory.add_files(HOST_SDK_IMAGE, parent, sdk_archive(sdk))

    def _files(self, builder: BuilderImage) -> Files:
        files = read_step_files(builder.folder)
        if not builder.parents:
            for number, certificate in enumerate(self._settings.certificates):
                data = f"{certificate}\n".encode()
                files[f"ca-certificates/host-{number}.crt"] = data
        return files

    def _root(self, base: str) -> str:
        """Return the image that the lowest builder image starts from. The engine has it afterwards.

        Args:
            base: see `install`.
        """
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
        for suite, newest_api in _SUITES.items():
            if newest_api >= (int(major), int(minor)):
                return suite
        raise EngineError(
            f"the engine speaks API {oldest} and newer, and no docker command of Debian does",
            hint="Name an image with a newer one: `buildrunner builders install --base IMAGE`.",
        )


def _identity(image: StoredImage) -> str:
    """Return a text that differs for images of different content.

    The image's id is no substitute: the same image has another id in another kind of image store.
    """
    return " ".join((image.labels.get(LABEL_CONTENT, ""), *image.layers))


def builder_image(name: str) -> str:
    """Return the image of the builder of that name."""
    builder = builder_named(name)
    if builder is None:
        raise EngineError(f"the catalog of builder images names {name!r}, which is not in it")
    return builder.image


def _order(builders: Sequence[BuilderImage]) -> dict[str, set[str]]:
    """Return the images that each image waits for: parents, and the previous one of its folder.

    Stages of one folder share layers: the first makes them, the others only name them.
    """
    order: dict[str, set[str]] = {}
    last: dict[str, str] = {}
    for builder in builders:
        order[builder.name] = set(builder.parents.values())
        if builder.folder in last:
            order[builder.name].add(last[builder.folder])
        last[builder.folder] = builder.name
    return order


def _dependents(order: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the number of images that depend on each image."""
    count = dict.fromkeys(order, 0)
    for name in order:
        needed, new = set[str](), {name}
        while new:
            new = {parent for one in new for parent in order[one]} - needed
            needed |= new
        for parent in needed:
            count[parent] += 1
    return count


def _all_in_one(failed: Mapping[str, EngineError]) -> EngineError:
    """Return one error for all images that could not be made. Each was reported already."""
    if len(failed) == 1:
        (error,) = failed.values()
        return error
    return EngineError(f"{len(failed)} builder images could not be made: {', '.join(failed)}")
