"""``buildrunner verify``: checks the builder and the source of an image or a file."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from buildrunner.errors import EXIT_SUCCESS, UsageError, VerificationError
from buildrunner.logs.console.wording import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildrunner.provenance.verification import Policy, Trust, Verified

_LIMIT_S: Final = 300.0  # limit for all attestations of an image

_EPILOG: Final = """\
verify reads the provenance of IMAGE from its registry, and that of FILE from FILE.intoto.jsonl;
--provenance names another file. The signature, the digest and every rule of the policy must match.
A policy is a file:

    keys: [ci.pub]                                # one of these keys has signed,
    authorities: [ca.pem]                         # or one with a certificate of these authorities,
    identities:                                   # or one of these identities, by Sigstore
    - {issuer: "https://ci.example.com", subject: "https://ci.example.com/shop/*"}
    sigstore: trust.json                          # of this instance (default: the public one)
    builders: ["https://ci.example.com"]          # one of these servers built it
    sources: ["https://github.com/acme/*"]        # from one of these repositories,
    refs: ["refs/heads/main", "refs/tags/v*"]     # from one of these branches or tags,
    configs: [cloudbuild.yaml]                    # with this config of the repository
    forks: false                                  # true: accept pull requests from forks

* matches all characters but a slash, ** matches all. The flags add to the policy. Without a policy,
name at least a key, or the server that you trust: --server fetches its key, and accepts no other
builder. Without either, the command prints what the provenance claims, and exits with 2.

Examples:
  buildrunner verify registry.example.com/app:v1 --server https://ci.example.com
  buildrunner verify registry.example.com/app:v1 --policy policy.yaml
  buildrunner verify registry.example.com/app@sha256:... --key ci.pub --ref refs/heads/main
  buildrunner verify dist/app.tgz --key ci.pub --provenance app.intoto.jsonl

Exit codes: 0 verified, 1 refused, 2 wrong usage or policy, 3 the registry does not answer.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("subject", metavar="IMAGE|FILE", help="the image or the file to verify")
    parser.add_argument(
        "--policy", metavar="FILE", default="", help="policy that the provenance must meet"
    )
    for flag, metavar, text in (
        ("--key", "FILE", "public key that may have signed the provenance"),
        ("--builder", "URI", "id of a builder (the address of a server) that may have built it"),
        ("--source", "URL", "repository that it may be built from"),
        ("--ref", "REF", "branch or tag that it may be built from: refs/heads/main"),
    ):
        parser.add_argument(
            flag, metavar=metavar, action="append", default=[], help=f"{text}; may be repeated"
        )
    parser.add_argument(
        "--server",
        metavar="URL",
        default="",
        help="server that may have built it; the command fetches its public key (default: none)",
    )
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        default="",
        help="with --server: certificates to trust (default: those of the system)",
    )
    parser.add_argument(
        "--provenance",
        metavar="FILE",
        default="",
        help="read the provenance from this file (default: the registry, or FILE.intoto.jsonl)",
    )
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="json: print the facts and the whole statement (default: text)",
    )


def run(args: argparse.Namespace) -> int:
    """Verify the subject and print the facts in its provenance.

    Raises:
        VerificationError: the provenance is refused.
        ConfigError, UsageError: no key is given, or the policy or a key can't be used.
        RegistryError, ServerError: the registry or the server refuses or does not answer.
    """
    from buildrunner.provenance.verification import claimed, verified

    policy = _policy(args)
    server_key = _server_key(args)
    trust = _trust(policy, server_key)
    with _subject(args) as (name, digest, attestations):
        if not (trust.keys or trust.authorities or trust.identities):
            claims = claimed(digest, attestations)
            if claims is None:
                raise UsageError(
                    f"{name} is not verified: it has no provenance, and there is no key"
                )
            sys.stdout.write(_shown(args.format, name, claims))
            raise UsageError(
                f"{name} is not verified: there is no key to verify with",
                hint=_ways_to_a_key(claims),
            )
        try:
            found = verified(digest, attestations, trust, policy)
        except VerificationError as error:
            raise VerificationError(f"{name} is refused: {error}", hint=error.hint) from error
    sys.stdout.write(_shown(args.format, name, found))
    return EXIT_SUCCESS


def _ways_to_a_key(claims: Verified) -> str:
    if claims.builder.startswith("https://"):
        server = _on_one_line(claims.builder)
        return f"if you trust the server, add --server {server}; else name a key with --key"
    return (
        "name one with --key FILE, or with keys: in the policy; "
        "`buildrunner builds provenance --public-key` prints that of a server"
    )


def _server_key(args: argparse.Namespace) -> bytes:
    """Return the public key of ``--server``; empty without the flag."""
    if not args.server:
        return b""
    from buildrunner.client.client import ServerClient

    url = urlsplit(args.server)
    if url.scheme != "https" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(
            f"the key of {args.server} can't be trusted: anyone in between could replace it",
            hint="use https",
        )
    with closing(ServerClient(args.server, token="", project="", ca_file=args.ca_file)) as client:
        return client.provenance_key()


def _policy(args: argparse.Namespace) -> Policy:
    from msgspec.structs import replace

    from buildrunner.provenance.verification import Policy, read_policy

    policy = read_policy(args.policy) if args.policy else Policy()
    return replace(
        policy,
        keys=(*policy.keys, *args.key),
        builders=(*policy.builders, *args.builder, *filter(None, [args.server.rstrip("/")])),
        sources=(*policy.sources, *args.source),
        refs=(*policy.refs, *args.ref),
    )


def _trust(policy: Policy, server_key: bytes) -> Trust:
    from buildrunner.provenance.keyless import PUBLIC, trusted_root
    from buildrunner.provenance.signing import read_certificates, read_public_key
    from buildrunner.provenance.verification import Trust

    pems = [(_content(path, "the key"), path) for path in policy.keys]
    if server_key:
        pems.append((server_key, "the key of the server"))
    return Trust(
        keys=[read_public_key(pem, place) for pem, place in pems],
        authorities=[
            certificate
            for path in policy.authorities
            for certificate in read_certificates(_content(path, "the authority"), path)
        ],
        identities=policy.identities,
        sigstore=trusted_root(policy.sigstore or PUBLIC) if policy.identities else None,
    )


@contextmanager
def _subject(args: argparse.Namespace) -> Iterator[tuple[str, str, Iterable[bytes]]]:
    """Yield the subject's name, digest and attestations, read while the context is open."""
    if not os.path.isfile(args.subject):
        with _image(args) as image:
            yield image
        return
    with open(args.subject, "rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    path = args.provenance or f"{args.subject}.intoto.jsonl"
    yield args.subject, digest, _content(path, "the provenance").splitlines()


@contextmanager
def _image(args: argparse.Namespace) -> Iterator[tuple[str, str, Iterable[bytes]]]:
    from msgspec.structs import replace

    from buildrunner.containers.image_name import ImageName
    from buildrunner.containers.registry_auth import user_login
    from buildrunner.deadline import Deadline
    from buildrunner.provenance.attachment import attached
    from buildrunner.registries.distribution import Repository

    image = ImageName.parse(args.subject)
    login = user_login(image.registry, os.environ)
    with (
        Deadline(_LIMIT_S) as deadline,
        Repository(image, login, deadline=deadline) as repository,
    ):
        found = repository.manifest(image.digest or image.tag or "latest")
        if found is None:
            raise UsageError(
                f"{args.subject} is no file, and no image in {repository.name}",
                hint="check the name and the tag",
            )
        name = str(replace(image, tag="", digest=found.digest))
        if args.provenance:
            yield name, found.digest, _content(args.provenance, "the provenance").splitlines()
        else:
            yield name, found.digest, attached(repository, found.digest)


def _content(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{what} {path} can't be read: {error.strerror or error}") from error


def _shown(form: str, name: str, found: Verified) -> str:
    if form == "json":
        from msgspec.structs import asdict

        facts = {"artifact": name, "verified": bool(found.key or found.identity), **asdict(found)}
        if found.identity:
            facts["identity"] = asdict(found.identity)
        return json.dumps(facts, indent=2) + "\n"
    verdict = (
        "is verified" if found.key or found.identity else "is not verified. Its provenance claims:"
    )
    facts = {
        "source": _source(found),
        "config": _config(found),
        "server": found.builder,
        "build": found.invocation + (f", trigger {found.trigger}" if found.trigger else ""),
        "finished": found.finished,
        "key": found.key,
        "identity": f"{found.identity.subject} ({found.identity.issuer})" if found.identity else "",
    }
    lines = [f"  {label:9} {_on_one_line(value)}" for label, value in facts.items() if value]
    return "\n".join([f"{name} {verdict}", *lines]) + "\n"


def _on_one_line(text: str) -> str:
    """Return a claim of unknown origin without line breaks and control codes."""
    return printable(" ".join(text.split()))


def _source(found: Verified) -> str:
    if not found.repository:
        return found.archive or "files that were submitted, no Git repository"
    ref = f" ({found.ref})" if found.ref else ""
    fork = ", the code of a fork" if found.is_fork else ""
    return f"commit {found.commit} of {found.repository}{ref}{fork}"


def _config(found: Verified) -> str:
    if not found.config:
        return "came in the request"
    place = "a file of this commit" if found.is_config_of_commit else "not from a commit"
    return f"{found.config}, {place}, sha256:{found.config_sha256}"
