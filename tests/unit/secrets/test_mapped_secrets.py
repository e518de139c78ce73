"""Secrets that the user maps to the environment and to files."""

import pytest

from buildrunner.errors import SecretError, UsageError
from buildrunner.plan.build_plan import SecretReference
from buildrunner.secrets.provider import MappedSecrets, ProviderChain, parse_mapping

VERSION = "projects/p/secrets/api-key/versions/latest"


def resolve(mapping, environ, reference=None):
    return ProviderChain([MappedSecrets(mapping, environ)]).resolve(reference or REFERENCE)


REFERENCE = SecretReference("API_KEY", "secretManager", VERSION)


@pytest.mark.parametrize("name", [VERSION, "projects/p/secrets/api-key", "api-key", "API_KEY"])
def test_a_secret_is_found_under_each_of_its_names(name):
    assert resolve({name: "env:KEY"}, {"KEY": "value\n"}) == "value\n"


def test_the_most_exact_name_wins():
    mapping = {"api-key": "env:SHORT", VERSION: "env:EXACT"}
    assert resolve(mapping, {"SHORT": "s", "EXACT": "e"}) == "e"


def test_a_file_is_taken_as_it_is(tmp_path):
    (tmp_path / "key").write_bytes("ünï\n".encode())
    assert resolve({"api-key": f"file:{tmp_path}/key"}, {}) == "ünï\n"


def test_a_kms_ciphertext_is_mapped_by_its_variable_only():
    reference = SecretReference("PASSWORD", "kms", "projects/p/.../cryptoKeys/k", "AbC=")
    assert resolve({"PASSWORD": "env:P"}, {"P": "v"}, reference) == "v"
    with pytest.raises(SecretError, match="PASSWORD"):
        resolve({"k": "env:P"}, {"P": "v"}, reference)


@pytest.mark.parametrize(
    ("mapping", "part"),
    [
        ({}, "no --secret and no .secrets. setting names it"),
        ({"api-key": "env:NOT_SET"}, "NOT_SET, which is not set"),
        ({"api-key": "file:/nowhere/key"}, "No such file"),
    ],
)
def test_a_missing_secret_is_named_with_its_variable(mapping, part):
    with pytest.raises(SecretError, match=part) as caught:
        resolve(mapping, {})
    assert VERSION in str(caught.value)
    assert "API_KEY" in str(caught.value)


def test_no_error_shows_the_value(tmp_path):
    (tmp_path / "key").write_bytes(b"hunter2\xff")
    with pytest.raises(SecretError) as caught:
        resolve({"api-key": f"file:{tmp_path}/key"}, {})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "key").write_bytes(b"x" * 65537)
    with pytest.raises(SecretError, match="larger than 65536 bytes"):
        resolve({"api-key": f"file:{tmp_path}/key"}, {})


def test_flag_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_mapping({"a": "file:key"}) == {"a": f"file:{tmp_path}/key"}


@pytest.mark.parametrize("source", ["hunter2", "env:", "vault:x", ""])
def test_a_value_on_the_command_line_is_refused_without_repeating_it(source):
    with pytest.raises(UsageError) as caught:
        parse_mapping({"api-key": source})
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
