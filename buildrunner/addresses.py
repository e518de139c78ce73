"""Internet addresses: which are public, and which lead to a machine itself or to its cloud."""

from __future__ import annotations

import ipaddress
import itertools
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

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
    """The networks that a build does not reach, and exceptions from them, as CIDR blocks (IPv4).

    The default denies link-local addresses and the metadata services of clouds, which hand out the
    machine's own identity.
    """

    deny: tuple[str, ...] = METADATA_NETWORKS
    allow: tuple[str, ...] = ()


_NO_HOSTS: Final = tuple(
    ipaddress.ip_network(one)
    for one in (
        "fd00:ec2::254/128",  # metadata of AWS
        "fd20:ce::254/128",  # metadata of Google Cloud
        "fd00:c1::a9fe:a9fe/128",  # metadata of Oracle Cloud
        "fec0::/10",  # of a site: replaced by fc00::/7
        "::/96",  # an IPv4 address inside; replaced by ::ffff:0:0/96
        "::ffff:0:0:0/96",  # an IPv4 address to translate
        "64:ff9b:1::/48",  # an IPv4 address to translate, in a network of its own
    )
)
_MOST_TRIED: Final = 4
_ANSWER_S: Final = 5.0
_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")  # carrier-grade NAT: not "global", too
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def address_of(host: str) -> Address | None:
    """Return the address that a host is written as, in any form that a resolver understands."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fx.]+", host, re.IGNORECASE):
        return None
    try:  # 127.1, 0x7f000001, 2130706433: what inet_aton takes, resolvers take
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


def is_public(address: Address) -> bool:
    """Return whether an address is one of the public internet."""
    address = unwrapped(address)
    if isinstance(address, ipaddress.IPv4Address) and address in _SHARED:
        return False
    return address.is_global and not address.is_multicast


def is_near(address: Address) -> bool:
    """Return whether an address means the machine itself, or its link to its neighbours."""
    address = unwrapped(address)
    return address.is_loopback or address.is_unspecified or address.is_link_local


def is_no_host(address: Address) -> bool:
    """Return whether an address is link-local, of a group, reserved, or a cloud's metadata.

    ``::`` and ``::1`` are this machine.
    """
    if address.is_loopback or address.is_unspecified:
        return False
    inside = any(address in network for network in _NO_HOSTS)
    return address.is_link_local or address.is_multicast or inside


def look_up(host: str) -> Sequence[str]:
    """Return every address of a host, as this machine's resolver knows it.

    IPv4 and IPv6 take turns: whoever tries only the first few has both.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    return in_turns(addresses)


def in_turns(addresses: Sequence[str]) -> Sequence[str]:
    """Return addresses with IPv4 and IPv6 by turns, beginning with the family of the first one."""
    first = [one for one in addresses if (":" in one) == (":" in addresses[0])]
    second = [one for one in addresses if one not in first]
    turns = itertools.chain.from_iterable(itertools.zip_longest(first, second))
    return tuple(one for one in turns if one)


def first_that_answers(addresses: Sequence[str], port: int) -> str:
    """Return the first of a few addresses that takes a connection; the very first if none does."""
    few = addresses[:_MOST_TRIED] if len(addresses) > 1 else ()
    for address in few:
        with suppress(OSError), socket.create_connection((address, port), _ANSWER_S):
            return address
    return addresses[0]
