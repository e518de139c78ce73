"""Whom the server believes when it calls others by TLS."""

from __future__ import annotations

import ssl


def tls_context() -> ssl.SSLContext:
    """A context that trusts the system's authorities, and those that every browser has.

    A self-hosted forge often has a certificate of its company's own authority, which is in the
    system's store, or in the file that ``SSL_CERT_FILE`` names.
    """
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
