"""The nested sandbox: a build's own Docker engine, in a container of the host engine.

See docs/explanation/sandbox.md and ADR 0020.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType

import msgspec

from buildrunner.addresses import Egress
from buildrunner.containers import start_gate
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec, Mount
from buildrunner.engine.step_container import files_archive
from buildrunner.errors import ContainerStartError, EngineError, EngineUnavailable
from buildrunner.sandboxes.host import labelled_builds, remove_owned
from buildrunner.sandboxes.nested.container import MODES, PRIVILEGED_STEPS, HostFacts
from buildrunner.sandboxes.nested.daemon import ImageListing
from buildrunner.sandboxes.nested.engine import Running
from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.sandboxes.nested.host_pulls import delete_unused, is_nearly_full
from buildrunner.sandboxes.nested.layer_origins import Origins, PushMemory
from buildrunner.sandboxes.nested.machine import NestedMachine
from buildrunner.sandboxes.nested.place import NestedPlace, PlaceFacts
from buildrunner.sandboxes.nested.spare import NestedSpares
from buildrunner.sandboxes.nested.start import NestedStarter, write_whole
from buildrunner.sandboxes.protocol import isolates
from buildrunner.workspace.volume import EMPTY_IMAGE, ensure_empty_image

_AGAIN_S = 0.2
_TRIES = 5


class NestedSandbox:
    """Implements `Sandbox`.

    Args:
        machine: the engine to nest in. Closed with the sandbox.
    """

    name = "nested"

    def __init__(self, machine: NestedMachine) -> None:
        self._machine = machine
        self._host = machine.host
        self._daemons = machine.daemons
        self._cache = machine.cache
        self._folders = SandboxFolders(machine.choices.folder)
        self._labels = dict(machine.choices.labels)
        self._image = machine.image.obtain
        self._demanded = machine.choices.isolation
        self._mode = ""
        self._starter = NestedStarter(machine, self._folders)
        self._spares = NestedSpares(
            self._starter, self._folders, remove=self.remove, prepare=machine.prepare
        )

    def open(self, build_id: str, *, project: str = "", trusted: bool = True) -> NestedPlace:
        """See `Sandbox.open`. The first call on a machine takes a second more, to find the mode."""
        self.check_engine()
        state = self._daemons.find(self._folders.place(build_id))
        if state is not None and state.status == "created":
            self._daemons.remove(state.id)  # the process that made it died before starting it
            state = None
        memory = None
        if trusted:
            memory = PushMemory(os.path.join(self._folders.root, "pushed-layers"), project)
        # Images of other builds may be private: an untrusted build sees none, and neither does the
        # build of a project with its own logins.
        shares_images = trusted and self._machine.choices.is_common is None
        if state is None:
            known = memory.recall() if memory else None
            mode, start = self._new(build_id, known, shares_images=shares_images)
        else:
            mode, start = state.mode, partial(self._starter.found, build_id, state)
        if not trusted and not isolates(mode, self._demanded):
            self.remove(build_id)
            raise EngineError(
                f"the sandbox would be isolated by {mode} only; this server demands "
                f"{self._demanded} (--require-isolation) for builds of forks"
            )
        facts = PlaceFacts(
            build_id=build_id,
            place=self._folders.place(build_id),
            labels={**self._labels, LABEL_BUILD: build_id},
            privileged_steps=mode in PRIVILEGED_STEPS,
            found=state is not None,
            shares_images=shares_images,
            disk_bytes=self._machine.limits().disk_bytes,
        )
        place = NestedPlace(self._machine, self._folders, facts, start, memory)
        place.begin()
        return place

    def unenforced(self, egress: Egress) -> tuple[str, ...]:  # noqa: ARG002
        """See `Sandbox.unenforced`: each sandbox has the settings of its project."""
        return ()

    def isolation(self) -> str:
        """See `Sandbox.isolation`: known once any process has started a sandbox."""
        if not self._mode:
            with suppress(EngineError):
                self._noted_mode(self._daemons.facts())
        return self._mode

    def check_engine(self) -> None:
        """See `Sandbox.check_engine`."""
        info = self._host.info()
        if info.supports_nested:
            return
        why = "it runs without root"
        if not info.local:
            why = "it does not share this machine's files (a virtual machine, or a remote engine)"
        raise EngineError(
            f"no build can have an engine of its own on this engine: {why}",
            hint="Use --sandbox host, or an engine that runs as root on this machine.",
        )

    def keep_spares(self, count: int) -> None:
        """See `Sandbox.keep_spares`. The image of nested engines is made first if it is missing.

        Images of recent builds are cached first, so that the spares have them. Pulled
        images that no build uses are deleted.
        """
        self.check_engine()
        self._image()
        trouble = None
        try:
            if self._noted_mode(self._daemons.facts()):
                self._cache.update()
                self._delete_unused_images()
        except (EngineError, OSError) as error:
            trouble = error
        if count:
            self._keep_spares(count)
        elif self._demanded and not self._mode:
            self._find_mode()
        if trouble is not None:
            raise trouble

    def _delete_unused_images(self) -> None:
        data_root = self._host.info().data_root
        delete_unused(
            self._host,
            self._folders.pulled,
            self._cache.last_uses(),
            now=time.time(),
            is_full=lambda: is_nearly_full(data_root),
        )

    def _keep_spares(self, count: int) -> None:
        facts = self._daemons.facts()

        def start(place: str, labels: Mapping[str, str]) -> tuple[str, Running]:
            mode, begin = self._way(place, facts, labels)
            return mode, begin()

        self._spares.keep(count, facts, start)

    def _find_mode(self) -> None:
        """Start a sandbox without a build, the only way to determine the mode of this machine."""
        place = self._folders.new_spare()
        try:
            _, begin = self._way(place, self._daemons.facts())
            begin().engine.close()
        finally:
            self._folders.take(place, place)
            self.remove(place)

    def drop_spares(self) -> None:
        """See `Sandbox.drop_spares`."""
        self._spares.drop_all()

    def remove(self, build_id: str) -> None:
        """See `Sandbox.remove`.

        The last requests of a dead process may take effect after the first pass:
        if it died while it made a sandbox, a second pass follows.
        """
        state = self._daemons.find(self._folders.place(build_id))
        unfinished = state is None or state.status == "created"
        again = unfinished and os.path.isdir(self._folders.notes(build_id))
        for left in reversed(range(_TRIES)):
            try:
                self._remove(build_id)
                if not again:
                    return
                again = False
            except EngineError:
                if not left:
                    raise
            time.sleep(_AGAIN_S)

    def _remove(self, build_id: str) -> None:
        place = self._folders.place(build_id)
        self._starter.drop(place)
        for owner in {build_id, place}:
            remove_owned(self._host, owner)
        if self._folders.drop(build_id):
            self._remove_as_root(self._folders.notes(build_id))
            if problem := self._folders.drop(build_id):
                raise EngineError(f"what a step left on this machine can't be removed: {problem}")

    def _remove_as_root(self, folder: str) -> None:
        """Remove files of the machine's root, which steps leave in weaker sandboxes."""
        above, name = os.path.split(folder)
        spec = ContainerSpec(
            image=self._image(),
            entrypoint=("rm", "-rf", "--", f"/left/{name}"),
            mounts=(Mount(source=above, target="/left", bind=True),),
            network="none",
        )
        container = self._host.create_container(spec)
        try:
            self._host.start_container(container, attach=False)
            self._host.wait_container(container)
        finally:
            self._host.remove_container(container)

    def check(self) -> None:
        """See `Sandbox.check`."""
        self._host.ping()
        if self._machine.image.is_being_made:
            raise EngineUnavailable(
                "the image buildrunner/engine for nested sandboxes is being made, once on this "
                "machine: it takes 20 to 60 s"
            )

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._machine.close()

    def builds_left(self) -> tuple[str, ...]:
        """See `Sandbox.builds_left`.

        A place that belongs to no build and is no spare is returned as a build of that name.
        """
        labelled = labelled_builds(self._host, self._labels)
        # listed before the builds: one that is acquired in between is listed twice, not missed
        spares = self._folders.spares()
        builds = self._folders.owners()
        places = {builds.get(one, one) for one in labelled if one not in spares}
        return tuple(sorted({*places, *builds.values()}))

    # -- the mode of nested engines on this machine -----------------------------------------------

    def _new(
        self, build_id: str, pushed: Origins | None, *, shares_images: bool
    ) -> tuple[str, Callable[[], Running]]:
        """Return the mode of an engine, and a function that returns a spare or starts an engine.

        Args:
            build_id: the build.
            pushed: the origins of layers that its project knows; None for a build that shares
                nothing with others.
            shares_images: it starts with the images of other builds.
        """
        facts = self._daemons.facts()
        self._noted_mode(facts)
        spare = self._spares.take(build_id, facts) if shares_images else None
        if spare is not None:
            if pushed is not None:
                self._starter.tell(build_id, pushed, spare.running.state)
            return spare.mode, partial(_given, spare.running)
        mode, begin = self._way(build_id, facts, with_images=shares_images)

        def start() -> Running:
            running = begin()
            if pushed is not None:
                self._starter.tell(build_id, pushed, running.state)
            return running

        return mode, start

    def _way(
        self,
        place: str,
        facts: HostFacts,
        labels: Mapping[str, str] = MappingProxyType({}),
        *,
        with_images: bool = True,
    ) -> tuple[str, Callable[[], Running]]:
        """Return the mode that works here, and a function that starts an engine in it.

        The modes are tried once for each host engine and image.
        """
        host_images = self._daemons.begin_host_images() if with_images else None
        image = self._image()
        way = f"{facts.identity} {image}"
        mode = self._noted_mode(facts) if way in self._folders.modes() else ""
        if mode:
            start = partial(
                self._starter.start, place, facts, image, mode, labels, host_images=host_images
            )
            return mode, partial(_as_known, self._folders.modes_file, start)
        mode, running = self._tried(place, facts, image, labels, host_images)
        write_whole(self._folders.modes_file, msgspec.json.encode({way: mode}))
        return mode, lambda: running

    def _noted_mode(self, facts: HostFacts) -> str:
        """Return the mode that is known to work on this engine; empty if none was tried yet.

        The image cache gets this mode, too.
        """
        mode = self._folders.mode(facts.identity)
        if mode:
            self._cache.mode = self._mode = mode
        return mode

    def _tried(
        self,
        place: str,
        facts: HostFacts,
        image: str,
        labels: Mapping[str, str],
        host_images: ImageListing | None,
    ) -> tuple[str, Running]:
        refusals = []
        for mode in MODES:
            self._cache.mode = mode
            try:
                running = self._starter.start(
                    place, facts, image, mode, labels, host_images=host_images
                )
                _try_step(running, privileged=mode in PRIVILEGED_STEPS)
            except EngineError as error:
                refusals.append(f"{mode}: {error}")
                self.remove(place)
            else:
                self._mode = mode
                return mode, running
        raise EngineError(
            f"no engine can run in a container of this engine ({'; '.join(refusals)})",
            hint="Its kernel must have user namespaces and ID-mapped mounts (Linux 5.19 and "
            "later), or it must run privileged containers. Or use --sandbox host.",
        )


def _try_step(running: Running, *, privileged: bool) -> None:
    """Start a container in a nested engine: a running engine alone proves nothing.

    Its program is the start gate, which ends at once without an input.

    Raises:
        EngineError: this machine does not let it run; the nested engine's connections are closed.
    """
    engine = running.engine
    try:
        if (program := start_gate.gate_program(engine.info().architecture)) is not None:
            ensure_empty_image(engine)
            spec = ContainerSpec(
                image=EMPTY_IMAGE,
                entrypoint=(start_gate.PATH,),
                privileged=privileged,
                network="none",
            )
            container = engine.create_container(spec)
            try:
                archive = files_archive({start_gate.PATH: program}, mode=0o755)
                engine.put_archive(container, "/", [archive])
                engine.start_container(container, attach=False)
            finally:
                engine.remove_container(container)
    except EngineError:
        engine.close()
        raise


def _given(running: Running) -> Running:
    return running


def _as_known(path: str, start: Callable[[], Running]) -> Running:
    try:
        return start()
    except ContainerStartError:  # the machine may have changed: the next build tries again
        with suppress(OSError):
            os.unlink(path)
        raise
