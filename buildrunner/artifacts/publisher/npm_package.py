"""Puts a packed npm package into a registry: one document with the manifest and the tarball.

Of ``publishConfig`` only ``tag`` and ``access`` count. npm itself takes every option from it, a
proxy among them, which would get the login.

Source: libnpmpublish, which is what ``npm publish`` sends.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from .repository import Refused, Repository

_NAME = re.compile(r"(@[\w~!*'()-][\w.~!*'()-]*/)?[\w~!*'()-][\w.~!*'()-]*", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", re.ASCII)
_RANGE = re.compile(r"[\^~<>=v\s]*(\d+|[xX*])(\.(\d+|[xX*]))*\s*")
_COUNTED = ("access", "registry", "tag")  # no note for "registry", which users set for npm


def publish(request: dict[str, Any], repository: Repository) -> Iterator[tuple[str, str]]:
    """Publish the packed package of the request; yields its address and SHA-256."""
    (path,) = request["paths"]
    manifest = request["manifest"]
    with open(path, "rb") as file:
        content = file.read()
    config = manifest.get("publishConfig")
    ignored = sorted(set(config) - set(_COUNTED)) if isinstance(config, dict) else []
    if ignored:
        repository.say(f"publishConfig: {', '.join(ignored)} of package.json has no effect")
    body = json.dumps(document(manifest, content, f"{repository.url}/"), ensure_ascii=False)
    name, version = manifest["name"], manifest["version"]
    address = f"{repository.url}/{quote(name, safe='@').replace('%2F', '%2f')}"
    repository.send(address, body.encode(), "application/json", shown=f"{name}@{version}")
    # the name that the registry will give it
    tarball = f"{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    yield repository.address(tarball), hashlib.sha256(content).hexdigest()


def document(manifest: dict[str, Any], content: bytes, registry: str) -> dict[str, Any]:
    """Return the document that a registry gets for a package."""
    name, version = manifest.get("name"), manifest.get("version")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused(f"{name!r} is no name of an npm package")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise Refused(f"{version!r} is no version of an npm package")
    if manifest.get("private"):
        raise Refused(f'{name} is marked as private: remove "private" from its package.json')
    config = manifest.get("publishConfig")
    config = config if isinstance(config, dict) else {}
    access = config.get("access")
    if access not in (None, "public", "restricted"):
        raise Refused(f"publishConfig.access is {access!r}: it must be public or restricted")
    if access == "restricted" and not name.startswith("@"):
        raise Refused(f"{name} can't be restricted: its name has no scope")
    tag = str(manifest.get("tag") or config.get("tag") or "latest")
    if _RANGE.fullmatch(tag):
        raise Refused(f"{tag!r} can't be a tag: npm takes it for a range of versions")
    tarball = f"{name}-{version}.tgz"
    where = f"{registry}{name}/-/{tarball}"
    dist = manifest.get("dist")
    sha512 = base64.b64encode(hashlib.sha512(content).digest()).decode()
    listed = {
        **manifest,
        "_id": f"{name}@{version}",
        "dist": {
            **(dist if isinstance(dist, dict) else {}),
            "integrity": f"sha512-{sha512}",
            "shasum": hashlib.sha1(content).hexdigest(),  # noqa: S324  (old clients check it)
            "tarball": re.sub("^https://", "http://", where),
        },
    }
    data = base64.b64encode(content).decode()
    return {
        "_id": name,
        "name": name,
        "description": manifest.get("description"),
        "dist-tags": {tag: version},
        "versions": {version: listed},
        "access": access,
        "_attachments": {
            tarball: {
                "content_type": "application/octet-stream",
                "data": data,
                "length": len(content),
            }
        },
    }
