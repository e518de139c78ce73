"""Internet addresses: which are public, and which lead to a machine itself or to its cloud."""

from __future__ import annotations

import ipaddress
import itertools
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal

import msgspec

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA_NETWORKS: Final = (
    "169.254.0.0/16",  # link-local: AWS, Azure, Google Cloud, OpenStack, ...
    "100.100.100.200/32",  # Alibaba Cloud
    "168.63.129.16/32",  # Azure's wire server
    "192.0.0.192/32",  # Oracle Cloud
)
"""Addresses of the metadata services of clouds, which give out a machine's identity (IPv4)."""


class Egress(msgspec.Struct, frozen=True, kw_only=True):
    """The networks that a build may not reach, and the exceptions, as CIDR blocks (IPv4).

    The default denies link-local addresses and the metadata services of clouds, which hand out the
    machine's own identity.
    """

    deny: tuple[str, ...] = METADATA_NETWORKS
    allow: tuple[str, ...] = ()

    def reached(self, other: Egress) -> tuple[str, ...]:
        """Return the networks that ``other`` denies, and that a build can reach under these rules.

        The exceptions of ``other`` do not count as denied. The metadata services of clouds are
        left out. A network that only several smaller networks together deny counts as reached.
        """
        denied, allowed = _networks(self.deny), _networks(self.allow)
        excepted = _networks(other.allow)
        return tuple(
            text
            for text in other.deny
            if text not in METADATA_NETWORKS
            and not _is_denied(ipaddress.IPv4Network(text), denied, allowed, excepted)
        )


NO_WALL: Final = Egress(deny=())
"""Denies no network."""


def _networks(texts: Sequence[str]) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(text) for text in texts]


def _is_denied(
    network: ipaddress.IPv4Network,
    denied: Sequence[ipaddress.IPv4Network],
    allowed: Sequence[ipaddress.IPv4Network],
    excepted: Sequence[ipaddress.IPv4Network],
) -> bool:
    """Return whether a network is denied or excepted, and ``allowed`` opens only excepted parts."""
    if not any(map(network.subnet_of, denied)) and not any(map(network.subnet_of, excepted)):
        return False
    open_again = [one for one in allowed if one.overlaps(network)]
    return all(any(map(one.subnet_of, excepted)) for one in open_again)


Kind = Literal["public", "private", "loopback", "unspecified", "none"]
"""The machines that an address may mean.

* ``public``: one of the internet.
* ``private``: one of a network of its own, or of a range that is reserved and used as such.
* ``loopback`` and ``unspecified``: the machine itself.
* ``none``: no other machine that a user would name. Those are link-local addresses, groups, the
  metadata services of clouds, and IPv6 addresses outside of the ranges in use, some of which carry
  an IPv4 address.
"""

# Not `is_global` of ipaddress, whose answers depend on the version of Python. Of the networks that
# hold an address, the smallest counts. Source: IANA's registries of special-purpose addresses.
_KINDS: Final[Mapping[Kind, Sequence[str]]] = {
    "public": ("0.0.0.0/0", "2000::/3"),
    "private": (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
        "100.64.0.0/10",  # carrier-grade NAT
        *("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4"),  # reserved
        "198.18.0.0/15",  # measurements; VPNs use it
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),  # examples
        *("2001:db8::/32", "3fff::/20"),  # examples
    ),
    "loopback": ("127.0.0.0/8", "::1/128"),
    "unspecified": ("0.0.0.0/32", "::/128"),
    "none": (
        *METADATA_NETWORKS,
        "fd00:ec2::254/128",  # metadata of AWS
        "fd20:ce::254/128",  # metadata of Google Cloud
        "fd00:c1::a9fe:a9fe/128",  # metadata of Oracle Cloud
        *("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32"),
        "::/0",
        "2001::/23",  # protocols, Teredo among them
    ),
}
_NETWORKS: Final = sorted(
    ((ipaddress.ip_network(text), kind) for kind, texts in _KINDS.items() for text in texts),
    key=lambda entry: -entry[0].prefixlen,
)
_MOST_TRIED: Final = 4
_ANSWER_S: Final = 5.0
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def address_of(host: str) -> Address | None:
    """Return the address that a host is written as, in any form that a resolver understands."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fx.]+", host, re.IGNORECASE):
        return None
    try:  # 127.1, 0x7f000001, 2130706433: resolvers accept all that inet_aton accepts
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def unwrapped(address: Address) -> Address:
    """Return the IPv4 address inside an IPv6 address; other addresses as they are."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return inner
    return address


def kind_of(address: Address) -> Kind:
    """Return which machine an address means. The address in an IPv6 address counts."""
    inner = unwrapped(address)
    return next(kind for network, kind in _NETWORKS if inner in network)


def is_public(address: Address) -> bool:
    """Return whether an address is one of the public internet."""
    return kind_of(address) == "public"


def is_loopback_host(host: str) -> bool:
    """Return whether a host, as a name or an address, can be nothing but this machine."""
    address = address_of(host.strip("[]"))
    return host.lower() == "localhost" or (address is not None and kind_of(address) == "loopback")


def network_of(address: str, prefix: int = 64) -> str:
    """Return the network that counts as one sender: an IPv4 address, or an IPv6 network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4 or parsed.ipv4_mapped is not None:
        return address
    return str(ipaddress.ip_network((int(parsed), prefix), strict=False))


def look_up(host: str) -> Sequence[str]:
    """Return every address of a host, as this machine's resolver knows it.

    IPv4 and IPv6 alternate, so that the first few addresses hold both.

    Raises:
        OSError: the host has no address.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    return in_turns(addresses)


def in_turns(addresses: Sequence[str]) -> Sequence[str]:
    """Return the addresses with IPv4 and IPv6 alternating; the first one stays the first."""
    first = [one for one in addresses if (":" in one) == (":" in addresses[0])]
    second = [one for one in addresses if one not in first]
    turns = itertools.chain.from_iterable(itertools.zip_longest(first, second))
    return tuple(one for one in turns if one)


def first_that_answers(addresses: Sequence[str], port: int) -> str:
    """Return the first address that accepts a connection; the very first one if none does.

    Only the first four addresses are tried.
    """
    few = addresses[:_MOST_TRIED] if len(addresses) > 1 else ()
    for address in few:
        with suppress(OSError), socket.create_connection((address, port), _ANSWER_S):
            return address
    return addresses[0]
