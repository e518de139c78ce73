"""Each kind of failure has its code, and no answer tells more than it should."""

import msgspec
import pytest

from buildrunner.errors import (
    ConfigError,
    Conflict,
    FilterError,
    LeaseLost,
    NotFound,
    PageTokenError,
    SourceError,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from buildrunner.problem import Problem, Severity
from buildrunner.server.http.errors import ApiError, as_api_error, error_response, invalid_config


@pytest.mark.parametrize(
    ("error", "code", "status", "message"),
    [
        (NotFound("no build x in p"), 404, "NOT_FOUND", "Requested entity was not found."),
        (Conflict("taken"), 409, "ABORTED", "taken"),
        (LeaseLost("gone"), 409, "ABORTED", "gone"),
        (FilterError("wrong", hint="try so"), 400, "INVALID_ARGUMENT", "wrong; try so"),
        (PageTokenError("wrong"), 400, "INVALID_ARGUMENT", "wrong"),
        (StoreUnavailable("locked"), 503, "UNAVAILABLE", "the server's data"),
        (StoreError("broken"), 500, "INTERNAL", "internal error"),
        (UsageError("no"), 400, "INVALID_ARGUMENT", "no"),
        (SourceError("no"), 500, "INTERNAL", "no"),
        (ApiError(501, "no"), 501, "UNIMPLEMENTED", "no"),
        (ApiError(418, "tea"), 418, "UNKNOWN", "tea"),
        (KeyError("secret detail"), 500, "INTERNAL", "internal error"),
    ],
)
def test_an_error_has_its_code(error, code, status, message):
    answer = as_api_error(error)
    assert (answer.code, answer.status) == (code, status)
    assert str(answer).startswith(message)
    assert "secret" not in str(answer)


def test_a_locked_database_is_worth_another_try():
    response = error_response(as_api_error(StoreUnavailable("locked")))
    assert response.headers["Retry-After"] == "1"


def test_problems_are_in_the_message_and_in_the_details_warnings_are_not():
    problems = [
        Problem("is bad", path="steps[0]", hint="mend it"),
        Problem("is so so", path="tags", severity=Severity.WARNING),
        Problem("is missing"),
    ]
    error = as_api_error(ConfigError(problems))
    assert str(error) == "steps[0]: is bad; mend it; is missing"
    body = msgspec.json.decode(error_response(error).body)
    assert body["error"]["details"] == [
        {
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": [
                {"field": "steps[0]", "description": "is bad; mend it"},
                {"field": "", "description": "is missing"},
            ],
        }
    ]


def test_a_part_of_a_body_is_named_from_the_whole():
    error = invalid_config([Problem("is bad", path="decision")], prefix="approvalResult.")
    assert str(error) == "approvalResult.decision: is bad"
