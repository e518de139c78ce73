"""Puts a Go module into a repository with the layout that ``GOPROXY`` reads.

The go command can't publish. The layout is three files: ``.info``, ``.mod`` and ``.zip``.

Source: golang.org/x/mod, packages zip (which files, under which names) and sumdb/dirhash (h1).
"""

import hashlib
import io
import json
import os
import re
import stat
import time
import zipfile
from collections.abc import Iterator

from .repository import Refused, Repository

_VERSION = re.compile(r"v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+incompatible)?")
_VCS_FOLDERS = frozenset({".bzr", ".git", ".hg", ".svn"})
_ZIP_LIMIT = 500 << 20
_SMALL_LIMIT = 16 << 20
_PUNCTUATION = frozenset("!#$%&()+,-.=@[]^_{}~ /")
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def publish(request: dict[str, list[str]], repository: Repository) -> Iterator[tuple[str, str]]:
    """Publish the module of the request; yields the zip's address and the h1 sum in hex."""
    (folder,) = request["paths"]
    module, version = str(request["name"]), str(request["version"])
    if not _VERSION.fullmatch(version):
        raise Refused(f"{version} is no version of a Go module: it must be like v1.2.3")
    files = module_files(folder)
    go_mod = files.get("go.mod")
    if go_mod is None:
        raise Refused(f"there is no go.mod in {folder}")
    named = _module_in(go_mod)
    if named != module:
        raise Refused(f"go.mod in {folder} is that of module {named}, not of {module}")
    info = {"Version": version, "Time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    stem = f"{_escaped(module)}/@v/{_escaped(version)}"
    uri = repository.put(f"{stem}.zip", module_zip(module, version, files))
    repository.put(f"{stem}.mod", go_mod)
    # last: from here on, clients find the version
    repository.put(f"{stem}.info", json.dumps(info).encode())
    yield uri, h1(module, version, files).hex()


def module_files(folder: str) -> dict[str, bytes]:
    """Return the module's files in ``folder``, by path: no links, no nested modules, no vendor."""
    found: dict[str, bytes] = {}
    folded: dict[str, str] = {}
    total = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _VCS_FOLDERS
            and not os.path.lexists(os.path.join(parent, name, "go.mod"))
        )
        for name in sorted(names):
            full = os.path.join(parent, name)
            path = os.path.relpath(full, folder)
            if not stat.S_ISREG(os.lstat(full).st_mode) or _is_vendored(path):
                continue
            _check_name(path)
            if (other := folded.setdefault(path.lower(), path)) != path:
                raise Refused(f"{other} and {path} differ in case only, which Go does not allow")
            with open(full, "rb") as file:
                found[path] = file.read()
            total += len(found[path])
            if total > _ZIP_LIMIT:
                raise Refused(f"the files of the module in {folder} are larger than 500 MiB")
            if path in ("go.mod", "LICENSE") and len(found[path]) > _SMALL_LIMIT:
                raise Refused(f"{path} is larger than 16 MiB, which Go does not allow")
    return found


def module_zip(module: str, version: str, files: dict[str, bytes]) -> bytes:
    """Return the module's archive: the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            entry = zipfile.ZipInfo(f"{module}@{version}/{path}", _NO_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[path])
    return buffer.getvalue()


def h1(module: str, version: str, files: dict[str, bytes]) -> bytes:
    """Return the sum of go.sum, without its ``h1:`` and base64."""
    names = sorted((f"{module}@{version}/{path}", path) for path in files)
    lines = (f"{hashlib.sha256(files[path]).hexdigest()}  {name}\n" for name, path in names)
    return hashlib.sha256("".join(lines).encode()).digest()


def _is_vendored(path: str) -> bool:
    """Source: zip.isVendoredPackage, its oversight for inner folders included."""
    if path.startswith("vendor/"):
        return "/" in path[len("vendor/") :]
    return "/vendor/" in path and "/" in path[len("/vendor/") :]


def _check_name(path: str) -> None:
    if any(not (char.isalnum() or char in _PUNCTUATION) for char in path):
        raise Refused(f"a module can't hold a file of the name {path!r}")


def _module_in(go_mod: bytes) -> str:
    for line in go_mod.decode(errors="replace").splitlines():
        words = line.split("//")[0].split()
        if len(words) == 2 and words[0] == "module":
            return words[1].strip('"`')
    return "no name"


def _escaped(text: str) -> str:
    """Return the path with capitals as ``!x``: some file systems ignore case."""
    return re.sub("[A-Z]", lambda found: f"!{found[0].lower()}", text)
