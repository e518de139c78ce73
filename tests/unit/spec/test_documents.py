"""Documents rewritten as they stand give what decoding and encoding would."""

import pytest

from buildrunner.spec.model.build import Build
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_message, rewritten

BUILD = {
    "id": "1",
    "status": "SUCCESS",
    "steps": [{"name": "a", "status": "FAILURE"}, {"name": "b", "results": [{"name": "r"}]}],
    "options": {
        "machineType": "E2_HIGHCPU_8",
        "diskSizeGb": "100",
        "sourceProvenanceHash": ["SHA256", "MD5"],
        "pubsubTopic": "t",
        "dockerDaemon": "PRIVILEGED",
    },
    "timing": {"BUILD": {"startTime": "2024-05-31T12:00:00Z"}},
    "sourceProvenance": {"fileHashes": {"f": {"fileHash": [{"type": "SHA256", "value": "YQ=="}]}}},
    "warnings": [{"text": "w", "priority": "WARNING"}],
}
TRIGGER = {"name": "t", "build": BUILD, "cron": {"schedule": "* * * * *"}}


@pytest.mark.parametrize(("message", "document"), [(Build, BUILD), (BuildTrigger, TRIGGER)])
@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("published", [False, True])
def test_it_is_what_the_encoder_would_write(message, document, numbers, published):
    value = decode_message(message, document).value
    expected = encode_message(value, enum_numbers=numbers, published_only=published)
    assert rewritten(message, document, enum_numbers=numbers, published_only=published) == expected


def test_what_nobody_knows_goes_only_where_the_client_would_refuse_it():
    document = {"id": "1", "later": {"x": 1}, "status": "LATER"}
    assert rewritten(Build, document, enum_numbers=True) == document
    assert rewritten(Build, document, published_only=True) == {"id": "1", "status": "LATER"}
