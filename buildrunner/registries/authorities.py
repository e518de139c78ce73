"""Whose certificates this machine trusts: whoever acts for the user must trust the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def trusted_authorities(environ: Mapping[str, str]) -> bytes:
    """The bundle of ``SSL_CERT_FILE``, else that of the system; empty where there is none.

    Raises:
        PackageError: the file that was named can't be read.
    """
    named = environ.get("SSL_CERT_FILE", "")
    for path in (named, *_BUNDLES):
        if not path:
            continue
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            if path == named:
                raise PackageError(
                    f"{path} can't be read: {error.strerror or error}",
                    hint="SSL_CERT_FILE names it: correct or unset that",
                ) from error
    return b""
