"""What an address means: the same on every version of Python."""

import ipaddress

import pytest

from buildrunner.addresses import (
    NO_WALL,
    Egress,
    address_of,
    is_loopback_host,
    is_public,
    kind_of,
    network_of,
)

KINDS = {
    "public": """1.1.1.1 93.184.216.34 100.63.255.255 100.128.0.0 172.32.0.1 11.0.0.1 2606:4700::1
        2a00:1450::1 2001:200::1 2001:4860:4860::8888 ::ffff:1.1.1.1 64:ff9b::101:101
        2002:101:101::1 3ffe::1""",
    "private": """10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 fc00::1
        fd12::1 198.18.0.1 192.0.2.1 203.0.113.9 240.0.0.1 2001:db8::1 3fff::1 ::ffff:10.0.0.1
        64:ff9b::a00:1 2002:a00:1::1 ::ffff:c0a8:101""",
    "loopback": "127.0.0.1 127.0.1.1 127.255.255.255 ::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 "
    "2002:7f00:1::1",
    "unspecified": "0.0.0.0 :: ::ffff:0.0.0.0",
    "none": """169.254.169.254 169.254.0.1 100.100.100.200 168.63.129.16 192.0.0.192
        224.0.0.1 239.1.1.1 255.255.255.255 0.1.2.3 fe80::1 ff02::1
        fd00:ec2::254 fd20:ce::254 fd00:c1::a9fe:a9fe
        fec0::1 ::7f00:1 ::a00:1 ::ffff:0:7f00:1 64:ff9b:1::7f00:1 64:ff9b:1::1
        2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:0:7f00:1:: 2001:20::1 100::1 4000::1 5f00::1
        8000::1 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1""",
}


@pytest.mark.parametrize(
    ("text", "kind"), [(text, kind) for kind, texts in KINDS.items() for text in texts.split()]
)
def test_an_address_means_a_machine_of_one_kind(text, kind):
    address = ipaddress.ip_address(text)
    assert kind_of(address) == kind
    assert is_public(address) == (kind == "public")


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("10.1", "10.0.0.1"),
    ],
)
def test_an_address_is_known_in_every_form_that_resolvers_take(written, address):
    assert address_of(written) == ipaddress.ip_address(address)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *[(host, True) for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.1", "[::1]")],
        *[(host, True) for host in ("::1", "::ffff:127.0.0.1", "127.0.1.1")],
        *[
            (host, False)
            for host in ("", "0.0.0.0", "::", "::1:2", "127.0.0.1.example", "10.0.0.1")
        ],
        *[(host, False) for host in ("localhost.example", "a.localhost", "myhost")],
    ],
)
def test_a_host_can_only_be_this_machine_if_it_is_written_so(host, expected):
    assert is_loopback_host(host) is expected


@pytest.mark.parametrize(
    ("wall", "wanted", "reached"),
    [
        (Egress(), Egress(), ()),
        (NO_WALL, Egress(), ()),  # metadata services are left out
        (Egress(), Egress(deny=("10.0.0.0/8",)), ("10.0.0.0/8",)),
        (Egress(deny=("10.0.0.0/8",)), Egress(deny=("10.1.0.0/16", "10.0.0.0/8")), ()),
        (Egress(deny=("10.1.0.0/16",)), Egress(deny=("10.0.0.0/8",)), ("10.0.0.0/8",)),
        (Egress(deny=("0.0.0.0/0",)), Egress(deny=("10.0.0.0/8", "192.0.2.1")), ()),
        (
            Egress(deny=("0.0.0.0/0",), allow=("10.1.2.3",)),
            Egress(deny=("10.0.0.0/8", "192.0.2.1")),
            ("10.0.0.0/8",),
        ),
        (
            Egress(deny=("0.0.0.0/0",), allow=("10.1.2.3",)),
            Egress(deny=("10.0.0.0/8",), allow=("10.1.2.0/24",)),
            (),
        ),
        (NO_WALL, Egress(deny=("10.1.2.3",), allow=("10.1.2.0/24",)), ()),
    ],
)
def test_a_wall_leaves_open_what_another_one_denies(wall, wanted, reached):
    assert wall.reached(wanted) == reached


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "::ffff:203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_an_ipv6_network_counts_as_one_sender(address, network):
    assert network_of(address) == network
