"""Attestations beside an image in its registry, and the way back from an image to them.

An attestation is attached twice: as a referrer (OCI 1.1), in the form of a Sigstore bundle, which
cosign 3 and others look for; and in the tag scheme of cosign 2, ``sha256-DIGEST.att``.

Source: https://github.com/sigstore/cosign/blob/main/specs/ATTESTATION_SPEC.md and BUNDLE_SPEC.md.
"""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any, Final

from buildrunner.errors import RegistryError
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
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_PREDICATE = "predicateType"
_MOST_REFERRERS = 100


def attach(repository: Repository, image: Manifest, envelope: bytes) -> None:
    """Store an attestation of an image beside it, in both forms.

    Args:
        repository: where the image is.
        image: its manifest.
        envelope: a DSSE envelope of an in-toto statement about the image, as JSON.

    Raises:
        RegistryError: the registry does not take it.
    """
    predicate = _predicate_of(envelope)
    _attach_referrer(repository, image, envelope, predicate)
    _attach_tag(repository, image, envelope, predicate)


def attached(repository: Repository, digest: str) -> list[bytes]:
    """Return the DSSE envelopes that are attached to an image, each once.

    Raises:
        RegistryError: the registry refuses or breaks.
    """
    found: dict[bytes, None] = {}
    for one in repository.referrers(digest)[:_MOST_REFERRERS]:
        # Some registries report the type of the empty config in place of the artifact's.
        if one.get("artifactType", "") in (BUNDLE_TYPE, _EMPTY_TYPE, ""):
            for blob in _layers(repository, str(one.get("digest", "")), BUNDLE_TYPE):
                if envelope := _envelope_of(blob):
                    found[envelope] = None
    for blob in _layers(repository, _tag(digest), ENVELOPE_TYPE):
        found[_canonical(blob)] = None
    return list(found)


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
    repository: Repository, image: Manifest, envelope: bytes, predicate: str
) -> None:
    bundle = bundle_of(envelope)
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
        # A registry that does not say so keeps no list of referrers.
        _list_referrer(repository, image.digest, body, annotations)


def _list_referrer(
    repository: Repository, digest: str, body: bytes, annotations: dict[str, str]
) -> None:
    """Add a manifest to the list of referrers that clients keep under a tag."""
    tag = referrers_tag(digest)
    found = repository.manifest(tag)
    listed = json.loads(found.body).get("manifests", []) if found else []
    entry = {
        "mediaType": MANIFEST,
        "digest": sha256(body),
        "size": len(body),
        "artifactType": BUNDLE_TYPE,
        "annotations": annotations,
    }
    kept = [one for one in listed if one.get("digest") != entry["digest"]]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*kept, entry]}
    repository.put_manifest(tag, json.dumps(index, separators=(",", ":")).encode(), INDEX)


def _attach_tag(repository: Repository, image: Manifest, envelope: bytes, predicate: str) -> None:
    """Add the envelope as a layer of cosign's manifest, after those that are there."""
    layer = {
        **_stored(repository, envelope, ENVELOPE_TYPE),
        "annotations": {"dev.cosignproject.cosign/signature": "", _PREDICATE: predicate},
    }
    found = repository.manifest(_tag(image.digest))
    layers = json.loads(found.body).get("layers", []) if found else []
    layers = [one for one in layers if one.get("digest") != layer["digest"]]
    layers.append(layer)
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
    repository.put_manifest(_tag(image.digest), body, MANIFEST)


def _stored(repository: Repository, data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": repository.put_blob(data), "size": len(data)}


def _layers(repository: Repository, reference: str, media_type: str) -> list[bytes]:
    found = repository.manifest(reference) if reference else None
    if found is None:
        return []
    try:
        layers = [
            str(one["digest"])
            for one in json.loads(found.body)["layers"]
            if one["mediaType"] == media_type
        ]
    except (ValueError, LookupError, TypeError):
        return []
    return [repository.blob(digest) for digest in layers]


def _envelope_of(bundle: bytes) -> bytes | None:
    """Return the envelope in a bundle; None for a bundle of another kind."""
    try:
        return _dump(json.loads(bundle)["dsseEnvelope"])
    except (ValueError, LookupError, TypeError):
        return None


def _canonical(envelope: bytes) -> bytes:
    try:
        return _dump(json.loads(envelope))
    except ValueError:
        return envelope


def _dump(envelope: Any) -> bytes:
    return json.dumps(envelope, separators=(",", ":")).encode()


def _predicate_of(envelope: bytes) -> str:
    try:
        return str(json.loads(b64decode(json.loads(envelope)["payload"]))[_PREDICATE])
    except (ValueError, LookupError, TypeError) as error:
        raise RegistryError("an attestation without a statement can't be attached") from error


def _tag(digest: str) -> str:
    return f"{referrers_tag(digest)}.att"
