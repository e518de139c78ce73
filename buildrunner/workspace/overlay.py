"""A workspace that is the source folder itself below other layers: no files are copied.

``/workspace`` is a volume of Docker's local driver with overlay options. From the top:

* ``upper``: the files that the steps write;
* ``hidden``: a whiteout for each path that is not part of the source;
* ``lower``: a link to the source folder, or to a view of it in which root owns everything;
  ``source`` is a link to the folder in any case.

The layers lie in the volume's own folder beside the mount point (``volumes/NAME/layers`` beside
``volumes/NAME/_data``), so that the engine removes them with the volume.

The link is needed because a folder's name may contain ``:`` and ``,``, which separate options.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping

from buildrunner.containers.protocol import ContainerEngine, EngineInfo
from buildrunner.errors import BuildrunnerError
from buildrunner.workspace.shared_files import (
    FilesNotShared,
    check_engine,
    check_volume,
    folder_apart,
    volume_folder,
)

# redirect_dir lets a step rename a folder of the source (else: "invalid cross-device link"). With
# index=on, hard links of the source would stay together, but then the kernel refuses to mount the
# layers for the next step ("device or resource busy") while another mount namespace still holds
# the last step's mount, which it may for some milliseconds.
_OPTIONS = {"redirect_dir": "on", "index": "off"}
_WHITEOUT_DEVICE = os.makedev(0, 0)
_ROOT = (0, 0)


class OverlayImpossible(BuildrunnerError):
    """Raised if an exact overlay is not possible here; the message says why."""


class OverlayVolume:
    """One overlay volume, from `create` to `remove`.

    Attributes:
        name: name of the volume.
    """

    def __init__(self, engine: ContainerEngine, name: str, labels: Mapping[str, str]) -> None:
        self.name = name
        self._engine = engine
        self._labels = labels
        self._made = False
        self._view = -1  # descriptor of the view in which root owns the source

    def create(
        self,
        folder: str,
        *,
        hidden: Iterable[str],
        owners: frozenset[tuple[int, int]],
    ) -> None:
        """Create the volume and its layers, and mount them once as a check.

        Args:
            folder: absolute path of the source.
            hidden: paths in it to hide, each with all below it.
            owners: all (uid, gid) of the paths that are not hidden.

        Raises:
            OverlayImpossible: the caller must use a copy; no files are left behind.
            EngineError: the engine refused.
        """
        try:
            self._create(folder, tuple(hidden), owners)
        except OSError as error:
            self.remove()
            raise OverlayImpossible(f"the layers can't be made ({error})") from error
        except FilesNotShared as error:
            self.remove()
            raise OverlayImpossible(str(error)) from error
        except OverlayImpossible:
            self.remove()
            raise

    def _create(
        self, folder: str, hidden: tuple[str, ...], owners: frozenset[tuple[int, int]]
    ) -> None:
        info = self._engine.info()
        check_engine(info)
        if not info.layered_volumes:
            raise OverlayImpossible(f"{info.name} copies nothing out of volumes with layers")
        _check_folder(folder, info)
        parent = volume_folder(info, self.name)
        layers = os.path.join(parent, "layers")
        options = {
            "lowerdir": f"{layers}/hidden:{layers}/lower",
            "upperdir": f"{layers}/upper",
            "workdir": f"{layers}/work",
            **_OPTIONS,
        }
        self._made = True
        mount_point = self._engine.create_volume(
            self.name,
            self._labels,
            options={
                "type": "overlay",
                "device": "overlay",
                "o": ",".join(f"{key}={value}" for key, value in options.items()),
            },
        )
        check_volume(mount_point, parent)
        folder_apart(parent, "layers")
        for layer in ("upper", "work", "hidden", "trial", "trial/upper", "trial/work"):
            os.mkdir(f"{layers}/{layer}", 0o755)
        os.chmod(f"{layers}/upper", 0o755)  # whatever the umask  # noqa: S103
        os.symlink(self._lower(folder, owners), f"{layers}/lower")
        os.symlink(folder, f"{layers}/source")
        _hide(folder, f"{layers}/hidden", hidden)
        _try_mount(folder, layers, options, hidden)

    def _lower(self, folder: str, owners: frozenset[tuple[int, int]]) -> str:
        """Return the target of ``lower``: the folder, or a view of it that root owns."""
        if owners <= {_ROOT}:
            return folder
        if len(owners) > 1:
            raise OverlayImpossible("the source has files of several owners")
        from buildrunner.workspace import kernel_mounts

        ((uid, gid),) = owners
        self._view = kernel_mounts.clone_as_root(folder, uid, gid)
        return f"/proc/{os.getpid()}/fd/{self._view}"

    def remove(self) -> None:
        """Remove the volume with all files of the steps. Idempotent."""
        try:
            if self._made:
                self._engine.remove_volume(self.name)
                self._made = False
        finally:
            if self._view >= 0:
                os.close(self._view)
                self._view = -1


def _check_folder(folder: str, info: EngineInfo) -> None:
    """Raise an error for a folder that would look different as a layer."""
    real = os.path.realpath(folder)
    data_root = os.path.realpath(info.data_root)
    if os.path.commonpath([real, data_root]) in (real, data_root):
        raise OverlayImpossible("the source and the engine's own files lie in one another")
    inside = real.rstrip("/") + "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            mount_point = _unescaped(line.split(" ", 5)[4])
            if mount_point.startswith(inside):
                raise OverlayImpossible(f"{mount_point} is a mount of its own")


def _unescaped(field: str) -> str:
    """Return a field of mountinfo, where space, tab, newline and backslash are octal escapes."""
    for code in ("040", "011", "012", "134"):
        field = field.replace(f"\\{code}", chr(int(code, 8)))
    return field


def _hide(folder: str, layer: str, paths: Iterable[str]) -> None:
    """Fill ``layer`` with a whiteout for each path.

    A folder with a whiteout has its own mode and times, not those of the folder below it:
    they are copied.
    """
    whiteout = ""
    parents: list[str] = []
    made = {""}
    for path in paths:
        parent = os.path.dirname(path)
        for folder_path in _missing_parents(parent, made):
            os.mkdir(f"{layer}/{folder_path}")
            made.add(folder_path)
            parents.append(folder_path)
        whiteout = white_out(f"{layer}/{path}", whiteout)
    for folder_path in reversed(parents):
        status = os.stat(f"{folder}/{folder_path}")
        os.chmod(f"{layer}/{folder_path}", stat.S_IMODE(status.st_mode))
        os.utime(f"{layer}/{folder_path}", ns=(status.st_atime_ns, status.st_mtime_ns))


def white_out(path: str, other: str) -> str:
    """Create a whiteout at ``path``, if possible as a hard link to ``other``, which is faster.

    Returns:
        The whiteout to which the next one can link.
    """
    if other:
        try:
            os.link(other, path)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
        else:
            return other
    os.mknod(path, stat.S_IFCHR, _WHITEOUT_DEVICE)
    return path


def _missing_parents(path: str, made: set[str]) -> list[str]:
    """Return ``path`` and those folders above it that do not exist yet, outermost first."""
    missing: list[str] = []
    while path not in made:
        missing.append(path)
        path = os.path.dirname(path)
    missing.reverse()
    return missing


def _try_mount(folder: str, layers: str, options: Mapping[str, str], hidden: Iterable[str]) -> None:
    """Mount the layers for a moment, with a temporary upper layer, and check the root.

    Raises:
        OSError: the kernel or the file system does not support it.
        OverlayImpossible: the mount does not show the source.
    """
    from buildrunner.workspace import kernel_mounts

    trial = f"{layers}/trial"
    root = kernel_mounts.mount_unattached(
        "overlay",
        {**options, "upperdir": f"{trial}/upper", "workdir": f"{trial}/work"},
    )
    try:
        seen = set(os.listdir(f"/proc/self/fd/{root}"))  # the descriptor itself can't be read
    finally:
        os.close(root)
    if seen != set(os.listdir(folder)).difference(hidden):
        raise OverlayImpossible("the layers don't show what the folder holds")
