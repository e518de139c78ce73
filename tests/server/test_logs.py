"""Logs over HTTP: bytes as Cloud Storage gives them, lines, searches, streams."""

import base64
import json
import re
import threading
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from buildrunner.engine.events import BuildFinished, BuildStarted
from buildrunner.logs.files.retention import LogRetention, remove_old_logs
from tests.log_servers import log_server

TEXT = (
    b"FETCHSOURCE\nBUILD\n" + b"".join(b"Step #0: line %d\n" % n for n in range(1000)) + b"DONE\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with log_server(str(tmp_path_factory.mktemp("server"))) as server:
        yield server


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def ended(server):
    build = server.build("ended", logsBucket="gs://my-logs/some/folder").begin()
    build.write(TEXT[:5000])
    build.write(TEXT[5000:])
    return build.end()


def test_the_log_is_text_that_no_browser_takes_for_anything_else(http, ended):
    answer = http.get(f"{ended.path}/log")
    assert answer.content == TEXT
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["accept-ranges"] == "bytes"
    assert int(answer.headers["content-length"]) == len(TEXT)
    head = http.head(f"{ended.path}/log")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(TEXT)


@pytest.mark.parametrize(
    "path", ["/buildrunner/v1/projects/p/builds/ended/log", "/my-logs/some/folder/log-ended.txt"]
)
@pytest.mark.parametrize(
    ("range_", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=100-", 100, len(TEXT)),
        ("bytes=-7", len(TEXT) - 7, len(TEXT)),
        (f"bytes={len(TEXT) - 1}-", len(TEXT) - 1, len(TEXT)),
        (f"bytes=10-{len(TEXT) + 5}", 10, len(TEXT)),
    ],
)
def test_a_range_is_honoured_as_by_cloud_storage(http, ended, path, range_, start, end):
    answer = http.get(path, headers={"Range": range_})
    assert answer.status_code == 206
    assert answer.content == TEXT[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(TEXT)}"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("range_", [f"bytes={len(TEXT)}-", "bytes=-0"])
def test_a_range_behind_the_end_is_416(http, ended, range_):
    answer = http.get("/my-logs/some/folder/log-ended.txt", headers={"Range": range_})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(TEXT)}"


@pytest.mark.parametrize("range_", ["lines=0-3", "bytes=5-2", "bytes=0-1,4-5", "bytes=-"])
def test_a_range_that_is_none_gives_everything(http, ended, range_):
    answer = http.get(f"{ended.path}/log", headers={"Range": range_})
    assert (answer.status_code, answer.content) == (200, TEXT)


def test_a_part_by_offset_and_limit(http, ended):
    assert http.get(f"{ended.path}/log?offset=12&limit=5").content == b"BUILD"
    assert http.get(f"{ended.path}/log?offset={len(TEXT) - 5}").content == b"DONE\n"
    assert http.get(f"{ended.path}/log?offset=9999999").content == b""
    assert http.get(f"{ended.path}/log?offset=-1").status_code == 400


def test_lines_are_cut_to_a_width_and_come_once(server, http):
    build = server.build("wide").begin()
    for _ in range(3):
        build.write(b"x" * (1 << 20))  # one line, stored in pieces
    build.write(b"\nStep #0: 10%" + b"\r20%" * 100 + b"\rdone\r\nshort\nopen")
    build.end()
    answer = http.get(f"{build.path}/log/lines?width=100").json()
    assert [line["number"] for line in answer["lines"]] == [0, 1, 2, 3]
    long, bar, short, last = answer["lines"]
    assert (long["text"], long["bytes"]) == ("x" * 100, 3 << 20)
    assert (bar["text"], bar["offset"]) == ("Step #0: 10%\rdone", (3 << 20) + 1)
    assert (short["text"], last["text"]) == ("short", "open")
    assert "bytes" not in short
    assert (answer["lineCount"], answer["open"]) == (3, True)
    assert http.get(f"{build.path}/log/lines?start=2&count=1&width=100").json()["lines"] == [short]


def test_a_page_of_long_lines_ends_early_and_says_where_to_go_on(server, http):
    build = server.build("long").begin()
    for letter in b"abcdefghijkl":
        build.write(bytes([letter]) * 1_000_000 + b"\n")
    build.write(b"y" * (3 << 20) + b"\n")  # longer than lines are shown
    build.end()
    first = http.get(f"{build.path}/log/lines").json()
    assert [line["text"][0] for line in first["lines"]] == list("abcdefgh")
    assert first["next"] == 8
    rest = http.get(f"{build.path}/log/lines?start=8").json()
    assert [line["text"][0] for line in rest["lines"]] == list("ijkly")
    assert rest["next"] is None
    assert len(rest["lines"][-1]["text"]) == 1_000_000
    assert rest["lines"][-1]["bytes"] == 3 << 20


def test_steps_tell_which_lines_are_theirs(server, http):
    build = server.build("runs").begin()
    assert http.get(f"{build.path}/log/steps").json() == {"runs": []}
    build.write(b"BUILD\n", None)
    build.write(b"a\nb\n", 0)
    build.write(b"c\n", 0)
    build.write(b"d\n", 1)
    build.write(b"e\n", 0)
    build.end()
    runs = [[-1, 0, 1], [0, 1, 4], [1, 4, 5], [0, 5, 6]]
    assert http.get(f"{build.path}/log/steps").json() == {"runs": runs}


def test_steps_that_alternate_without_end_are_not_told(server, http):
    build = server.build("alternate").begin()
    for number in range(5002):
        build.write(b"x\n", number % 2)
    build.end()
    assert http.get(f"{build.path}/log/steps").json() == {"runs": None}


def test_gclouds_poller_gets_each_byte_once(server, http):
    build = server.build("polled", logsBucket="gs://bucket").begin()
    url = "/bucket/log-polled.txt"
    assert http.get(url, headers={"Range": "bytes=0-"}).status_code == 404
    seen = b""
    for data in (b"one\n", b"two\nthree\n", b"four\n"):
        build.write(data)
        answer = http.get(url, headers={"Range": f"bytes={len(seen)}-"})
        assert answer.status_code == 206
        seen += answer.content
        assert http.get(url, headers={"Range": f"bytes={len(seen)}-"}).status_code == 416
    assert seen == b"one\ntwo\nthree\nfour\n"
    assert http.get("/other/log-polled.txt").status_code == 404
    build.end()


def test_a_build_that_is_not_there_is_404_in_googles_form(http):
    for path in ("log", "log/lines", "log/steps", "log/stream", "events"):
        answer = http.get(f"/buildrunner/v1/projects/p/builds/nobody/{path}")
        assert answer.status_code == 404
        assert answer.json()["error"]["status"] == "NOT_FOUND"
    assert http.get("/buildrunner-logs/log-nobody.txt").status_code == 404
    assert http.get("/buildrunner/v1/projects/other/builds/ended/log").status_code == 404


def test_lines_come_with_number_time_and_step(http, ended):
    answer = http.get(f"{ended.path}/log/lines?start=1&count=2").json()
    assert [line["text"] for line in answer["lines"]] == ["BUILD", "Step #0: line 0"]
    assert [line["number"] for line in answer["lines"]] == [1, 2]
    assert [line["offset"] for line in answer["lines"]] == [12, 18]
    assert answer["lineCount"] == 1003
    (last,) = http.get(f"{ended.path}/log/lines?start=-1").json()["lines"]
    assert (last["text"], last["number"]) == ("DONE", 1002)
    assert datetime.fromisoformat(last["at"]) > datetime.now(UTC) - timedelta(minutes=5)


def test_lines_of_a_time(http, ended):
    first = http.get(f"{ended.path}/log/lines?count=1").json()["lines"][0]["at"]
    answer = http.get(f"{ended.path}/log/lines", params={"since": first, "count": 3}).json()
    assert [line["number"] for line in answer["lines"]] == [0, 1, 2]
    later = http.get(f"{ended.path}/log/lines?since=2100-01-01T00:00:00Z").json()
    assert later["lines"] == []
    assert http.get(f"{ended.path}/log/lines?since=2024-01-01T00:00:00").status_code == 400


def test_lines_of_a_step(server, http):
    build = server.build("steps").begin()
    for data, step in ((b"BUILD\n", None), (b"one\n", 0), (b"two\n", 1), (b"three\n", 0)):
        build.write(data, step)
    build.end()
    for step, expected in ((0, ["one", "three"]), (1, ["two"]), (-1, ["BUILD"]), (5, [])):
        answer = http.get(f"{build.path}/log/lines", params={"step": step}).json()
        assert [line["text"] for line in answer["lines"]] == expected


def test_the_whole_log_is_searched_on_the_server(http, ended):
    search = f"{ended.path}/log/search"
    answer = http.get(search, params={"q": "line 99"}).json()
    assert [match["line"] for match in answer["matches"]] == [101, *range(992, 1002)]
    assert answer["next"] is None
    answer = http.get(search, params={"q": r"LINE \d+0$", "regex": True, "ignoreCase": True})
    assert len(answer.json()["matches"]) == 99
    previous = http.get(search, params={"q": "line 99", "direction": "previous", "limit": 2}).json()
    assert [match["line"] for match in previous["matches"]] == [1001, 1000]
    further = http.get(
        search, params={"q": "line 99", "direction": "previous", "from": previous["next"]}
    ).json()
    assert [match["line"] for match in further["matches"]] == [*range(999, 991, -1), 101]
    assert http.get(search, params={"q": "a(", "regex": True}).status_code == 400


def test_a_search_can_be_streamed(http, ended):
    answer = http.get(
        f"{ended.path}/log/search",
        params={"q": "line", "limit": 400},
        headers={"Accept": "application/x-ndjson"},
    )
    parts = [json.loads(line) for line in answer.text.splitlines()]
    assert [len(part["matches"]) for part in parts] == [400, 400, 200]
    assert parts[-1]["next"] is None


def messages_of(response):
    kind = position = None
    for line in response.iter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("id: "):
            position = line.removeprefix("id: ")
        elif line.startswith("data: "):
            yield kind, position, json.loads(line.removeprefix("data: "))


def test_a_stream_goes_from_the_queue_to_the_end(server, http):
    build = server.build("streamed")
    with http.stream("GET", f"{build.path}/log/stream?events=0") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-content-type-options"] == "nosniff"
        messages = messages_of(response)
        kind, position, body = next(messages)
        assert (kind, position, body["status"]) == ("state", "0:0", "QUEUED")
        assert body["waiting"]["kind"]
        build.begin()
        build.events.on_event(BuildStarted(at=datetime.now(UTC), build_id="streamed", steps=1))
        build.write(b"one\n")
        build.write(b"caf\xc3")
        seen = []
        # Why it waits may be told anew until it runs.
        while {kind for kind, _, _ in seen} != {"state", "event", "log"}:
            message = next(messages)
            if message[0] != "state" or message[2]["status"] != "QUEUED":
                seen.append(message)
        build.write(b"\xa9 \xe2\x80\xa8 \xff\n")
        build.events.on_event(BuildFinished(at=datetime.now(UTC), status="SUCCESS"))
        build.end()
        seen += list(messages)
    log = b"".join(
        body["text"].encode() if "text" in body else base64.b64decode(body["base64"])
        for kind, _, body in seen
        if kind == "log"
    )
    assert log == b"one\ncaf\xc3\xa9 \xe2\x80\xa8 \xff\n"
    assert [body["event"] for kind, _, body in seen if kind == "event"] == [
        "buildStarted",
        "buildFinished",
    ]
    states = [body for kind, _, body in seen if kind == "state"]
    assert [state["status"] for state in states] == ["WORKING", "SUCCESS"]
    assert all(state["waiting"] is None for state in states)
    assert seen[-1] == ("end", f"{len(log)}:2", {"status": "SUCCESS", "size": len(log)})


@pytest.mark.parametrize("offset", [0, 1, 5000, len(TEXT) - 1, len(TEXT)])
def test_a_stream_goes_on_from_any_byte(http, ended, offset):
    for headers, query in (({}, f"?offset={offset}"), ({"Last-Event-ID": str(offset)}, "")):
        with http.stream("GET", f"{ended.path}/log/stream{query}", headers=headers) as response:
            seen = list(messages_of(response))
        assert (
            "".join(body["text"] for kind, _, body in seen if kind == "log").encode()
            == (TEXT[offset:])
        )
        assert seen[-1] == ("end", str(len(TEXT)), {"status": "SUCCESS", "size": len(TEXT)})


def test_a_stream_tells_when_and_whence_its_parts_came_when_asked(server, http):
    build = server.build("chunks").begin()
    for data, step in ((b"BUILD\n", None), (b"one\n", 0), (b"two\n", 1)):
        build.write(data, step)
    build.end()
    with http.stream("GET", f"{build.path}/log/stream?offset=3&chunks=true") as response:
        seen = [body for kind, _, body in messages_of(response) if kind == "log"]
    assert [(size, step) for body in seen for size, _, step in body["chunks"]] == [
        (3, -1),
        (4, 0),
        (4, 1),
    ]
    (at_us, *_) = [at_us for body in seen for _, at_us, _ in body["chunks"]]
    assert abs(datetime.now(UTC).timestamp() - at_us / 1e6) < 300


def test_a_stream_without_text_says_how_long_the_log_is(http, ended):
    with http.stream("GET", f"{ended.path}/log/stream?offset=7&text=false") as response:
        seen = list(messages_of(response))
    logs = [(position, body) for kind, position, body in seen if kind == "log"]
    assert logs == [(str(len(TEXT)), {"offset": 7, "size": len(TEXT)})]
    assert seen[-1] == ("end", str(len(TEXT)), {"status": "SUCCESS", "size": len(TEXT)})


def test_a_last_event_id_of_somebody_else_is_refused(http, ended):
    answer = http.get(f"{ended.path}/log/stream", headers={"Last-Event-ID": "x:1"})
    assert answer.status_code == 400


def test_events_are_json_or_a_stream(server, http):
    build = server.build("events").begin()
    for number in range(3):
        build.events.on_event(BuildStarted(at=datetime.now(UTC), build_id="events", steps=number))
    answer = http.get(f"{build.path}/events?after=1").json()
    assert [(event["sequence"], event["steps"]) for event in answer["events"]] == [(2, 1), (3, 2)]
    assert answer["last"] == 3
    build.end()
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "0:2"}
    with http.stream("GET", f"{build.path}/events", headers=headers) as response:
        seen = [(kind, body) for kind, _, body in messages_of(response)]
    assert [body["sequence"] for kind, body in seen if kind == "event"] == [3]
    assert seen[-1][0] == "end"


def test_many_viewers_of_a_build_see_the_same(server):
    build = server.build("watched").begin()
    logs = {}

    def view(number):
        with httpx.stream("GET", f"{server.url}{build.path}/log/stream", timeout=30) as response:
            logs[number] = "".join(
                body["text"] for kind, _, body in messages_of(response) if kind == "log"
            )

    viewers = [threading.Thread(target=view, args=(number,)) for number in range(20)]
    for viewer in viewers:
        viewer.start()
    expected = b""
    for number in range(200):
        data = b"line %d\n" % number
        expected += data
        build.write(data)
    build.end()
    for viewer in viewers:
        viewer.join()
    assert set(logs.values()) == {expected.decode()}
    assert len(logs) == 20


def test_a_log_that_was_removed_says_so(server, http):
    build = server.build("old").begin()
    build.write(b"x\n")
    build.end()
    later = datetime.now(UTC) + timedelta(days=31)
    rules = LogRetention(max_age=timedelta(days=30))
    assert remove_old_logs(server.folder, ["old"], rules, now=later) == ["old"]
    for path in ("log", "log/lines", "log/steps", "log/stream", "log/search?q=x"):
        answer = http.get(f"{build.path}/{path}")
        assert answer.status_code == 404
        assert re.search(
            r"was removed on .*: it is older than 30 days", answer.json()["error"]["message"]
        )


def test_a_build_without_a_log_says_so_and_its_stream_ends(server, http):
    build = server.build("silent", options={"logging": "NONE"}).begin().end()
    answer = http.get(f"{build.path}/log")
    assert answer.status_code == 404
    assert "logging: NONE" in answer.json()["error"]["message"]
    with http.stream("GET", f"{build.path}/log/stream") as response:
        assert [kind for kind, _, _ in messages_of(response)] == ["state", "end"]


def test_only_who_may_read_the_project_reads_its_logs(tmp_path):
    with log_server(str(tmp_path), auth=True) as server:
        build = server.build("secret", logsBucket="gs://b").begin()
        build.write(b"x\n")
        paths = [f"{build.path}/{p}" for p in ("log", "log/lines", "log/search?q=x", "events")]
        paths.append(f"{build.path}/log/stream")
        build.end()
        readers = {"": 403, "nonsense": 401, server.token("submit"): 403}
        readers[server.token("read", projects=("other",))] = 403
        readers[server.token("read", projects=("p",))] = 200
        for token, expected in readers.items():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
                assert {client.get(path).status_code for path in paths} == {expected}
                # A token that may not read the object does not learn that it exists.
                hidden = 404 if token and expected == 403 else expected
                assert client.get("/b/log-secret.txt").status_code == hidden
