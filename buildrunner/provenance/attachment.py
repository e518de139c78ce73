"""Attestations and signatures beside an image in its registry, and the way back to attestations.

An attestation is attached twice: as a referrer (OCI 1.1), in the form of a Sigstore bundle, which
cosign 3 and others look for; and in the tag scheme of cosign 2, ``sha256-DIGEST.att``. `cosign
verify` of version 3 accepts the bundle as a signature; version 2 and policy controllers look for
the tag ``sha256-DIGEST.sig``. Keyless attestations are bundles, and attached as referrers only.

Source: https://github.com/sigstore/cosign/blob/main/specs/ATTESTATION_SPEC.md, BUNDLE_SPEC.md and
SIGNATURE_SPEC.md.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any, Final, TypeVar

from securesystemslib.signer import Signer, SSlibKey

from buildrunner.errors import RegistryError
from buildrunner.provenance.signing import (
    envelope_in,
    image_claim,
    is_keyless,
    is_signature,
    signature_of,
)
from buildrunner.registries.distribution import (
    INDEX,
    MANIFEST,
    Manifest,
    Repository,
    referrers_tag,
    sha256,
)

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
CLAIM_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_PREDICATE = "predicateType"
_SIGNATURE = "dev.cosignproject.cosign/signature"
_MOST_ATTESTATIONS = 10_000  # of each form
_LARGEST_BYTES = 4 << 20
_Read = TypeVar("_Read")


def attach(repository: Repository, image: Manifest, attestation: bytes) -> None:
    """Store an attestation of an image beside it, in all forms that it can have.

    Args:
        repository: where the image is.
        image: its manifest.
        attestation: a DSSE envelope of an in-toto statement about the image, as JSON; or a Sigstore
            bundle of one.

    Raises:
        RegistryError: the registry refuses it.
    """
    predicate = _predicate_of(attestation)
    keyless = is_keyless(attestation)
    bundle = attestation if keyless else bundle_of(attestation)
    _attach_referrer(repository, image, bundle, predicate)
    if not keyless:
        _attach_tag(repository, image, attestation, predicate)


def attach_signature(repository: Repository, image: Manifest, signer: Signer) -> None:
    """Sign an image in the form of cosign. A signature of the same key is not added twice.

    Raises:
        AttestationError: the signer does not sign.
        RegistryError: the registry refuses it.
    """
    claim = image_claim(repository.name, image.digest)
    tag = _tag(image.digest, "sig")
    layers = _tag_layers(repository, tag)
    if any(_is_signed(claim, layer, signer) for layer in layers):
        return
    layer = {
        **_stored(repository, claim, CLAIM_TYPE),
        "annotations": {_SIGNATURE: b64encode(signature_of(claim, signer)).decode()},
    }
    _put_layers(repository, tag, [*layers, layer])


def attached(repository: Repository, digest: str) -> Iterator[bytes]:
    """Yield the attestations of an image, each once: DSSE envelopes, and keyless bundles.

    Each attestation is read when the caller requests it: a caller can stop at the first good one.
    Everybody who may push to the repository can attach more, so that unreadable attestations, and
    those larger than 4 MiB, are passed over.

    Raises:
        RegistryError: after the last attestation, if some can't be read; says why the first can't.
    """
    unread: list[RegistryError] = []
    seen: set[str] = set()
    for kind, layer in chain(
        _first(_bundles(repository, digest, unread), unread),
        _first(_envelopes(repository, digest, unread), unread),
    ):
        blob = _read(unread, partial(repository.blob, layer, most_bytes=_LARGEST_BYTES))
        if blob is None:
            continue
        attestation = _canonical(blob) if kind == ENVELOPE_TYPE else _attestation_in(blob)
        if attestation and sha256(attestation) not in seen:
            seen.add(sha256(attestation))
            yield attestation
    if unread:
        raise RegistryError(
            f"not all attestations of {repository.name}@{digest} can be read: {unread[0]}",
            hint=unread[0].hint,
        )


def bundle_of(envelope: bytes) -> bytes:
    """Return the Sigstore bundle of a DSSE envelope that a key has signed."""
    parsed = json.loads(envelope)
    # Readers of bundles refuse fields that they do not know; cosign's tag keeps the certificate.
    signatures = [
        {name: value for name, value in one.items() if name != "cert"}
        for one in parsed["signatures"]
    ]
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": parsed["signatures"][0]["keyid"]},
            "tlogEntries": [],
        },
        "dsseEnvelope": {**parsed, "signatures": signatures},
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def _attach_referrer(
    repository: Repository, image: Manifest, bundle: bytes, predicate: str
) -> None:
    annotations = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": predicate,
    }
    subject = {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": len(image.body),
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": BUNDLE_TYPE,
        "config": _stored(repository, b"{}", _EMPTY_TYPE),
        "layers": [_stored(repository, bundle, BUNDLE_TYPE)],
        "subject": subject,
        "annotations": annotations,
    }
    body = json.dumps(manifest, separators=(",", ":")).encode()
    if not repository.put_manifest(sha256(body), body, MANIFEST):
        # Without this answer, the registry keeps no list of referrers.
        _list_referrer(repository, image.digest, body, annotations)


def _list_referrer(
    repository: Repository, digest: str, body: bytes, annotations: dict[str, str]
) -> None:
    """Add a manifest to the list of referrers that clients keep under a tag."""
    tag = referrers_tag(digest)
    found = repository.manifest(tag)
    entry = {
        "mediaType": MANIFEST,
        "digest": sha256(body),
        "size": len(body),
        "artifactType": BUNDLE_TYPE,
        "annotations": annotations,
    }
    kept = [one for one in _entries(found, "manifests") if one.get("digest") != entry["digest"]]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*kept, entry]}
    repository.put_manifest(tag, json.dumps(index, separators=(",", ":")).encode(), INDEX)


def _attach_tag(repository: Repository, image: Manifest, envelope: bytes, predicate: str) -> None:
    """Add the envelope as a layer of cosign's manifest, after the existing layers."""
    layer = {
        **_stored(repository, envelope, ENVELOPE_TYPE),
        "annotations": {_SIGNATURE: "", _PREDICATE: predicate},
    }
    tag = _tag(image.digest, "att")
    layers = [one for one in _tag_layers(repository, tag) if one.get("digest") != layer["digest"]]
    _put_layers(repository, tag, [*layers, layer])


def _tag_layers(repository: Repository, tag: str) -> list[dict[str, Any]]:
    found = repository.manifest(tag)
    return _entries(found, "layers")


def _entries(found: Manifest | None, field: str) -> list[dict[str, Any]]:
    """Return the descriptors in a field of a manifest; none without a manifest."""
    if found is None:
        return []
    try:
        return [{**one} for one in json.loads(found.body).get(field, [])]
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise RegistryError(f"the registry's manifest {found.digest} can't be read") from error


def _put_layers(repository: Repository, tag: str, layers: list[dict[str, Any]]) -> None:
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [one["digest"] for one in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _stored(repository, json.dumps(config).encode(), _CONFIG_TYPE),
        "layers": layers,
    }
    body = json.dumps(manifest, separators=(",", ":")).encode()
    repository.put_manifest(tag, body, MANIFEST)


def _stored(repository: Repository, data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": repository.put_blob(data), "size": len(data)}


def _bundles(
    repository: Repository, digest: str, unread: list[RegistryError]
) -> Iterator[tuple[str, str]]:
    """Yield media type and digest of the Sigstore bundle in each referrer of an image."""
    # Some registries report the type of the empty config in place of the artifact's.
    untyped = []
    for one in _referrers(repository, digest, unread):
        kind, reference = one.get("artifactType", ""), str(one.get("digest", ""))
        if kind == BUNDLE_TYPE:
            yield from _bundle(repository, reference, unread)
        elif kind in (_EMPTY_TYPE, ""):
            untyped.append(reference)
    for reference in untyped:
        yield from _bundle(repository, reference, unread)


def _referrers(
    repository: Repository, digest: str, unread: list[RegistryError]
) -> Iterator[dict[str, Any]]:
    try:
        yield from repository.referrers(digest)
    except RegistryError as error:
        unread.append(error)


def _bundle(
    repository: Repository, reference: str, unread: list[RegistryError]
) -> Iterator[tuple[str, str]]:
    # A referrer has one bundle.
    yield from islice(_layers(repository, reference, BUNDLE_TYPE, unread), 1)


def _envelopes(
    repository: Repository, digest: str, unread: list[RegistryError]
) -> Iterator[tuple[str, str]]:
    """Yield media type and digest of each envelope below cosign's tag."""
    yield from _layers(repository, _tag(digest, "att"), ENVELOPE_TYPE, unread)


def _layers(
    repository: Repository, reference: str, media_type: str, unread: list[RegistryError]
) -> Iterator[tuple[str, str]]:
    found = _read(unread, partial(repository.manifest, reference)) if reference else None
    try:
        layers = json.loads(found.body)["layers"] if found else []
        digests = [str(one["digest"]) for one in layers if one["mediaType"] == media_type]
    except (ValueError, RecursionError, LookupError, TypeError):
        return
    yield from ((media_type, digest) for digest in digests)


def _first(
    layers: Iterator[tuple[str, str]], unread: list[RegistryError]
) -> Iterator[tuple[str, str]]:
    yield from islice(layers, _MOST_ATTESTATIONS)
    if next(layers, None):
        unread.append(RegistryError(f"there are more than {_MOST_ATTESTATIONS:,}"))


def _read(unread: list[RegistryError], read: Callable[[], _Read]) -> _Read | None:
    """Return what ``read`` returns; None if the registry refuses or breaks, which is recorded."""
    try:
        return read()
    except RegistryError as error:
        unread.append(error)
        return None


def _attestation_in(bundle: bytes) -> bytes | None:
    """Return a keyless bundle as it is, and the envelope of another; None without an envelope."""
    try:
        if is_keyless(bundle):
            return bundle
        return _dump(json.loads(bundle)["dsseEnvelope"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


def _canonical(envelope: bytes) -> bytes:
    try:
        return _dump(json.loads(envelope))
    except (ValueError, RecursionError):
        return envelope


def _dump(envelope: Any) -> bytes:
    return json.dumps(envelope, separators=(",", ":")).encode()


def _predicate_of(attestation: bytes) -> str:
    try:
        return str(json.loads(b64decode(envelope_in(attestation)["payload"]))[_PREDICATE])
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise RegistryError("an attestation without a statement can't be attached") from error


def _is_signed(claim: bytes, layer: dict[str, Any], signer: Signer) -> bool:
    """Return whether a layer holds the signature of a claim by the key of a signer."""
    try:
        signature = b64decode(layer["annotations"][_SIGNATURE])
        is_claim = layer["digest"] == sha256(claim)
    except (LookupError, TypeError, ValueError):
        return False
    key = signer.public_key
    return is_claim and isinstance(key, SSlibKey) and is_signature(claim, signature, key)


def _tag(digest: str, kind: str) -> str:
    return f"{referrers_tag(digest)}.{kind}"
