"""A filter finds the same builds by SQL as by their documents."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildrunner.store.list_filter import matches, parse_filter
from buildrunner.store.model.builds import NewBuild
from buildrunner.store.sql.filter import condition_of, only_ongoing
from buildrunner.store.sql.store import ServerStore
from tests.server_databases import new_store

TIMES = [f"2024-05-31T12:00:0{second}Z" for second in range(4)]
NOW = datetime(2024, 6, 1, tzinfo=UTC)


def documents() -> Iterator[dict[str, Any]]:
    """Builds that differ in all that columns know, and in a little that they don't."""
    for number in range(48):
        document: dict[str, Any] = {
            "id": f"b{number:02}",
            "projectId": "p",
            "createTime": TIMES[number % 4],
            "status": ("SUCCESS", "FAILURE", "QUEUED", "PENDING")[number // 2 % 4],
            "tags": [tag for place, tag in enumerate(("a", "B", "é")) if number >> place & 1],
            "images": ["x"] if number % 5 else ["x", "y"],
        }
        if number % 2:
            document["startTime"] = TIMES[number % 3]
        if number % 4:
            document["finishTime"] = TIMES[number % 3 + 1]
        if number % 7:
            document["buildTriggerId"] = f"t{number % 3}"
        yield document


DOCUMENTS = list(documents())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerStore]:
    folder: Path = tmp_path_factory.mktemp("filters")
    store = new_store(str(folder))
    for document in DOCUMENTS:
        store.builds.create(NewBuild(document=document, request={}, expires_at=NOW))
    yield store
    store.close()


OPERATORS = st.sampled_from(["=", "!=", "<", "<=", ">", ">=", ":"])
INSTANTS = st.sampled_from(
    [*TIMES, "2024-05-31", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]
)
TERMS = st.one_of(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["create_time", "startTime", "finish_time"]),
        OPERATORS,
        INSTANTS,
    ),
    st.builds(
        '{}{}"{}"'.format,
        st.sampled_from(["trigger_id", "build_id", "tags", "project_id", "images"]),
        OPERATORS,
        st.sampled_from(["t0", "t1", "", "b07", "b33", "a", "B", "é", "p", "x", "y", "%"]),
    ),
    st.builds(
        "status{}{}".format,
        st.sampled_from(["=", "!=", ":"]),
        st.sampled_from(["SUCCESS", "FAILURE", "QUEUED", "PENDING"]),
    ),
    st.builds(
        "{}:*".format,
        st.sampled_from(["finish_time", "start_time", "trigger_id", "tags", "id", "status"]),
    ),
    st.sampled_from(["t1", "b1"]),
)
FILTERS = st.recursive(
    TERMS,
    lambda inner: st.one_of(
        st.builds("NOT ({})".format, inner),
        st.builds("({}) AND ({})".format, inner, inner),
        st.builds("({}) OR ({})".format, inner, inner),
    ),
    max_leaves=6,
)


def expected(text: str) -> list[str]:
    found = [one for one in DOCUMENTS if matches(parse_filter(text), one)]
    found.sort(key=lambda one: one["id"])
    found.sort(key=lambda one: one["createTime"], reverse=True)
    return [one["id"] for one in found]


@settings(max_examples=300, deadline=None)
@given(text=FILTERS)
def test_sql_and_documents_agree(store: ServerStore, text: str) -> None:
    found, token = [], ""
    while True:  # a page ends early on a busy machine
        page = store.builds.page("p", filter=text, page_size=1000, page_token=token)
        found += [build.id for build in page.builds]
        if not (token := page.next_page_token):
            break
    assert found == expected(text)


@pytest.mark.parametrize(
    ("text", "ongoing"),
    [
        ('status="WORKING" OR status="QUEUED"', True),
        ("status=PENDING tags=a", True),
        ("tags=a AND (status=PENDING OR (status:QUEUED images=x))", True),
        ("status=PENDING OR tags=a", False),
        ("status=PENDING OR status=SUCCESS", False),
        ("NOT status=SUCCESS", False),
        ("status!=PENDING", False),
        ("NOT status=PENDING", False),
        ("status:*", False),
        ("", False),
    ],
)
def test_only_builds_that_have_not_ended_are_looked_at_where_it_is_plain(
    text: str, ongoing: bool
) -> None:
    assert only_ongoing(parse_filter(text)) is ongoing


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ('status="WORKING" OR status="QUEUED"', True),
        ('NOT tags="a" AND create_time>"2024-05-31"', True),
        ('build_id!="x" start_time<"2024-05-31" trigger_id:t', True),
        ("images=x", False),
        ('images=x AND status="WORKING"', False),
        ("NOT images=x", False),
    ],
)
def test_what_indexes_know_needs_no_documents(text: str, exact: bool) -> None:
    assert condition_of(parse_filter(text)).exact is exact
