"""Verification of an artifact's signed provenance against keys and the policy in a file."""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from cryptography.x509 import Certificate
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError
from securesystemslib.signer import SSlibKey
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from buildrunner.errors import (
    AttestationError,
    ConfigError,
    RegistryError,
    UsageError,
    VerificationError,
)
from buildrunner.problem import Problem, nearest
from buildrunner.provenance.keyless import BadBundle, Identity, verified_payload
from buildrunner.provenance.signing import (
    PAYLOAD_TYPE,
    BadCertificate,
    certified_key,
    envelope_in,
    is_keyless,
    is_signature,
    read_certificates,
)
from buildrunner.provenance.statement import BUILD_TYPE, PROVENANCE_TYPE, STATEMENT_TYPE
from buildrunner.spec.reading.nodes import compose, position

KEYS: Final = (
    "keys",
    "authorities",
    "identities",
    "sigstore",
    "builders",
    "sources",
    "refs",
    "configs",
    "forks",
)
_MOST_SIGNATURES: Final = 20  # of one attestation: each is tried with each key
_LONGEST: Final = 1_000  # of the reason why one is refused
_IDENTITY: Final = ("issuer", "subject")
_IDENTITY_SHAPE: Final = "must be a list of mappings with `issuer` and `subject`"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The rules for provenance. An empty field allows every value, but a signer is required.

    In patterns ``*`` stands for any characters but a slash, ``**`` for any characters.

    Attributes:
        keys: paths of public keys, one of which must have signed.
        authorities: paths of certificates of authorities, one of which must have certified the key
            that signed, unless it is one of ``keys``.
        identities: issuer and pattern of the subject of identities, one of which must have signed
            by Sigstore, unless one of ``keys`` or ``authorities`` has.
        sigstore: path of the trust config or the trusted root of an instance of Sigstore; empty
            for the public one.
        builders: patterns of builder ids.
        sources: patterns of URLs of source repositories.
        refs: patterns of refs: ``refs/heads/main``, ``refs/tags/v*``.
        configs: patterns of paths of the config in the source repository.
        forks: accept builds of pull requests from forks.
    """

    keys: tuple[str, ...] = ()
    authorities: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()
    sigstore: str = ""
    builders: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    forks: bool = False


def allows(patterns: Iterable[str], text: str) -> bool:
    """Return whether one of the patterns matches the whole text."""
    return any(_compiled(pattern).fullmatch(text) for pattern in patterns)


def read_policy(path: str) -> Policy:
    """Read a policy file. Paths in it are relative to the file.

    Raises:
        ConfigError: the file is invalid; lists every problem with its place.
        UsageError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"the policy {path} can't be read: {error.strerror or error}") from error
    root, problem = compose(text)
    if problem is not None:
        raise ConfigError([msgspec.structs.replace(problem, file=path)])
    if not isinstance(root, MappingNode):
        raise ConfigError([Problem("a policy is a mapping", file=path, hint=_known())])
    problems: list[Problem] = []
    fields = dict(_fields(path, root, problems))
    if problems:
        raise ConfigError(problems)
    folder = os.path.dirname(path)
    for name in ("keys", "authorities"):
        fields[name] = tuple(os.path.join(folder, file) for file in fields.get(name, ()))
    if "sigstore" in fields:
        fields["sigstore"] = os.path.join(folder, fields["sigstore"])
    return Policy(**fields)


def _fields(path: str, root: MappingNode, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    for key, value in root.value:
        name = key.value if isinstance(key, ScalarNode) else ""
        line, column = position(key)
        if name not in KEYS:
            near = nearest(name, KEYS)
            hint = f"did you mean {near}?" if near else _known()
            problems.append(
                Problem("unknown key", name, file=path, line=line, column=column, hint=hint)
            )
        elif name == "forks":
            if not isinstance(value, ScalarNode) or value.value not in ("true", "false"):
                problems.append(_wrong(path, name, value, "must be true or false"))
            else:
                yield name, value.value == "true"
        elif name == "identities":
            identities = _identities(value)
            if identities is None:
                problems.append(_wrong(path, name, value, _IDENTITY_SHAPE))
            else:
                yield name, identities
        elif name == "sigstore":
            if not isinstance(value, ScalarNode) or not value.value:
                problems.append(_wrong(path, name, value, "must be the path of a file"))
            else:
                yield name, value.value
        elif (texts := _texts(value)) is None:
            problems.append(_wrong(path, name, value, "must be a list of strings"))
        else:
            yield name, texts


def _texts(node: Node) -> tuple[str, ...] | None:
    """Return a list of texts, or one text as such a list; None for anything else."""
    nodes = node.value if isinstance(node, SequenceNode) else [node]
    if not all(isinstance(one, ScalarNode) and one.value for one in nodes):
        return None
    return tuple(str(one.value) for one in nodes)


def _identities(node: Node) -> tuple[Identity, ...] | None:
    """Return a list of mappings as identities; None for anything else."""
    found = []
    for one in node.value if isinstance(node, SequenceNode) else [node]:
        parts = one.value if isinstance(one, MappingNode) else []
        texts = {
            key.value: value.value
            for key, value in parts
            if isinstance(key, ScalarNode) and isinstance(value, ScalarNode)
        }
        if len(parts) != len(_IDENTITY) or not all(texts.get(name) for name in _IDENTITY):
            return None
        found.append(Identity(**texts))
    return tuple(found)


def _wrong(path: str, name: str, node: Node, message: str) -> Problem:
    line, column = position(node)
    return Problem(message, name, file=path, line=line, column=column)


def _known() -> str:
    return f"keys are {', '.join(KEYS)}"


def _compiled(pattern: str) -> re.Pattern[str]:
    texts = (
        re.escape(part) if at % 2 == 0 else "[^/]*" if part == "*" else ".*"
        for at, part in enumerate(re.split(r"(\*+)", pattern))  # text and asterisks alternate
    )
    return re.compile("".join(texts), re.DOTALL)


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The claims of an artifact's provenance, once it is verified.

    Attributes:
        key: id of the key that signed; empty if an identity did.
        identity: the identity that signed by Sigstore; None if a key did.
        statement: the whole statement.
        builder: id of the builder.
        repository, commit, ref: the source; empty if it is no Git repository.
        archive: URL of the source in a bucket; empty for other sources.
        config: path of the config; empty for one that came in a request.
        config_sha256: digest of the config; empty for one that came in a request.
        is_config_of_commit: the config is a file of the commit.
        invocation: name of the build.
        trigger: name of the trigger; empty for a build without one.
        finished: time at which the build was done, as the statement has it.
        is_fork: the code came from a fork.
    """

    key: str
    identity: Identity | None = None
    statement: dict[str, Any]
    builder: str
    repository: str
    commit: str
    ref: str
    archive: str
    config: str
    config_sha256: str
    is_config_of_commit: bool
    invocation: str
    trigger: str
    finished: str
    is_fork: bool


class _Refused(Exception):
    """One attestation is refused. A higher stage means that more checks passed.

    The message may have texts of the attestation, which anybody can have made: it is one line.
    """

    def __init__(self, stage: int, message: str, hint: str = "") -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…")
        self.stage = stage
        self.hint = hint


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """The accepted signers.

    Attributes:
        keys: public keys.
        authorities: authorities whose certificates name further keys.
        identities: identities that may sign by Sigstore; their subjects are patterns.
        sigstore: the trusted root of the instance of Sigstore; required only with ``identities``.
        now: the time at which certificates must be valid.
    """

    keys: Sequence[SSlibKey] = ()
    authorities: Sequence[Certificate] = ()
    identities: Sequence[Identity] = ()
    sigstore: Any = None
    now: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))


def verified(digest: str, attestations: Iterable[bytes], trust: Trust, policy: Policy) -> Verified:
    """Return the facts in the first attestation of an artifact that is signed and meets the policy.

    Args:
        digest: of the artifact: ``sha256:HEX``.
        attestations: DSSE envelopes, and Sigstore bundles.
        trust: the accepted signers.
        policy: the rules. Its signers are ignored: ``trust`` has the signers.

    Raises:
        VerificationError: no attestation passes. The message says why.
        RegistryError: the attestations can't be read.
    """
    worst = _Refused(0, "it has no provenance", "was it built by buildrunner, and pushed with it?")
    try:
        for attestation in attestations:
            try:
                with _reading():
                    return _checked(digest, attestation, trust, policy)
            except _Refused as refused:
                worst = max(worst, refused, key=lambda one: one.stage)
    except RegistryError as error:  # of those that can't be read, one may be good
        if worst.stage == 0:
            raise
        raise VerificationError(f"{worst} ({error})", hint=worst.hint) from error
    raise VerificationError(str(worst), hint=worst.hint)


def claimed(digest: str, attestations: Iterable[bytes]) -> Verified | None:
    """Return the claims of provenance about an artifact, without a check of its signature."""
    for attestation in attestations:
        with suppress(_Refused), _reading():
            envelope = envelope_in(attestation)
            statement = _statement(b64decode(envelope["payload"]), envelope["payloadType"])
            _check_subject(statement, digest)
            return _facts(statement, "", None)
    return None


@contextmanager
def _reading() -> Iterator[None]:
    """Refuse an attestation on which a library fails: anybody can have made it."""
    try:
        yield
    except _Refused:
        raise
    except Exception as error:  # each library has errors of its own
        raise _Refused(1, f"its provenance can't be read: {type(error).__name__}") from error


def _checked(digest: str, attestation: bytes, trust: Trust, policy: Policy) -> Verified:
    key, identity = "", None
    if is_keyless(attestation):
        payload, kind, identity = _identified(attestation, trust)
    else:
        envelope = _envelope(attestation)
        key = _signed_by(envelope, trust.keys) or _certified(envelope, trust)
        payload, kind = envelope.payload, envelope.payload_type
    statement = _statement(payload, kind)
    _check_subject(statement, digest)
    found = _facts(statement, key, identity)
    _check_policy(found, policy)
    return found


def _envelope(attestation: bytes) -> Envelope:
    try:
        envelope = Envelope.from_dict(envelope_in(attestation))
        envelope.pae()
    except (
        ValueError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
        FormatError,
    ) as error:
        raise _Refused(1, "its provenance is not a signed DSSE envelope") from error
    if not all(isinstance(one.keyid, str) for one in envelope.signatures.values()):
        raise _Refused(1, "its provenance is not a signed DSSE envelope")
    if len(envelope.signatures) > _MOST_SIGNATURES:
        raise _Refused(1, f"its provenance has more than {_MOST_SIGNATURES} signatures")
    return envelope


def _identified(bundle: bytes, trust: Trust) -> tuple[bytes, str, Identity]:
    """Return the payload that an allowed identity signed, its type, and the identity."""
    if not trust.identities:
        raise _Refused(
            2,
            "its provenance is signed by an identity, not by a key",
            "name the identity below `identities:` in the policy",
        )
    try:
        payload, kind, identity = verified_payload(bundle, trust.sigstore)
    except BadBundle as error:
        raise _Refused(3, str(error)) from error
    of_issuer = [one for one in trust.identities if one.issuer == identity.issuer]
    if not of_issuer:
        raise _Refused(
            3,
            f"its provenance is signed by an identity of another issuer: {identity.issuer}",
            f"allowed: {', '.join(dict.fromkeys(one.issuer for one in trust.identities))}",
        )
    # A certificate without a subject, or with several, matches no pattern, not even ``**``.
    if not identity.subject or not allows((one.subject for one in of_issuer), identity.subject):
        raise _Refused(
            3,
            f"its provenance is signed by another identity: {identity.subject or 'no subject'}",
            f"allowed: {', '.join(one.subject for one in of_issuer)}",
        )
    return payload, kind, identity


def _signed_by(envelope: Envelope, keys: Sequence[SSlibKey]) -> str:
    """Return the id of the key that signed; empty if none did.

    Tries every key: the key id in the envelope is only a claim.
    """
    signed = envelope.pae()
    signatures = [bytes.fromhex(one.signature) for one in envelope.signatures.values()]
    for key in keys:
        if any(is_signature(signed, signature, key) for signature in signatures):
            return str(key.keyid)
    return ""


def _certified(envelope: Envelope, trust: Trust) -> str:
    """Return the id of the key that signed and that an authority has certified."""
    chains = [
        str(signature.unrecognized_fields["cert"])
        for signature in envelope.signatures.values()
        if "cert" in signature.unrecognized_fields
    ]
    for pem in chains if trust.authorities else ():
        try:
            chain = read_certificates(pem.encode(), "its provenance")
            key = certified_key(chain, trust.authorities, trust.now)
        except (AttestationError, BadCertificate) as error:
            raise _Refused(2, str(error)) from error
        if signed := _signed_by(envelope, [key]):
            return signed
        raise _Refused(
            3, "its provenance was changed after it was signed: the signature does not fit"
        )
    known = {key.keyid for key in trust.keys}
    claimed = [signature.keyid for signature in envelope.signatures.values()]
    if known.intersection(claimed):
        raise _Refused(
            3, "its provenance was changed after it was signed: the signature does not fit"
        )
    raise _Refused(
        2,
        f"its provenance is signed by another key: {', '.join(claimed) or 'none'}",
        f"allowed: {', '.join(sorted(known))}" if known else "",
    )


def _statement(payload: bytes, payload_type: str) -> dict[str, Any]:
    try:
        statement = json.loads(payload)
        kind = statement["_type"], statement["predicateType"], payload_type
        build_type = (
            statement["predicate"]["buildDefinition"]["buildType"]
            if kind[1] == PROVENANCE_TYPE
            else BUILD_TYPE
        )
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise _Refused(4, "the content of its provenance is no in-toto statement") from error
    if kind != (STATEMENT_TYPE, PROVENANCE_TYPE, PAYLOAD_TYPE):
        raise _Refused(4, f"it has no provenance, only a statement of type {kind[1]}")
    if build_type != BUILD_TYPE:
        raise _Refused(4, f"its provenance is of another kind of build: {build_type}")
    return dict(statement)


def _check_subject(statement: dict[str, Any], digest: str) -> None:
    algorithm, _, value = digest.partition(":")
    try:
        digests = [subject["digest"].get(algorithm, "") for subject in statement["subject"]]
    except (LookupError, TypeError, AttributeError) as error:
        raise _Refused(5, "its provenance names no artifact") from error
    if value not in digests:
        others = ", ".join(f"{algorithm}:{one}" for one in digests[:3])
        raise _Refused(5, f"its provenance is about another artifact: {others}, not {digest}")


def _facts(statement: dict[str, Any], key: str, identity: Identity | None) -> Verified:
    try:
        predicate = statement["predicate"]
        definition, details = predicate["buildDefinition"], predicate["runDetails"]
        external = definition["externalParameters"]
        internal = definition.get("internalParameters", {})
        source, config = external.get("source", {}), external.get("config", {})
        repository = str(source.get("repository", ""))
        uris = [str(one["uri"]) for one in definition.get("resolvedDependencies", ())]
        return Verified(
            key=key,
            identity=identity,
            statement=statement,
            builder=str(details["builder"]["id"]),
            repository=repository,
            commit=str(source.get("commit", "")),
            ref=str(source.get("ref", "")),
            archive=next((uri for uri in uris if uri.startswith("gs://")), ""),
            config=str(config.get("path", "")),
            config_sha256=str(config.get("digest", {}).get("sha256", "")),
            is_config_of_commit=bool(repository)
            and str(config.get("uri", "")).startswith(f"git+{repository}"),
            invocation=str(details["metadata"]["invocationId"]),
            trigger=str(internal.get("trigger", {}).get("name", "")),
            finished=str(details["metadata"].get("finishedOn", "")),
            is_fork=bool(internal.get("untrusted")),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise _Refused(6, "its provenance lacks a field of SLSA v1") from error


def _check_policy(found: Verified, policy: Policy) -> None:
    if policy.builders and not allows(policy.builders, found.builder):
        raise _Refused(
            7, f"unknown builder: {found.builder}", f"allowed: {', '.join(policy.builders)}"
        )
    if not (policy.sources or policy.refs or policy.configs):
        return
    _check_source(found, policy)
    if found.is_fork and not policy.forks:
        raise _Refused(9, "it was built from a fork's pull request", "forks: true accepts it")
    if policy.refs and not allows(policy.refs, found.ref):
        raise _Refused(
            10,
            f"it was built from {found.ref or 'no branch and no tag'}",
            f"allowed: {', '.join(policy.refs)}",
        )
    # A config from elsewhere may build anything next to the repository's files.
    if not found.is_config_of_commit:
        raise _Refused(11, "its config is not a file of its source repository")
    if policy.configs and not allows(policy.configs, found.config):
        raise _Refused(
            12, f"it was built with {found.config}", f"allowed: {', '.join(policy.configs)}"
        )


def _check_source(found: Verified, policy: Policy) -> None:
    hint = f"allowed: {', '.join(policy.sources)}"
    if not found.repository:
        raise _Refused(8, "it was not built from a Git repository", hint)
    if policy.sources and not allows(policy.sources, found.repository):
        raise _Refused(8, f"it was built from another repository: {found.repository}", hint)
