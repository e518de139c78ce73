"""Puts a file into a Maven repository, as ``deploy:deploy-file`` does, or a folder laid out as one.

Maven itself would bring a Java runtime and fetch plugins from the network; the layout is a handful
of PUT requests: file, POM, their checksums, and the list of versions.
"""

import hashlib
import os
import time
import xml.etree.ElementTree as Xml
from collections.abc import Iterator

from .generic import files_below
from .repository import Refused, Repository

_CHECKSUMS = ("md5", "sha1", "sha256", "sha512")
_LISTED = "maven-metadata.xml"


def publish(request: dict[str, list[str]], repository: Repository) -> Iterator[tuple[str, str]]:
    """Publish the file of the request; yields its address and SHA-256."""
    (path,) = request["paths"]
    group, name, version = str(request["group"]), str(request["name"]), str(request["version"])
    if not os.path.isfile(path):
        raise Refused(f"there is no file {path}")
    with open(path, "rb") as file:
        content = file.read()
    extension = _extension(path)
    folder = f"{group.replace('.', '/')}/{name}"
    stem = f"{folder}/{version}/{name}-{version}"
    uri = _put(repository, f"{stem}.{extension}", content)
    if extension != "pom":
        _put(repository, f"{stem}.pom", _pom(group, name, version, extension))
    listed = f"{folder}/{_LISTED}"
    _put(repository, listed, _metadata(repository.get(listed), group, name, version))
    yield uri, hashlib.sha256(content).hexdigest()


def publish_folder(
    request: dict[str, list[str]], repository: Repository
) -> Iterator[tuple[str, str]]:
    """Publish a folder that is laid out as a repository; yields address and SHA-256 of each file.

    Checksums are computed again. Lists of versions are merged with the repository's, and come last.
    """
    (folder,) = request["paths"]
    checksums = tuple(f".{kind}" for kind in _CHECKSUMS)
    lists = []
    for path, full in files_below(folder):
        with open(full, "rb") as file:
            content = file.read()
        if os.path.basename(path) == _LISTED:
            lists.append((path, content))
        elif not path.endswith(checksums):
            yield _put(repository, path, content), hashlib.sha256(content).hexdigest()
    for path, content in lists:
        _put(repository, path, _merged(repository.get(path), content, path))


def _merged(old: bytes | None, new: bytes, path: str) -> bytes:
    """Return the old list with the versions of the new one; the new list if it has no versions."""
    root = _parsed(new, path)
    group, name = root.findtext("groupId") or "", root.findtext("artifactId") or ""
    versions = [entry.text for entry in root.iterfind("versioning/versions/version") if entry.text]
    for version in versions:
        old = _metadata(old, group, name, version)
    return old if versions and old is not None else new


def _parsed(text: bytes, what: str) -> Xml.Element:
    try:
        return Xml.fromstring(text)  # noqa: S314  (Python's parser fetches nothing)
    except Xml.ParseError as error:
        raise Refused(f"{what} is broken: {error}") from error


def _extension(path: str) -> str:
    name = os.path.basename(path)
    if name == "pom.xml":
        return "pom"
    if name.endswith(".tar.gz"):
        return "tar.gz"
    extension = os.path.splitext(name)[1].lstrip(".")
    if not extension:
        raise Refused(f"{path} has no extension, which Maven takes for the packaging")
    return extension


def _put(repository: Repository, path: str, content: bytes) -> str:
    uri = repository.put(path, content)
    for kind in _CHECKSUMS:
        repository.put(f"{path}.{kind}", hashlib.new(kind, content).hexdigest().encode())
    return uri


def _pom(group: str, name: str, version: str, packaging: str) -> bytes:
    project = Xml.Element("project", xmlns="http://maven.apache.org/POM/4.0.0")
    _child(project, "modelVersion", "4.0.0")
    _child(project, "groupId", group)
    _child(project, "artifactId", name)
    _child(project, "version", version)
    _child(project, "packaging", packaging)
    return _document(project)


def _metadata(old: bytes | None, group: str, name: str, version: str) -> bytes:
    """Return the list of versions with this one added. Its other entries are kept."""
    if old is None:
        root = Xml.Element("metadata")
        _child(root, "groupId", group)
        _child(root, "artifactId", name)
    else:
        what = f"the repository's {_LISTED} of {name}"
        root = _parsed(old, what)
        if root.tag != "metadata":  # an HTML page, for example, which must not be uploaded
            raise Refused(f"{what} is none: it begins with <{root.tag}>")
    versioning = root.find("versioning")
    if versioning is None:
        versioning = Xml.SubElement(root, "versioning")
    _child(versioning, "latest", version)
    if not version.endswith("-SNAPSHOT"):
        _child(versioning, "release", version)
    versions = versioning.find("versions")
    if versions is None:
        versions = Xml.SubElement(versioning, "versions")
    if version not in [entry.text for entry in versions]:
        Xml.SubElement(versions, "version").text = version
    _child(versioning, "lastUpdated", time.strftime("%Y%m%d%H%M%S", time.gmtime()))
    return _document(root)


def _child(parent: Xml.Element, tag: str, text: str) -> None:
    found = parent.find(tag)
    if found is None:
        found = Xml.SubElement(parent, tag)
    found.text = text


def _document(root: Xml.Element) -> bytes:
    Xml.indent(root)
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"
