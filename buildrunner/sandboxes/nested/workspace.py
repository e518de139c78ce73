"""``/workspace`` of a build in a nested sandbox: a volume of the host engine.

It is filled on the host, by the same code as elsewhere, while it is already mounted at
``/workspace`` of the nested engine's own file system. If the source is a folder that becomes a
layer, the layers are mounted there, too, once they are complete: above the folder, what else was
written to the volume (dependencies). Steps get the mounted folder, so that
``docker run -v /workspace:/workspace`` in a step works as on the hosted service.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from buildrunner.containers.forwarding import Answer, ForwardingEngine
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import EngineError
from buildrunner.workspace.overlay import OverlayImpossible
from buildrunner.workspace.protocol import WORKSPACE, Preparation, PreparedWorkspace, Workspace
from buildrunner.workspace.volume import volume_name


class NestedWorkspace:
    """Implements `Workspace`.

    Args:
        source: fills it.
        volume: the host engine, for the source.
        place: the sandbox's name, from which its volumes are named.
        labels: labels of resources on the host engine.
        on_filled: called with the build's cancel event, once the files are complete.
    """

    def __init__(
        self,
        source: Workspace,
        volume: MountedVolume,
        place: str,
        labels: Mapping[str, str],
        *,
        on_filled: Callable[[threading.Event], None],
    ) -> None:
        self._source = source
        self._volume = volume
        self._place = place
        self._labels = dict(labels)
        self._on_filled = on_filled

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`. The sandbox's own volume is filled, from outside."""
        prepared = self._source.prepare(
            replace(
                wanted,
                engine=self._volume,
                build_id=self._place,
                labels={**wanted.labels, **self._labels},
            )
        )
        self._volume.attach_layers()
        self._on_filled(wanted.cancel)
        return replace(prepared, volume=WORKSPACE, bind=True)

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`."""
        return self._source.changed_on_host()

    def release(self) -> None:
        """See `Workspace.release`: the volume is removed with the sandbox."""
        self._volume.keep()
        self._source.release()


class MountedVolume(ForwardingEngine):
    """The host engine, for filling a workspace whose volume the sandbox has mounted.

    Args:
        host: the host engine.
        place: see `NestedWorkspace`.
        process: waits until the sandbox runs; returns the id of a process in it.
        clear: empties the mounted volume.
        used: a dead process may have begun to fill it.
        is_mounted_late: returns whether the volume is a separate file system, mounted with the
            sandbox; waits for the sandbox if that is unknown.
    """

    def __init__(
        self,
        host: ContainerEngine,
        place: str,
        process: Callable[[], int],
        clear: Callable[[], object],
        used: bool,
        is_mounted_late: Callable[[], bool] = lambda: False,
    ) -> None:
        self._host = host
        self._name = volume_name(place)
        self._process = process
        self._clear = clear
        self._used = used
        self._is_mounted_late = is_mounted_late
        self._layers: Mapping[str, str] | None = None
        self._mount_point = ""
        self._kept = False

    def _ask(self, question: Callable[[ContainerEngine], Answer]) -> Answer:
        return question(self._host)

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`. Layers are mounted later, on top."""
        if name != self._name:
            return self._host.create_volume(name, labels, options=options)
        if self._is_mounted_late() and options:
            raise OverlayImpossible("the sandbox has a file system of its own")
        if self._used:
            self._clear()
            self._used = False
        self._layers = options
        self._mount_point = self._host.create_volume(name, labels)
        return self._mount_point

    def remove_volume(self, name: str) -> None:
        """See `Resources.remove_volume`: a mounted one is only emptied."""
        if name != self._name:
            self._host.remove_volume(name)
        elif not self._kept:
            self._layers = None
            self._clear()

    def keep(self) -> None:
        """Stop emptying the volume, which will be removed soon."""
        self._kept = True

    def attach_layers(self) -> None:
        """Mount the requested layers over the volume, in the sandbox.

        Raises:
            EngineError: the kernel refused.
        """
        if self._layers is None:
            return
        from buildrunner.workspace import kernel_mounts

        process = self._process()
        options = dict(one.split("=", 1) for one in self._layers["o"].split(","))
        views: list[int] = []
        try:
            inside = kernel_mounts.namespace_process(process, "user")
            shifts = inside if inside != process else 0
            options.update(_open_layers(self._mount_point, shifts, views))
            mount = kernel_mounts.mount_unattached(
                self._layers["type"], options, owner=kernel_mounts.root_of(inside)
            )
            try:
                kernel_mounts.attach_in_container(mount, process, WORKSPACE)
            finally:
                os.close(mount)
        except OSError as error:
            raise EngineError(f"the workspace can't be mounted in the sandbox: {error}") from error
        finally:
            for view in views:
                os.close(view)


def _open_layers(mount_point: str, process: int, views: list[int]) -> dict[str, str]:
    """Return short paths of the layers of an `OverlayVolume` (the kernel takes 255 characters).

    Args:
        mount_point: path of the volume's own files, beside its layers.
        process: a process in a user namespace whose shifted ids the layers get; 0 for no shift.
        views: collects the descriptors that must stay open until the layers are mounted.
    """
    from buildrunner.workspace import kernel_mounts

    volume, files = os.path.split(mount_point)
    if process:
        source = os.readlink(f"{volume}/layers/source")
        status = os.stat(source)
        owner = (status.st_uid, status.st_gid)
        views.append(kernel_mounts.clone_shifted(volume, process))
        views.append(
            kernel_mounts.clone_shifted(source, process, owner=None if owner == (0, 0) else owner)
        )
    else:
        views.append(os.open(volume, os.O_PATH | os.O_CLOEXEC))
        views.append(os.open(f"{volume}/layers/lower", os.O_PATH | os.O_CLOEXEC))
    opened, lower = (f"/proc/{os.getpid()}/fd/{view}" for view in views)
    return {
        "lowerdir": f"{opened}/{files}:{opened}/layers/hidden:{lower}",
        "upperdir": f"{opened}/layers/upper",
        "workdir": f"{opened}/layers/work",
    }
