"""What a caller of a webhook sent."""

import base64
import json

import pytest

from buildrunner.errors import UsageError
from buildrunner.triggers.forges.webhook import payload_of, secret_matches


def decode(body):
    try:
        return json.loads(body)
    except ValueError as error:
        raise UsageError("not JSON") from error


def wrapped(data):
    body = {"contentType": "application/json", "data": base64.b64encode(data).decode()}
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b"", None),
        (b" \n", None),
        (b'{"a": 1}', {"a": 1}),
        (b"[1]", [1]),
        (wrapped(b'{"a": 1}'), {"a": 1}),
        (wrapped(b""), None),
        (b'{"data": "YQ==", "other": 1}', {"data": "YQ==", "other": 1}),
        (b'{"contentType": "x", "data": {"a": 1}}', {"contentType": "x", "data": {"a": 1}}),
    ],
)
def test_a_payload_is_the_body_or_what_is_wrapped_in_it(body, payload):
    assert payload_of(body, decode) == payload


@pytest.mark.parametrize("body", [b"{", wrapped(b"{"), b'{"contentType": "x", "data": "%"}'])
def test_what_is_not_json_is_refused(body):
    with pytest.raises(UsageError):
        payload_of(body, decode)


@pytest.mark.parametrize(
    ("presented", "expected", "same"),
    [("s", "s", True), ("s", "s\n", True), ("s", "t", False), ("", "", False), ("é", "é", True)],
)
def test_the_secret_must_be_the_same_and_not_empty(presented, expected, same):
    assert secret_matches(presented, expected) is same
