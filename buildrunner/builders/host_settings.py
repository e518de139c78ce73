"""Settings of this machine for package registries, which builds of builder images use, too.

Nothing here ends up in a file of the project. Mirrors and proxies are build arguments: proxies are
known to the engine and never recorded; only throw-away stages see mirrors of pip and npm.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping

import msgspec

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")

_MIRRORS = (
    "DEBIAN_MIRROR",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "NPM_CONFIG_REGISTRY",
    "GOPROXY",
    "GOSUMDB",
)
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s.*?\s-----END CERTIFICATE-----", re.DOTALL)
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_DISTRIBUTED = "/usr/share/ca-certificates"


class HostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of this machine with which a build reaches the outside.

    Attributes:
        arguments: build arguments (mirrors of Debian, pip, npm, Go) that are set on this machine.
        proxies: the proxy variables, in both spellings.
        certificates: certificates (PEM) that this machine trusts beyond those of its distribution.
    """

    arguments: dict[str, str] = {}
    proxies: dict[str, str] = {}
    certificates: tuple[str, ...] = ()


def read_host_settings(
    environ: Mapping[str, str], *, root: str = "/", certificates_file: str | None = None
) -> HostSettings:
    """Read this machine's settings.

    Args:
        environ: the process's environment; its variables win over files.
        root: the folder that the files are read below.
        certificates_file: PEM file with further certificates to trust; None looks for those that
            the machine's administrator added to its trust store.
    """
    if certificates_file is None:
        certificates = _added_certificates(environ, root)
    else:
        certificates = tuple(_certificates_in(certificates_file))
    return HostSettings(
        arguments=_arguments(environ, root), proxies=_proxies(environ), certificates=certificates
    )


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    proxies = {}
    for name in PROXY_VARIABLES:
        if value := environ.get(name) or environ.get(name.lower()):
            proxies[name] = proxies[name.lower()] = value
    return proxies


def _arguments(environ: Mapping[str, str], root: str) -> dict[str, str]:
    arguments = _pip_indexes(environ, root)
    for name in _MIRRORS:
        if value := environ.get(name) or environ.get(name.lower()):
            arguments[name] = value
    return arguments


def _pip_indexes(environ: Mapping[str, str], root: str) -> dict[str, str]:
    home = environ.get("HOME", "")
    parser = configparser.RawConfigParser(strict=False)
    parser.read(
        [
            os.path.join(root, "etc/pip.conf"),
            os.path.join(root, "etc/xdg/pip/pip.conf"),
            os.path.join(home, ".pip/pip.conf"),
            os.path.join(home, ".config/pip/pip.conf"),
        ]
    )
    found = {}
    for option in ("index-url", "extra-index-url"):
        urls = parser.get("global", option, fallback="").split()
        # A folder of this machine (file:///...) means nothing inside a container.
        usable = [url for url in urls if url.startswith(("http://", "https://"))]
        if usable:
            found["PIP_" + option.upper().replace("-", "_")] = " ".join(usable)
    return found


def _added_certificates(environ: Mapping[str, str], root: str) -> tuple[str, ...]:
    """Return certificates of the machine's bundle that are not from its distribution."""
    distributed = os.path.join(root, _DISTRIBUTED.lstrip("/"))
    if not os.path.isdir(distributed):
        return ()
    bundles = [environ.get("SSL_CERT_FILE", ""), *(os.path.join(root, b[1:]) for b in _BUNDLES)]
    bundle = next((path for path in bundles if path and os.path.isfile(path)), "")
    if not bundle:
        return ()
    known: set[str] = set()
    for parent, _, names in os.walk(distributed):
        for name in names:
            if name.endswith(".crt"):
                known.update(map(_essence, _certificates_in(os.path.join(parent, name))))
    return tuple(text for text in _certificates_in(bundle) if _essence(text) not in known)


def _certificates_in(path: str) -> list[str]:
    with open(path, encoding="ascii", errors="replace") as file:
        return _CERTIFICATE.findall(file.read())


def _essence(certificate: str) -> str:
    """Return the certificate without white space, for comparisons."""
    return "".join(certificate.split())
