#!/usr/bin/python3
"""The everyday commands of gsutil (cp, mv, rsync, ls, cat, stat, du, rm, mb, rb) in one small file.

It stands on Google's own client library, so that credentials are found as everywhere (a key file in
GOOGLE_APPLICATION_CREDENTIALS, the metadata server) and STORAGE_EMULATOR_HOST names an emulator.
Where gsutil has a rule for what a copy is called, that rule is followed; what is not here is
refused by name, never ignored.

Source: the help texts of gsutil (`gsutil help cp`, `rsync`, `wildcards`, `naming`).
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import functools
import glob
import hashlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, "/usr/local/lib/gsutil")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PARALLEL = 8
WILD = re.compile(r"[*?\[]")
PLAIN_HEADERS = {
    "cache-control": "cache_control",
    "content-disposition": "content_disposition",
    "content-encoding": "content_encoding",
    "content-language": "content_language",
    "content-type": "content_type",
}


class CommandError(Exception):
    """What was asked for can't be done; the message is for a person."""


class Place(NamedTuple):
    """An object or prefix of a bucket, or a local path (then ``bucket`` is empty)."""

    bucket: str
    path: str

    @property
    def remote(self) -> bool:
        """Whether it is in a bucket."""
        return bool(self.bucket)

    def __str__(self) -> str:
        """As the user would write it."""
        return f"gs://{self.bucket}/{self.path}" if self.remote else self.path

    def child(self, name: str) -> Place:
        """``name`` below this place."""
        base = self.path.rstrip("/") if self.remote else self.path
        joined = f"{base}/{name}" if base else name
        return Place(self.bucket, joined if self.remote else os.path.join(self.path, name))


class Found(NamedTuple):
    """Something to copy: where it is, and what it is called below what the user named."""

    place: Place
    name: str


def parse(url: str) -> Place:
    """``gs://bucket/path`` or a local path."""
    if not url.startswith("gs://"):
        if "://" in url and not url.startswith("file://"):
            raise CommandError(f"Unrecognized scheme in {url!r}: only gs:// and local paths.")
        return Place("", url.removeprefix("file://"))
    bucket, _, path = url[len("gs://") :].partition("/")
    if not bucket or WILD.search(bucket):
        raise CommandError(f"{url!r} must name one bucket.")
    return Place(bucket, path)


def wildcard(pattern: str) -> re.Pattern[str]:
    """Wildcards as gsutil has them: ``*`` and ``?`` stop at ``/``, ``**`` does not."""
    pieces = re.split(r"(\*\*|\*|\?|\[[^\]]*\])", pattern)
    special = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = [
        special.get(p) or (fnmatch.translate(p)[4:-3] if p.startswith("[") else re.escape(p))
        for p in pieces
    ]
    return re.compile("".join(parts), re.DOTALL)


@functools.cache
def client() -> Any:
    """The storage client: with the machine's credentials, or with none for what is public."""
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    project = os.environ.get("GOOGLE_CLOUD_PROJECT") or os.environ.get("PROJECT_ID") or None
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        from google.auth.credentials import AnonymousCredentials

        return storage.Client(project=project or "emulated", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    try:
        return storage.Client(project=project)
    except (DefaultCredentialsError, OSError):
        return storage.Client.create_anonymous_client()


def blob(place: Place) -> Any:
    """The object at ``place``."""
    return client().bucket(place.bucket).blob(place.path)


def objects(place: Place) -> list[Any]:
    """The objects that a ``gs://`` URL names: itself, or what its wildcards match."""
    match = WILD.search(place.path)
    if not match:
        found = client().bucket(place.bucket).get_blob(place.path) if place.path else None
        return [found] if found else []
    pattern = wildcard(place.path)
    listed = client().list_blobs(place.bucket, prefix=place.path[: match.start()])
    return [item for item in listed if pattern.fullmatch(item.name)]


def below(place: Place) -> Iterator[Any]:
    """All objects whose names continue the prefix ``place``."""
    prefix = place.path.rstrip("/") + "/" if place.path else ""
    return iter(client().list_blobs(place.bucket, prefix=prefix))


def is_folder(place: Place) -> bool:
    """Whether a copy goes *into* ``place``: a folder, a bucket, a prefix that has objects."""
    if not place.remote:
        return os.path.isdir(place.path)
    if not place.path or place.path.endswith("/"):
        return True
    return (
        next(iter(client().list_blobs(place.bucket, prefix=place.path + "/", max_results=1)), None)
        is not None
    )


def expand(url: str, *, recursive: bool) -> list[tuple[Place, list[Found]]]:
    """What a source names: per thing matched, the thing and the files in it.

    Raises:
        CommandError: nothing matched, or a folder without ``-r``.
    """
    place = parse(url)
    groups = _expand_remote(place, recursive) if place.remote else _expand_local(place, recursive)
    if not groups:
        raise CommandError(f"No URLs matched: {url}")
    return groups


def _expand_remote(place: Place, recursive: bool) -> list[tuple[Place, list[Found]]]:
    groups = []
    for item in objects(place):
        here = Place(place.bucket, item.name)
        groups.append((here, [Found(here, os.path.basename(item.name))]))
    if recursive:
        for folder in _prefixes(place):
            base = folder.path.rstrip("/") + "/" if folder.path else ""
            files = [
                Found(Place(place.bucket, item.name), item.name[len(base) :])
                for item in below(folder)
                if not item.name.endswith("/")
            ]
            if files:
                groups.append((folder, files))
    elif not groups and is_folder(place):
        raise CommandError(f"{place} is a folder: use -r.")
    return groups


def _prefixes(place: Place) -> list[Place]:
    match = WILD.search(place.path)
    if not match:
        return [place]
    pattern, found = wildcard(place.path.rstrip("/")), {}
    for item in client().list_blobs(place.bucket, prefix=place.path[: match.start()]):
        parts = item.name.split("/")
        for depth in range(1, len(parts)):
            prefix = "/".join(parts[:depth])
            if pattern.fullmatch(prefix):
                found[prefix] = Place(place.bucket, prefix)
                break
    return list(found.values())


def _expand_local(place: Place, recursive: bool) -> list[tuple[Place, list[Found]]]:
    if place.path == "-":
        return [(place, [Found(place, "-")])]
    paths = (
        sorted(glob.glob(place.path, recursive=True)) if WILD.search(place.path) else [place.path]
    )
    groups = []
    for path in paths:
        if os.path.isdir(path):
            if not recursive:
                if paths != [path]:
                    continue  # a wildcard without -r takes the files it matches
                raise CommandError(f"{path} is a folder: use -r.")
            groups.append((Place("", path), list(local_files(path))))
        elif os.path.isfile(path):
            groups.append((Place("", path), [Found(Place("", path), os.path.basename(path))]))
    return groups


def local_files(folder: str) -> Iterator[Found]:
    """All files below a folder, with ``/`` in their names."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            yield Found(Place("", path), os.path.relpath(path, folder).replace(os.sep, "/"))


def copy_one(source: Place, target: Place, headers: dict[str, str]) -> None:
    """Copy one file or object, whichever side it is on."""
    if source.remote and target.remote:
        item = blob(source)
        item.bucket.copy_blob(item, client().bucket(target.bucket), target.path)
    elif source.remote:
        _download(source, target)
    elif target.remote:
        item = blob(target)
        _apply_headers(item, headers)
        if source.path == "-":
            item.upload_from_string(sys.stdin.buffer.read())
        else:
            item.upload_from_filename(source.path)
    else:
        raise CommandError("one side of a copy must be a gs:// URL")


def _download(source: Place, target: Place) -> None:
    if target.path == "-":
        blob(source).download_to_file(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    os.makedirs(os.path.dirname(target.path) or ".", exist_ok=True)
    blob(source).download_to_filename(target.path)


def _apply_headers(item: Any, headers: dict[str, str]) -> None:
    metadata = {}
    for name, value in headers.items():
        if name in PLAIN_HEADERS:
            setattr(item, PLAIN_HEADERS[name], value)
        elif name.startswith("x-goog-meta-"):
            metadata[name.removeprefix("x-goog-meta-")] = value
    if metadata:
        item.metadata = metadata


class Copies:
    """Copies to do, with gsutil's rule for what each becomes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        *sources, last = args.urls
        self._target = parse(last)
        self._groups = [g for url in sources for g in expand(url, recursive=args.recursive)]
        self._into = is_folder(self._target)
        several = len(self._groups) > 1
        if several and not self._into and (not self._target.remote or not args.recursive):
            raise CommandError(
                "Destination URL must name a directory, bucket, or bucket\n"
                "subdirectory for the multiple source form of the cp command."
            )

    def pairs(self) -> Iterator[tuple[Place, Place]]:
        """Source and target of every file."""
        for thing, files in self._groups:
            if files and files[0].place == thing:
                inside = self._into or len(self._groups) > 1
                name = os.path.basename(thing.path.rstrip("/"))
                yield thing, self._target.child(name) if inside else self._target
                continue
            folder = os.path.basename(os.path.normpath(thing.path)) if thing.path else ""
            # `cp -r . gs://bucket` copies what is in the folder, not a folder called ".".
            into = self._target
            if self._into and folder not in ("", "."):
                into = self._target.child(folder)
            for found in files:
                yield found.place, into.child(found.name)


def do_cp(args: argparse.Namespace) -> None:
    """``cp [-r] [-n] SOURCE... TARGET``."""
    _each(args, list(Copies(args).pairs()), lambda pair: _copy_pair(args, pair))


def do_mv(args: argparse.Namespace) -> None:
    """``mv SOURCE... TARGET``: a copy, then the sources' removal."""
    pairs = list(Copies(args).pairs())
    _each(args, pairs, lambda pair: _copy_pair(args, pair))
    for source, _ in pairs:
        _remove(source)


def _copy_pair(args: argparse.Namespace, pair: tuple[Place, Place]) -> None:
    source, target = pair
    if args.no_clobber and _exists(target):
        _say(args, f"Skipping existing item: {target}")
        return
    _say(args, f"Copying {source if source.remote else 'file://' + source.path} to {target}...")
    copy_one(source, target, args.headers)


def _exists(place: Place) -> bool:
    return bool(blob(place).exists()) if place.remote else os.path.exists(place.path)


def _remove(place: Place) -> None:
    if place.remote:
        blob(place).delete()
    else:
        os.remove(place.path)


def _each(args: argparse.Namespace, items: Sequence[Any], act: Callable[[Any], None]) -> None:
    if not args.parallel:
        for item in items:
            act(item)
        return
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(act, items))


def do_rsync(args: argparse.Namespace) -> None:
    """``rsync [-r] [-d] [-n] [-x REGEX] SOURCE TARGET``: compares by size and MD5."""
    source, target = (parse(url) for url in args.urls)
    if not source.remote and not os.path.isdir(source.path):
        raise CommandError(f"{source} is not a folder.")
    wanted, present = _inventory(source, args), _inventory(target, args)
    changed = [name for name, digest in wanted.items() if present.get(name) != digest]
    gone = sorted(set(present) - set(wanted)) if args.delete else []
    if args.dry_run:
        for name in changed:
            _say(args, f"Would copy {source.child(name)} to {target.child(name)}")
        for name in gone:
            _say(args, f"Would remove {target.child(name)}")
        return
    pairs = [(source.child(name), target.child(name)) for name in changed]
    _each(args, pairs, lambda pair: _copy_pair(args, pair))
    for name in gone:
        _say(args, f"Removing {target.child(name)}")
        _remove(target.child(name))


def _inventory(place: Place, args: argparse.Namespace) -> dict[str, str]:
    if place.remote:
        prefix = place.path.rstrip("/") + "/" if place.path else ""
        named = {item.name[len(prefix) :]: item.md5_hash or "" for item in below(place)}
    else:
        named = {f.name: _md5(f.place.path) for f in local_files(place.path)}
    skip = re.compile(args.exclude) if args.exclude else None
    return {
        name: digest
        for name, digest in named.items()
        if name and (args.recursive or "/" not in name) and not (skip and skip.match(name))
    }


def _md5(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode()


def do_ls(args: argparse.Namespace) -> None:
    """``ls [-l] [-r] [URL...]``."""
    if not args.urls:
        for bucket in client().list_buckets():
            print(f"gs://{bucket.name}/")
    for url in args.urls:
        lines = list(_listing(parse(url), args))
        if not lines and parse(url).path:
            raise CommandError("One or more URLs matched no objects.")
        print("\n".join(lines))


def _listing(place: Place, args: argparse.Namespace) -> Iterator[str]:
    found = objects(place)
    total = 0
    if not found:
        prefix = place.path.rstrip("/") + "/" if place.path else ""
        listed = client().list_blobs(
            place.bucket, prefix=prefix, delimiter=None if args.recursive else "/"
        )
        found = list(listed)
        yield from (
            f"{'' if not args.long else ' ' * 33}gs://{place.bucket}/{name}"
            for name in sorted(listed.prefixes)
        )
    for item in found:
        url = f"gs://{place.bucket}/{item.name}"
        if args.long:
            total += item.size
            url = f"{item.size:>10}  {item.updated:%Y-%m-%dT%H:%M:%SZ}  {url}"
        yield url
    if args.long and found:
        yield f"TOTAL: {len(found)} objects, {total} bytes"


def do_cat(args: argparse.Namespace) -> None:
    """``cat URL...``."""
    for url in args.urls:
        for _, files in expand(url, recursive=False):
            copy_one(files[0].place, Place("", "-"), {})


def do_stat(args: argparse.Namespace) -> None:
    """``stat URL...``."""
    for url in args.urls:
        found = objects(parse(url))
        if not found:
            raise CommandError(f"No URLs matched: {url}")
        for item in found:
            print(
                f"gs://{item.bucket.name}/{item.name}:\n    Creation time: {item.time_created}\n"
                f"    Content-Length: {item.size}\n    Content-Type: {item.content_type}\n"
                f"    Hash (crc32c): {item.crc32c}\n    Hash (md5): {item.md5_hash}\n"
                f"    Generation: {item.generation}"
            )


def do_du(args: argparse.Namespace) -> None:
    """``du [-s] URL...``."""
    for url in args.urls:
        items = [*objects(parse(url)), *below(parse(url))]
        if not args.summary:
            for item in items:
                print(f"{item.size:<12} gs://{item.bucket.name}/{item.name}")
        print(f"{sum(item.size for item in items):<12} {url}")


def do_rm(args: argparse.Namespace) -> None:
    """``rm [-r] [-f] URL...``."""
    for url in args.urls:
        place = parse(url)
        if not place.remote:
            raise CommandError(f"rm removes objects only, not the local path {url}.")
        try:
            groups = expand(url, recursive=args.recursive)
        except CommandError:
            if not args.force:
                raise
            continue
        for _, files in groups:
            for found in files:
                _say(args, f"Removing {found.place}...")
                _remove(found.place)


def do_mb(args: argparse.Namespace) -> None:
    """``mb [-l LOCATION] URL...``."""
    for url in args.urls:
        _say(args, f"Creating {url}...")
        client().create_bucket(parse(url).bucket, location=args.location)


def do_rb(args: argparse.Namespace) -> None:
    """``rb URL...``."""
    for url in args.urls:
        _say(args, f"Removing {url}...")
        client().bucket(parse(url).bucket).delete()


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        print(text, file=sys.stderr)


def _headers(values: list[str]) -> dict[str, str]:
    headers = {}
    for value in values:
        name, colon, content = value.partition(":")
        name = name.strip().lower()
        if not colon or (name not in PLAIN_HEADERS and not name.startswith("x-goog-meta-")):
            raise CommandError(f"the header {value!r} is not supported by this image's gsutil.")
        headers[name] = content.strip()
    return headers


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="gsutil", description=__doc__.partition("\n")[0], add_help=False
    )
    parser.add_argument("--help", action="help")
    parser.add_argument("-m", dest="parallel", action="store_true", help="in parallel")
    parser.add_argument("-q", dest="quiet", action="store_true", help="only errors")
    parser.add_argument("-h", dest="header", action="append", default=[], metavar="NAME:VALUE")
    parser.add_argument("-o", dest="_option", action="append", help="taken, without effect")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(
        name: str, do: Callable[[argparse.Namespace], None], urls: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=(do.__doc__ or "").strip("`."))
        sub.set_defaults(do=do, recursive=False, no_clobber=False)
        sub.add_argument("urls", nargs=urls, metavar="URL")
        return sub

    for name, do in (("cp", do_cp), ("mv", do_mv)):
        sub = command(name, do, "+")
        sub.add_argument("-r", "-R", dest="recursive", action="store_true", default=name == "mv")
        sub.add_argument("-n", dest="no_clobber", action="store_true")
        sub.add_argument("-e", "-p", dest="_taken", action="store_true")
    sync = command("rsync", do_rsync, "+")
    sync.add_argument("-r", "-R", dest="recursive", action="store_true")
    sync.add_argument("-d", dest="delete", action="store_true")
    sync.add_argument("-n", dest="dry_run", action="store_true")
    sync.add_argument("-c", dest="_checksum", action="store_true")
    sync.add_argument("-x", dest="exclude", default="")
    ls = command("ls", do_ls, "*")
    ls.add_argument("-l", dest="long", action="store_true")
    ls.add_argument("-r", "-R", dest="recursive", action="store_true")
    command("cat", do_cat, "+")
    command("stat", do_stat, "+")
    command("du", do_du, "+").add_argument("-s", dest="summary", action="store_true")
    rm = command("rm", do_rm, "+")
    rm.add_argument("-r", "-R", dest="recursive", action="store_true")
    rm.add_argument("-f", dest="force", action="store_true")
    command("mb", do_mb, "+").add_argument("-l", dest="location", default=None)
    command("rb", do_rb, "+")
    return parser


def main() -> int:
    """Run one command; 1 and a line on stderr when it can't be done."""
    parser = arguments()
    args = parser.parse_args()
    if args.command in ("cp", "mv", "rsync") and len(args.urls) < 2:
        parser.error(f"{args.command} wants a source and a target")
    if args.command == "rsync" and len(args.urls) > 2:
        parser.error("rsync wants one source and one target")
    try:
        args.headers = _headers(args.header)
        args.do(args)
    except CommandError as error:
        print(f"CommandException: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"OSError: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the client library raises errors of many kinds
        if type(error).__module__.split(".")[0] not in ("google", "requests", "urllib3"):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
