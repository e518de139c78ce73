from __future__ import annotations

import pytest

from buildrunner.builders.host_settings import read_host_settings


def certificate(text: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----"


@pytest.fixture
def machine(tmp_path):
    """A machine whose administrator added one certificate to those of its distribution."""
    distributed = tmp_path / "usr/share/ca-certificates/mozilla"
    distributed.mkdir(parents=True)
    (distributed / "one.crt").write_text(certificate("AAAA\nBBBB"))
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "etc/ssl/certs/ca-certificates.crt").write_text(
        f"{certificate('AAAABBBB')}\n# ours\n{certificate('CCCC')}\n"
    )
    return tmp_path


def test_only_added_certificates_are_taken_over(machine) -> None:
    assert read_host_settings({}, root=str(machine)).certificates == (certificate("CCCC"),)


def test_the_bundle_that_the_environment_names_wins(machine) -> None:
    (machine / "bundle.pem").write_text(certificate("DDDD"))
    environ = {"SSL_CERT_FILE": str(machine / "bundle.pem")}
    settings = read_host_settings(environ, root=str(machine))
    assert settings.certificates == (certificate("DDDD"),)


def test_a_machine_that_tells_not_what_its_distribution_trusts_adds_none(tmp_path) -> None:
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "etc/ssl/certs/ca-certificates.crt").write_text(certificate("CCCC"))
    assert read_host_settings({}, root=str(tmp_path)).certificates == ()


def test_a_file_of_certificates_replaces_what_was_found(machine) -> None:
    given = machine / "given.pem"
    given.write_text(f"{certificate('EEEE')}\n{certificate('FFFF')}\n")
    settings = read_host_settings({}, root=str(machine), certificates_file=str(given))
    assert settings.certificates == (certificate("EEEE"), certificate("FFFF"))


def test_proxies_are_passed_in_both_spellings(tmp_path) -> None:
    environ = {"https_proxy": "http://proxy:3128", "NO_PROXY": "localhost", "HTTP_PROXY": ""}
    assert read_host_settings(environ, root=str(tmp_path)).proxies == {
        "HTTPS_PROXY": "http://proxy:3128",
        "https_proxy": "http://proxy:3128",
        "NO_PROXY": "localhost",
        "no_proxy": "localhost",
    }


def test_mirrors_come_from_the_environment_or_from_pips_files(tmp_path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text(
        "[global]\nindex-url = https://mirror.test/simple\n"
        "extra-index-url = file:///opt/simple\n    https://more.test/simple\n"
    )
    environ = {"DEBIAN_MIRROR": "http://debian.test/debian"}
    assert read_host_settings(environ, root=str(tmp_path)).arguments == {
        "DEBIAN_MIRROR": "http://debian.test/debian",
        "PIP_INDEX_URL": "https://mirror.test/simple",
        "PIP_EXTRA_INDEX_URL": "https://more.test/simple",
    }
    environ = {"PIP_INDEX_URL": "https://mine.test/simple"}
    arguments = read_host_settings(environ, root=str(tmp_path)).arguments
    assert arguments["PIP_INDEX_URL"] == "https://mine.test/simple"


def test_an_ordinary_machine_has_nothing_to_pass(tmp_path) -> None:
    settings = read_host_settings({"HOME": str(tmp_path)}, root=str(tmp_path))
    assert (settings.arguments, settings.proxies, settings.certificates) == ({}, {}, ())
