"""Where builds may fetch from: every way to write a private address is one."""

import pytest

from buildrunner.errors import SourceError
from buildrunner.sources.git.url import parse_git_url
from buildrunner.sources.policy import (
    SourcePolicy,
    pinned,
    policy_from,
    policy_on_machine,
    policy_text,
    refusal_of_addresses,
    refusal_of_url,
    refusals,
)
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message

STRICT = SourcePolicy()
PRIVATE = SourcePolicy(private=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/owner/repository.git",
        "http://example.com:8080/r",
        "ssh://git@example.com/r",
        "git@github.com:owner/repository.git",
        "git://example.com/r",
        "ssh://me%40corp.example@source.example.com:2022/p/r",
        "ssh://my_git:/r",
        "https://8.8.8.8/r",
        "https://[2001:4860:4860::8888]/r",
        "https://user:password@example.com/r",
    ],
)
def test_public_places_are_allowed(url):
    assert refusal_of_url(STRICT, url) == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/r",
        "http://127.1/r",
        "http://2130706433/r",
        "http://0x7f000001/r",
        "http://0177.0.0.1/r",
        "http://0/r",
        "http://[::1]/r",
        "http://[::ffff:127.0.0.1]/r",
        "http://[::ffff:10.0.0.1]/r",
        "http://[64:ff9b::a00:1]/r",
        "http://[2002:7f00:1::]/r",
        "http://[fe80::1%25eth0]/r",
        "http://[fd00::1]/r",
        "http://10.1.2.3/r",
        "http://172.16.0.1/r",
        "http://192.168.1.1/r",
        "http://169.254.169.254/computeMetadata/v1",
        "http://100.64.0.1/r",
        "http://224.0.0.1/r",
        "http://localhost/r",
        "http://LOCALHOST:9000/r",
        "http://localhost./r",
        "http://x.localhost/r",
        "http://metadata.google.internal/r",
        "ssh://git@10.0.0.1/r",
        "git@10.0.0.1:r",
        "git@localhost:r",
        "http://user@127.0.0.1@127.0.0.1/r",
        "https://",
        "ftp://example.com/r",
        "ext::sh -c true",
        "https://example.com:99999999/r",
    ],
)
def test_private_places_are_refused_however_they_are_written(url):
    assert refusal_of_url(STRICT, url)


@pytest.mark.parametrize("url", ["file:///etc", "/etc", "./r", "../r", "~/r", "r"])
def test_the_servers_disk_is_refused_unless_it_is_allowed(url):
    assert "disk" in refusal_of_url(STRICT, url)
    assert "disk" in refusal_of_url(PRIVATE, url)
    assert refusal_of_url(SourcePolicy(files=True), url) == ""


def test_private_addresses_can_be_allowed_as_a_whole():
    for url in ("http://10.0.0.1/r", "http://localhost/r", "git@10.0.0.1:r"):
        assert refusal_of_url(PRIVATE, url) == ""


def test_single_hosts_can_be_allowed():
    policy = SourcePolicy(hosts=("git.local", ".corp.internal", "10.0.0.1"))
    for host in ("git.local", "a.corp.internal", "10.0.0.1"):
        assert refusal_of_url(policy, f"https://{host}/r") == ""
        assert refusal_of_addresses(policy, host, ["10.9.9.9"]) == ""
    for host in ("corp.internal", "xgit.local", "10.0.0.2"):
        assert refusal_of_url(policy, f"https://{host}/r")


@pytest.mark.parametrize(
    ("addresses", "refused"),
    [
        (["93.184.216.34"], False),
        (["93.184.216.34", "2001:4860:4860::8888"], False),
        (["93.184.216.34", "10.0.0.1"], True),
        (["::1"], True),
        (["nonsense"], True),
    ],
)
def test_one_bad_address_of_a_name_spoils_them_all(addresses, refused):
    assert bool(refusal_of_addresses(STRICT, "example.com", addresses)) is refused


def test_a_judged_address_is_tied_to_its_host():
    resolve = "http.curloptResolve"
    assert pinned("https://Example.com/r", ["1.2.3.4"]) == (resolve, "example.com:443:1.2.3.4")
    both = ["1.2.3.4", "2001::1"]
    assert pinned("http://e.com:81/r", both) == (resolve, "e.com:81:1.2.3.4,[2001::1]")
    instead = "url.git://[2001::1]:9418/.insteadOf"
    assert pinned("git://E.com/r", ["2001::1", "1.2.3.4"]) == (instead, "git://E.com/")
    assert pinned("git://e.com:1/r", ["1.2.3.4"]) == (
        "url.git://1.2.3.4:1/.insteadOf",
        "git://e.com:1/",
    )
    ssh = ("BUILDRUNNER_SSH_ADDRESSES", "e.com=1.2.3.4")
    assert pinned("ssh://e.com/r", ["1.2.3.4", "1.2.3.5"]) == ssh


@pytest.mark.parametrize(
    "policy",
    [STRICT, PRIVATE, SourcePolicy(files=True, hosts=("a.b", ".c")), SourcePolicy(private=True)],
)
def test_a_policy_travels_as_text(policy):
    assert policy_from(policy_text(policy)) == policy


def test_text_that_nobody_wrote_allows_nothing():
    assert policy_from("everything Private") == STRICT


@pytest.mark.parametrize(
    ("server", "machine", "both"),
    [(0, 0, 0), (5 << 30, 0, 5 << 30), (0, 2, 2 << 30), (5 << 30, 2, 2 << 30), (1, 2, 1)],
)
def test_a_machine_has_the_smaller_of_both_limits(server, machine, both):
    policy = policy_on_machine(SourcePolicy(private=True, largest_bytes=server), machine)
    assert policy == SourcePolicy(private=True, largest_bytes=both)


SUFFIX = SourcePolicy(hosts=(".corp.example",))


@pytest.mark.parametrize(
    "url",
    [
        "ssh://git@169.254.169.254%2f.corp.example/x",
        "git://127.0.0.1%2f.corp.example/x",
        "https://127.0.0.1%2f.corp.example/x",
        "ssh://169.254.169.254%2Fx@git.corp.example/x",
        "ssh://git.corp.example?@169.254.169.254/x",
        "ssh://git.corp.example#@169.254.169.254/x",
        "ssh://169.254.169.254?@git.corp.example/x",
        "ssh://a%40[169.254.169.254]x@git.corp.example/x",
        "ssh://a@%5b127.0.0.1%5dx@git.corp.example/x",
        "https://127.0.0.1\\.corp.example/x",
        "https://127.0.0.1\\@git.corp.example/x",
        "git@127.0.0.1%2f.corp.example:x",
        "[git@127.0.0.1:22].corp.example:x",
        "git@[127.0.0.1:22.corp.example]:x",
        "https://git.corp.example./x",
        "git@git.corp.example.:x",
        "https://gi\N{KELVIN SIGN}.corp.example/x",
        "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.corp.example/x",
    ],
)
def test_a_host_that_could_be_read_in_two_ways_is_refused(url):
    assert refusal_of_url(SUFFIX, "ssh://git@git.corp.example:2222/x") == ""
    assert refusal_of_url(SUFFIX, url)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://E.com/r", "e.com", 443),
        ("https://me:a%2Fb[?@e.com", None, None),
        ("https://me:a%2Fb[@e.com/r?a=1#x", "e.com", 443),
        ("git@E.com:r", "e.com", 22),
        ("ssh://git@[::1]:2222/r", "::1", 2222),
        ("git@[::1]:r", "::1", 22),
        ("/srv/r", "", 0),
    ],
)
def test_host_and_port_are_those_that_are_connected_to(url, host, port):
    if host is None:
        with pytest.raises(SourceError):
            parse_git_url(url)
        return
    parsed = parse_git_url(url)
    assert (parsed.host, parsed.port) == (host, port)


def test_source_and_dependencies_of_a_build_are_judged():
    build = decode_message(
        Build,
        {
            "steps": [{"name": "busybox"}],
            "source": {"gitSource": {"url": "http://localhost/r"}},
            "dependencies": [
                {"gitSource": {"repository": {"url": "https://e.com/r"}, "destPath": "a"}},
                {"gitSource": {"repository": {"url": "file:///r"}, "destPath": "b"}},
            ],
        },
    ).value
    refused = refusals(STRICT, build)
    assert [problem.path for problem in refused] == [
        "source.gitSource.url",
        "dependencies[1].gitSource.repository.url",
    ]
    assert refused[0].hint.endswith("--allow-source-host localhost")
    assert refused[1].hint.endswith("--allow-private-sources")
    assert refusals(SourcePolicy(private=True, files=True), build) == []
