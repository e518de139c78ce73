"""The filter language of lists: parsing, and matching a build by its document."""

from __future__ import annotations

import re
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.errors import FilterError
from buildrunner.store.list_filter import (
    And,
    Anywhere,
    Expression,
    Not,
    Operand,
    Or,
    Term,
    matches,
    parse_filter,
)
from buildrunner.store.records import parse_instant

BUILD: dict[str, Any] = {
    "id": "b-1",
    "projectId": "p",
    "status": "SUCCESS",
    "createTime": "2024-05-31T12:00:00Z",
    "startTime": "2024-05-31T12:00:01.500Z",
    "timeout": "600s",
    "buildTriggerId": "t-1",
    "tags": ["a", "b c"],
    "images": ["gcr.io/p/app:1.2", "gcr.io/p/web"],
    "substitutions": {"BRANCH_NAME": "main", "_X": "", "_DOTS": "a.b"},
    "source": {"repoSource": {"repoName": "app", "branchName": "feature/x"}},
    "options": {"machineType": "E2_HIGHCPU_8", "diskSizeGb": "200", "dynamicSubstitutions": True},
    "results": {"images": [{"name": "x", "digest": "sha256:1"}, {"name": "y"}]},
    "steps": [{"name": "alpine", "exitCode": 0}, {"name": "Debian", "exitCode": 3}],
    "timing": {"BUILD": {"startTime": "2024-05-31T12:00:02Z"}},
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        'status="SUCCESS"',
        "status=SUCCESS",
        "status = 'SUCCESS'",
        'status:"SUCCESS"',
        'status!="FAILURE"',
        'NOT status="FAILURE"',
        '-status="FAILURE"',
        '-(status="FAILURE" OR status="TIMEOUT")',
        'status="WORKING" OR status="SUCCESS"',
        '(status="WORKING" OR status="SUCCESS") AND tags="a"',
        'status="SUCCESS" tags="a"',
        'tags="a" AND tags="b c"',
        "tags:a",
        'tags!="c"',
        "tags:*",
        'NOT tags="c"',
        'build_id="b-1"',
        'buildId="b-1"',
        'id="b-1"',
        'trigger_id="t-1"',
        'build_trigger_id="t-1"',
        "buildTriggerId=t-1",
        'project_id="p"',
        'create_time="2024-05-31T12:00:00.000+00:00"',
        'create_time>="2024-05-31"',
        "create_time<2024-05-31T14:00:01+02:00",
        'createTime>"2024-05-31T11:59:59.999999Z"',
        'start_time>"2024-05-31T12:00:01.499Z"',
        'start_time<"2024-05-31T12:00:01.501Z"',
        'NOT finish_time<"9999-12-31T23:59:59-23:59"',
        'finish_time!="2024-05-31T12:00:00Z"',
        "start_time:*",
        "NOT finish_time:*",
        "images=gcr.io/p/app:1.2",
        'images>"gcr.io/p/v"',
        'substitutions.BRANCH_NAME="main"',
        'substitutions._X=""',
        "substitutions._DOTS=a.b",
        "substitutions:_X",
        "substitutions:*",
        "NOT substitutions:NOPE",
        'substitutions.NOPE!="x"',
        'source.repo_source.branch_name="feature/x"',
        'source.repoSource.branchName="feature/x"',
        'source.repo_source.tag_name!="v1"',
        "source.repo_source:*",
        "NOT source.storage_source:*",
        'options.machine_type="E2_HIGHCPU_8"',
        "options.disk_size_gb>=200",
        "options.disk_size_gb>-1",
        "options.dynamic_substitutions=true",
        "timeout>599.5s",
        'timeout="600s"',
        "queue_ttl!=600s",
        'results.images.digest="sha256:1"',
        'results.images.digest!="sha256:2"',
        'results.images.name="y"',
        "steps.exit_code=3",
        "steps.exit_code!=4",
        'status_detail=""',
        "timing.BUILD.start_time>2024-05-31T12:00:01Z",
        "debian",
        "FEATURE/x success",
        '"b c"',
        'NOT "nowhere to be found"',
        'status="SUCCESS" OR tags="nope" OR x NOT nope tags=a',
    ],
)
def test_what_matches(text: str) -> None:
    assert matches(parse_filter(text), BUILD)


@pytest.mark.parametrize(
    "text",
    [
        'status="FAILURE"',
        'status!="SUCCESS"',
        'tags="c"',
        'tags!="a"',
        'tags="a" AND tags="c"',
        'build_id!="b-1"',
        'create_time<"2024-05-31T12:00:00Z"',
        "create_time>2024-05-31T14:00:00+02:00",
        'finish_time>"1970-01-01"',
        'finish_time<"9999-01-01"',
        "start_time<1900-01-01",
        'substitutions.NOPE=""',
        "substitutions:NOPE",
        'source.storage_source.bucket=""',
        'status_detail!=""',
        "options.disk_size_gb<200",
        "options.dynamic_substitutions=false",
        "timeout<600s",
        "steps.exit_code>3",
        "nowhere",
        # OR binds tighter than AND
        'tags="c" AND tags="a" OR tags="b c"',
    ],
)
def test_what_does_not_match(text: str) -> None:
    assert not matches(parse_filter(text), BUILD)


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("=", 0, "a term is wanted"),
        ("status=", 7, "a value is wanted behind ="),
        ('status="SUCCESS', 7, "has no end"),
        ("status=SUCCESS AND", 18, "a term is wanted"),
        ("OR status=SUCCESS", 0, "a term is wanted"),
        ("AND status=SUCCESS", 0, "a term is wanted"),
        ("(status=SUCCESS", 15, '")" is missing'),
        ("status=SUCCESS)", 14, "nothing is open"),
        ("status=SUCCESS AND OR", 19, "a term is wanted"),
        ("a AND AND b", 6, "a term is wanted"),
        ("()", 1, "a term is wanted"),
        ("status==SUCCESS", 7, "means nothing"),
        ("status=!SUCCESS", 7, "means nothing"),
        ("! status", 0, "means nothing"),
        ("NOT", 3, "a term is wanted"),
        ("NOT NOT a", 4, "a term is wanted"),
        ("  staus=SUCCESS", 2, 'no field "staus"; did you mean status?'),
        ("status=sucess", 7, '"status" is never "sucess"; did you mean SUCCESS?'),
        ("status<SUCCESS", 7, "has no order"),
        ("source.repo_source.branch=x", 0, "no field"),
        ("source.repo_source=x", 19, "name one"),
        ("source.=x", 0, "no field"),
        (".status=x", 0, "no field"),
        ("status.x=SUCCESS", 0, "has no fields"),
        ("id.x=y", 0, "has no fields"),
        ("substitutions=x", 14, "has keys"),
        ("create_time>yesterday", 12, "is a time"),
        ("create_time>2024-13-01", 12, "is a time"),
        ("options.disk_size_gb=x", 21, "is a whole number"),
        ("options.disk_size_gb=" + "1" * 50, 21, "is a whole number"),
        ("options.dynamic_substitutions=1", 30, "is true or false"),
        ("timeout>10m", 8, "is a number of seconds"),
        ('"status"=SUCCESS', 0, "not quoted"),
        ("(" * 60 + "a" + ")" * 60, 51, "nested deeper"),
        ("a" * 10_001, 10_000, "longer than"),
        ('tags="a\0"', 5, "NUL"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, position: int, said: str) -> None:
    with pytest.raises(FilterError) as refused:
        parse_filter(text)
    assert said in str(refused.value)
    assert refused.value.position == position
    assert f"character {position + 1}" in str(refused.value) or "longer" in said


def test_and_is_left_out_and_or_binds_tighter() -> None:
    a, b, c, d = (Anywhere(one) for one in "abcd")
    assert parse_filter("a b OR c AND d") == And((a, Or((b, c)), d))
    assert parse_filter("(a b) OR -c") == Or((And((a, b)), Not(c)))
    assert parse_filter("a-b") == Anywhere("a-b")


def test_quotes_keep_what_would_mean_something() -> None:
    for text in (r'tags="a\"b\\c"', r"tags='a\"b\\c'"):
        found = parse_filter(text)
        assert isinstance(found, Term)
        assert found.operand.value == 'a"b\\c'


@given(st.text(alphabet=string.printable + "é\0", max_size=40))
def test_any_text_is_a_filter_or_wrong_at_some_place(text: str) -> None:
    place = 0
    try:
        matches(parse_filter(text), BUILD)
    except FilterError as error:
        place = error.position
    assert 0 <= place <= len(text)


def quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
TERMS = st.one_of(
    st.builds(
        lambda operator, value: Term(("buildTriggerId",), operator, Operand("text", value, "")),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">=", ":"]),
        TEXTS,
    ),
    st.builds(lambda value: Term(("tags",), ":", Operand("text", value)), TEXTS),
    st.builds(
        lambda value: Term(("status",), "=", Operand("enum", value)),
        st.sampled_from(["SUCCESS", "WORKING"]),
    ),
    st.builds(Anywhere, TEXTS),
)
EXPRESSIONS = st.recursive(
    TERMS,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


def written(expression: Expression) -> str:
    match expression:
        case Term():
            return (
                f"{expression.path[0]}{expression.operator}{quoted(str(expression.operand.value))}"
            )
        case Anywhere():
            return quoted(expression.text)
        case Not():
            return f"NOT ({written(expression.of)})"
        case And():
            return " AND ".join(f"({written(part)})" for part in expression.of)
        case Or():
            return " OR ".join(f"({written(part)})" for part in expression.of)


@given(EXPRESSIONS)
def test_what_is_written_is_read_again(expression: Expression) -> None:
    assert parse_filter(written(expression)) == expression


@given(
    st.datetimes(
        min_value=datetime(1900, 1, 1),  # noqa: DTZ001
        timezones=st.timezones(),
    )
)
def test_instants_are_exact_to_the_microsecond(instant: datetime) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    exact = instant - epoch
    assert parse_instant(instant.isoformat()) == (
        exact.days * 86_400_000_000 + exact.seconds * 1_000_000 + exact.microseconds
    )


def test_the_examples_of_the_docs_are_filters() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "filters.md"
    examples = page.read_text().split("```text\n")[1].partition("```")[0].splitlines()
    in_text = re.findall(r"`([a-z_.]+(?:=|>=|<|>|:)[^`]+)`", page.read_text())
    assert len(examples) == 4
    assert len(in_text) > 8
    for text in [*examples, *in_text]:
        assert parse_filter(text) is not None
