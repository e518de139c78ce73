"""Requests that a fuzzer makes of the API's own description: none of them breaks the server.

A request may be refused in any way; it must be the API that refuses it, with a status below 500
and no traceback in its log.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from buildrunner.server.http.access import Sessions
from buildrunner.server.pages.rendering import PageRoute
from tests.api_server import ApiServer, api_server

BUDGET_S: Final = 30.0
EXAMPLES: Final = 12
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
# What large numbers, NUL and half a surrogate do to parameters that code turns into something.
ODD = (
    *("0", "-1", "9" * 19, "9" * 30, "9" * 5000, "\0", "é", "%", "..", "a/b", "٣", "²", "1e9"),
    *(
        "x" * 3000,
        "-",
        ":",
        "{}",
        '"',
        "\\",
        "{{7*7}}",
        "$_X",
        "\r\n",
        "2024-13-01",
        "NaN",
        "\u202e",
    ),
)


def without_second_spellings(value: Any) -> Any:
    """A schema that says of each field one name only.

    The API takes camelCase and snake_case, but not both of one field at once. The fuzzer has no
    answer to that rule, and it is not what is looked for here.
    """
    if isinstance(value, list):
        return [without_second_spellings(item) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {key: without_second_spellings(item) for key, item in value.items() if key != "allOf"}
    if isinstance(plain.get("properties"), dict):
        properties = plain["properties"]
        plain["properties"] = {
            name: item for name, item in properties.items() if "_" not in name.strip("_")
        }
    return plain


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("server"), auth=True) as running:
        running.secrets["hooks-github"] = "s3cret"
        yield running


@pytest.fixture(scope="module")
def operations(server: ApiServer) -> list[Any]:
    document = without_second_spellings(server.http.get("/openapi.json").json())
    schema = schemathesis.openapi.from_dict(document)
    return [found.ok() for found in schema.get_all_operations()]


@pytest.fixture(scope="module")
def known(server: ApiServer) -> dict[str, list[str]]:
    """Values of path parameters behind which there is something."""
    headers = {"Authorization": f"Bearer {server.token('maker', 'admin')}"}
    steps = {"steps": [{"name": "busybox"}]}
    ids = [
        server.http.post("/v1/projects/p/builds", json=steps, headers=headers).json()["metadata"][
            "build"
        ]["id"]
        for _ in range(2)
    ]
    trigger = {"name": "t", "build": steps, "cron": {"schedule": "0 0 1 1 *"}}
    made = server.http.post("/v1/projects/p/triggers", json=trigger, headers=headers).json()
    server.run(ids[0], "SUCCESS")
    return {
        "project": ["p", "-"],
        "location": ["global", "-"],
        "build": ids,
        "trigger": [made["id"], "t"],
        "forge": ["github", "gitlab"],
        "token": ["maker"],
    }


def request(case: Case, data: st.DataObject, known: dict[str, list[str]]) -> Case:
    """A request of the fuzzer, often for something that exists, with a body where one fits."""
    for name in case.path_parameters:
        values = known.get(name, [])
        chosen = data.draw(st.sampled_from([None, *values, *values, *ODD[:6]]), label=name)
        if chosen is not None:
            case.path_parameters[name] = chosen
    for name in list(case.query or {}):
        chosen = data.draw(st.sampled_from([None, *ODD]), label=name)
        if chosen is not None:
            case.query[name] = chosen
    if case.method in ("POST", "PUT", "PATCH") and not case.operation.body:
        case.body = data.draw(JSON, label="body")
        case.media_type = "application/json"
    return case


@functools.cache
def cases_of(operation: Any) -> Any:
    """Requests of an operation, those that fit its description and those that don't."""
    fitting, wrong = (
        operation.as_strategy(generation_mode=mode)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )
    return fitting | wrong


class Fuzzer:
    """Sends requests, and remembers those that broke something.

    Attributes:
        sent: how many were sent.
        broken: operation -> a command that repeats the request, and the answer.
    """

    def __init__(self, server: ApiServer, token: str, known: dict[str, list[str]]) -> None:
        self._server = server
        self._headers = {"Authorization": f"Bearer {token}"}
        self._known = known
        self.sent = 0
        self.broken: dict[str, str] = {}

    def fuzz(self, operation: Any, until: float) -> None:
        """Send requests of one operation: one at least, and more until a moment at most."""
        before = self.sent

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=cases_of(operation), data=st.data())
        def ask(case: Case, data: st.DataObject) -> None:
            case = request(case, data, self._known)
            if self.sent == before or time.monotonic() < until:
                self._send(case)

        ask()
        assert self.sent > before

    def _send(self, case: Case) -> None:
        self.sent += 1
        answer = case.call(base_url=self._server.url, headers=self._headers, timeout=20)
        if answer.status_code >= 500:
            told = f"{case.as_curl_command()}\n{answer.text[:300]}"
            self.broken[case.operation.label] = told


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("scope", ["admin", "read"])
def test_no_request_breaks_the_server(
    server: ApiServer,
    operations: list[Any],
    known: dict[str, list[str]],
    caplog: pytest.LogCaptureFixture,
    scope: str,
) -> None:
    fuzzer = Fuzzer(server, server.token(f"fuzz-{scope}", scope), known)
    for operation in operations:
        fuzzer.fuzz(operation, time.monotonic() + BUDGET_S / len(operations))
    assert fuzzer.broken == {}
    crashes = [record.getMessage() for record in caplog.records if record.exc_info]
    assert crashes == []
    assert server.http.get("/readyz").status_code == 200


QUERY = (
    *("before", "branch", "build", "changed", "draft", "filter", "hook", "kind", "limit", "next"),
    *("page", "project", "q", "ref", "state", "status", "step", "tail", "target", "view", "with"),
    "wrong",
)
FIELDS = (
    *(
        "approvers",
        "comment",
        "deployment",
        "expires",
        "fromStep",
        "group",
        "jitter",
        "kind",
        "limit",
        "missed",
    ),
    *("notAuthor", "overlap", "policy", "publicBadge", "ref", "substitutions", "text"),
)


def test_no_page_breaks_the_server(
    server: ApiServer, known: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Each page and form, with something odd in its path, its query and its fields."""
    sessions = Sessions(server.context)
    server.token("browser", "admin")
    session = sessions.begin("browser")
    headers = {"Cookie": f"{sessions.cookie}={session}"}
    routes = [
        (method, route.path)
        for router in server.app.state.routers
        for route in router.routes
        if isinstance(route, PageRoute) and route.path not in ("/login", "/logout")
        for method in sorted(route.methods)
    ]
    values = {**{name: found[0] for name, found in known.items()}, "action": "run", "number": "0"}
    broken = []
    for method, template in routes:
        names = re.findall(r"{(\w+)}", template)
        for odd in ODD:
            given = {name: values.get(name, "1") for name in names}
            for paths in ({}, *({name: odd} for name in names)):
                path = template.format(
                    **{name: quote(value, safe="") for name, value in {**given, **paths}.items()}
                )
                query = {} if paths else dict.fromkeys(QUERY, odd[:1000])
                form = {"csrf": sessions.form_value(session), **dict.fromkeys(FIELDS, odd)}
                answer = server.http.request(
                    method,
                    path,
                    params=query,
                    headers=headers,
                    data=form if method == "POST" else None,
                )
                if answer.status_code >= 500:
                    broken.append(f"{method} {path[:100]} {odd[:30]!r}: {answer.status_code}")
    assert broken == []
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
