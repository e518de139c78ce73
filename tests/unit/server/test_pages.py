"""What pages show, made from stored builds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from buildrunner.engine.events import BuildEvent, ImagePushed, StepFinished, Warned
from buildrunner.server.pages.builds.changes import changes_since, usual_seconds
from buildrunner.server.pages.builds.drawings import critical_path, draw_graph, ticks, waterfall
from buildrunner.server.pages.builds.view import build_view
from buildrunner.server.pages.session import login_address, own_path
from buildrunner.server.pages.triggers.edit import STARTERS, trigger_of
from buildrunner.server.pages.triggers.trends import failure_line, trends
from buildrunner.server.pages.wording import Estimate, ago, duration, expected, shown_text, size
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.validation.check import errors_of
from buildrunner.store.model.builds import StoredBuild
from buildrunner.triggers.built_revision import built_revision, labelled_ref
from buildrunner.triggers.check import check_trigger

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def span(start: float, end: float) -> dict[str, str]:
    return {"startTime": at(start), "endTime": at(end)}


def stored(**document: Any) -> StoredBuild:
    given = {
        "id": "abc",
        "projectId": "p",
        "status": "FAILURE",
        "createTime": at(0),
        "startTime": at(2),
        "finishTime": at(12),
        "steps": [
            {"name": "gcr.io/x/node:20", "args": ["npm", "ci"], "status": "SUCCESS"},
            {"name": "busybox", "id": "test", "status": "FAILURE", "exitCode": 7},
            {"name": "busybox", "id": "deploy", "status": "QUEUED"},
        ],
        **document,
    }
    return StoredBuild(document=given, request={}, labels={"submitter": "mona"})


FAILED = StepFinished(
    at=NOW, step=1, status="FAILURE", exit_code=7, error="exit 7", last_lines=("boom",)
)


def test_the_step_that_failed_it_comes_with_its_last_lines() -> None:
    build = build_view(stored(), [FAILED], now=NOW)
    assert build.failing is not None
    assert (build.failing.title, build.failing.exit_code) == ("test", 7)
    assert build.failing.last_lines == ("boom",)
    assert (build.seconds, build.queued_s, build.submitter) == (10.0, 2.0, "mona")
    assert [step.status for step in build.steps] == ["SUCCESS", "FAILURE", "NOT_RUN"]


def test_a_forgiven_step_is_not_what_failed_it() -> None:
    forgiven = StepFinished(at=NOW, step=0, status="FAILURE", forgiven=True)
    build = build_view(stored(), [forgiven, FAILED], now=NOW)
    assert build.failing is not None
    assert build.failing.index == 1


def test_images_show_what_was_pushed_of_them() -> None:
    event = ImagePushed(
        at=NOW,
        name="r/app:1",
        digest="sha256:1",
        size_bytes=5,
        layers_pushed=1,
        layers_reused=2,
        push_s=1.0,
    )
    results = {"images": [{"name": "r/app:1", "digest": "sha256:1"}, {"name": "r/b"}]}
    first, second = build_view(stored(results=results), [event], now=NOW).images
    assert (first.size_bytes, first.layers_pushed, first.layers_reused) == (5, 1, 2)
    assert (second.digest, second.size_bytes) == ("", None)
    untold = msgspec.structs.replace(event, layers_pushed=0, layers_reused=0)  # by Podman
    (first, _) = build_view(stored(results=results), [untold], now=NOW).images
    assert (first.size_bytes, first.layers_pushed, first.layers_reused) == (5, None, None)


def test_warnings_are_the_builds_own_or_those_of_its_events() -> None:
    event = Warned(at=NOW, text="of an event")
    assert build_view(stored(), [event], now=NOW).warnings == ("of an event",)
    kept = stored(warnings=[{"text": "kept", "priority": "WARNING"}])
    assert build_view(kept, [event], now=NOW).warnings == ("kept",)


def test_what_a_build_was_made_of() -> None:
    values = {"COMMIT_SHA": "c" * 40, "BRANCH_NAME": "main", "REPO_FULL_NAME": "acme/app"}
    found = build_view(stored(substitutions=values), now=NOW).revision
    assert (found.repository, found.ref, found.commit) == ("acme/app", "main", "c" * 40)
    source = {"gitSource": {"url": "https://x/y", "revision": "refs/heads/dev"}}
    found = build_view(stored(source=source), now=NOW).revision
    assert (found.repository, found.ref, found.commit) == ("https://x/y", "dev", "")
    bucket = {"storageSource": {"bucket": "b", "object": "o"}}
    assert build_view(stored(source=bucket), now=NOW).revision.repository == "gs://b"


def test_a_caller_does_not_choose_the_revision_that_an_approver_reads():
    """Issue: a run of a fork's commit was shown as main, at a commit that had been reviewed."""
    values = {"BRANCH_NAME": "main", "COMMIT_SHA": "a" * 40, "REPO_FULL_NAME": "acme/app (ok)"}
    evil = {"gitSource": {"url": "https://github.com/acme/app.git", "revision": "e" * 40}}
    found = build_view(stored(source=evil, substitutions=values), now=NOW).revision
    assert (found.ref, found.commit) == ("", "e" * 40)
    assert found.repository == "https://github.com/acme/app.git"
    moving = {"gitSource": {"url": "https://github.com/acme/app.git", "revision": "dev"}}
    found = build_view(stored(source=moving, substitutions=values), now=NOW).revision
    assert (found.ref, found.commit) == ("dev", "")


def test_the_branch_of_a_fork_is_none_of_the_repository():
    """Issue: a fork's branch called main was told, listed and filtered as the repository's main."""
    labels = {"branch": "main", "fork": "yes", "repository": "acme/app"}
    source = {"gitSource": {"url": "https://github.com/evil/app.git", "revision": "e" * 40}}
    for document in ({"source": source}, {"substitutions": {"BRANCH_NAME": "main"}}):
        named = {**labels, "head_repository": "evil/app"}
        assert built_revision(document, named).ref == "evil/app:main"
        assert built_revision(document, labels).ref == "fork:main"
        assert labelled_ref(named) == ""
    own = {name: text for name, text in labels.items() if name != "fork"}
    assert (built_revision({"source": source}, own).ref, labelled_ref(own)) == ("main", "main")


def test_what_changed_since_the_last_success() -> None:
    green = stored(status="SUCCESS", substitutions={"COMMIT_SHA": "a" * 40, "_X": "1"})
    steps = [{**step} for step in green.document["steps"]]
    steps[1]["name"] = "debian"
    red = stored(substitutions={"COMMIT_SHA": "b" * 40, "_X": "2"}, steps=steps)
    changes = changes_since(build_view(green, now=NOW), build_view(red, now=NOW))
    assert [change.name for change in changes] == ["commit", "_X", "image of step test"]
    assert changes_since(build_view(red, now=NOW), build_view(red, now=NOW)) == ()


def test_bars_begin_at_the_builds_creation() -> None:
    steps = [
        {"name": "a", "status": "SUCCESS", "timing": span(3, 6), "pullTiming": span(3, 4)},
        {"name": "b", "status": "SUCCESS", "timing": span(3, 5)},
        {"name": "c", "status": "WORKING", "timing": {"startTime": at(6)}},
    ]
    document = stored(
        steps=steps, finishTime=None, status="WORKING", timing={"FETCHSOURCE": span(2, 3)}
    ).document
    bars = waterfall(document, [(), (), (0, 1)], NOW + timedelta(seconds=9))
    told = [(bar.label, bar.start_s, bar.end_s, bar.pull_s) for bar in bars]
    assert told == [
        ("queue", 0.0, 2.0, 0.0),
        ("source", 2.0, 3.0, 0.0),
        ("#1 b", 3.0, 5.0, 0.0),
        ("#0 a", 3.0, 6.0, 1.0),
        ("#2 c", 6.0, 9.0, 0.0),
    ]
    assert [bar.label for bar in bars if bar.is_critical] == ["queue", "source", "#0 a", "#2 c"]


def test_the_critical_path_is_the_chain_that_ended_last() -> None:
    assert critical_path({0: 5, 1: 9, 2: 7, 3: 12}, [(), (0,), (0,), (1, 2)]) == {0, 1, 3}
    assert critical_path({}, []) == set()
    assert critical_path({4: 1.0}, []) == {4}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "\N{EN DASH}"), (0, "0 s"), (0.04, "40 ms"), (9.96, "10.0 s"), (59.6, "60 s"),
     (61, "1 min 1 s"), (3725, "1 h 2 min")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (30, "just now"),
        (90, "1 min ago"),
        (7300, "2 h ago"),
        (200_000, "2 d ago"),
    ],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert ago(at(-seconds), NOW) == text


def test_sizes() -> None:
    assert [size(n) for n in (None, 12, 2048, 5 << 20, 3 << 40)] == [
        "\N{EN DASH}",
        "12 B",
        "2.0 KiB",
        "5.0 MiB",
        "3072.0 GiB",
    ]


def test_the_graph_shows_names_as_text() -> None:
    steps = [{"name": "busybox", "id": '<script>alert("x")</script>', "status": "SUCCESS"}]
    drawn = draw_graph(build_view(stored(steps=steps), now=NOW).steps, [()])
    assert "<script" not in drawn
    assert "&lt;script&gt;" in drawn


def test_a_status_that_nobody_knows_does_not_break_the_graph() -> None:
    steps = [{"name": "busybox", "status": '"><b>'}]
    assert "<b>" not in draw_graph(build_view(stored(steps=steps), now=NOW).steps, [()])


def test_without_edges_there_is_no_graph() -> None:
    assert draw_graph(build_view(stored(), now=NOW).steps, []) == ""


@pytest.mark.parametrize(
    ("target", "leads_to"),
    [
        ("/builds/p/1?view=graph", "/builds/p/1?view=graph"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/a\r\nSet-Cookie: x", "/"),
        ("", "/"),
    ],
)
def test_signing_in_leads_nowhere_else(target: str, leads_to: str) -> None:
    assert own_path(target) == leads_to


def test_the_way_to_signing_in_keeps_the_query() -> None:
    assert login_address("/builds?a=b&c") == "/login?next=/builds%3Fa%3Db%26c"


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(
    steps=st.lists(
        st.fixed_dictionaries(
            {"name": st.text(max_size=8)},
            optional={
                "id": st.text(max_size=5),
                "script": st.text(max_size=8),
                "args": st.lists(st.text(max_size=5), max_size=3),
                "timing": st.just(span(1, 2)),
            },
        ),
        max_size=4,
    ),
    events=st.lists(st.builds(StepFinished, at=st.just(NOW), step=st.integers(0, 9))),
)
def test_whatever_is_stored_there_is_a_page(
    steps: list[dict[str, Any]], events: list[BuildEvent]
) -> None:
    build = build_view(stored(steps=steps), events, now=NOW)
    assert len(build.steps) == len(steps)
    edges = [tuple(range(index)) for index in range(len(steps))]
    assert bool(draw_graph(build.steps, edges)) is bool(steps)
    assert waterfall(stored(steps=steps).document, edges, NOW)


def ended(
    status: str, seconds: float, commit: str, *steps: tuple[str, str, float]
) -> dict[str, Any]:
    return {
        "id": f"{status}{seconds}",
        "status": status,
        "createTime": at(0),
        "startTime": at(1),
        "finishTime": at(1 + seconds),
        "substitutions": {"COMMIT_SHA": commit},
        "steps": [
            {"id": name, "status": result, "timing": span(1, 1 + took)}
            for name, result, took in steps
        ],
    }


def test_trends_count_what_ran_to_an_end() -> None:
    newest_first = [
        ended("WORKING", 1, "c"),
        ended("CANCELLED", 9, "c"),
        ended("SUCCESS", 4, "c", ("test", "SUCCESS", 2), ("lint", "SUCCESS", 3)),
        ended("FAILURE", 2, "c", ("test", "FAILURE", 1), ("lint", "SUCCESS", 3)),
        ended("FAILURE", 6, "b", ("test", "FAILURE", 1)),
    ]
    found = trends([stored(**one) for one in newest_first])
    assert [point.seconds for point in found.points] == [6, 2, 4]
    assert (found.median_s, found.median_queued_s) == (4, 1)
    assert found.failure_rate == pytest.approx(2 / 3)
    assert [(one.name, one.median_s, one.failures) for one in found.slowest] == [
        ("lint", 3, 0),
        ("test", 1, 2),
    ]
    assert [(one.name, one.flips) for one in found.flakiest] == [("test", 1)]


def test_without_builds_there_are_no_trends() -> None:
    found = trends([])
    assert (found.points, found.median_s, found.failure_rate) == ((), None, None)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[1;31m1 failed\x1b[0m, 3 passed", "1 failed, 3 passed"),
        ("10%\r50%\r100%\r", "100%"),
        ("\x1b]0;title\x07a\x1b[2Jb\x00c\x9b", "abc"),
        ("a\u202etxt.exe\tb", "atxt.exe\tb"),
        (b"\xff <b>", "\ufffd <b>"),
    ],
)
def test_a_line_of_a_log_is_shown_as_a_terminal_would_in_the_end(line, shown):
    assert shown_text(line) == shown


def test_the_same_change_of_several_steps_is_told_once() -> None:
    def build(value: str) -> StoredBuild:
        step = {"name": "busybox", "env": [f"MODE={value}", "SAME=1"]}
        return stored(steps=[{**step, "id": name} for name in ("a", "b", "c", "d")])

    old, new = build_view(build("slow"), now=NOW), build_view(build("fast"), now=NOW)
    [change] = changes_since(old, new)
    assert change.name == "environment of steps a, b, c and 1 more"
    assert (change.before, change.after) == ("MODE=slow", "MODE=fast")


def test_what_a_build_reused_of_another_one_is_no_change() -> None:
    steps = [{"name": "a", "id": "one"}, {"name": "b", "id": "two", "waitFor": ["one"]}]
    old = stored(steps=steps, results={"buildStepImages": ["sha256:1", "sha256:2"]})
    new = stored(steps=steps, results={"buildStepImages": ["", "sha256:2"]})
    labels = {"from_build": "abc", "reused_steps": "0"}
    view = build_view(StoredBuild(document=new.document, request={}, labels=labels), now=NOW)
    assert [step.reused for step in view.steps] == [True, False]
    assert changes_since(build_view(old, now=NOW), view) == ()


def test_steps_that_came_and_went_are_told_by_name() -> None:
    old = stored(steps=[{"name": "a", "id": "one"}, {"name": "b", "id": "two"}])
    new = stored(steps=[{"name": "b", "id": "two"}, {"name": "c", "id": "three"}])
    changes = changes_since(build_view(old, now=NOW), build_view(new, now=NOW))
    told = [(change.name, change.before, change.after) for change in changes]
    assert told == [("step one", "a", ""), ("step three", "", "c")]


def test_another_image_behind_the_same_name_is_a_change() -> None:
    def build(digest: str) -> StoredBuild:
        return stored(steps=[{"name": "busybox", "id": "a"}], results={"buildStepImages": [digest]})

    old, new = build_view(build("sha256:1"), now=NOW), build_view(build("sha256:2"), now=NOW)
    assert [change.name for change in changes_since(old, new)] == ["content of busybox of step a"]


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://github.com/acme/app.git", "https://github.com/acme/app/compare/aaa...bbb"),
        ("https://gitlab.com/acme/app", "https://gitlab.com/acme/app/-/compare/aaa...bbb"),
        ("https://token@github.com/acme/app", ""),
        ("ssh://git@example.com/app", ""),
    ],
)
def test_a_forge_compares_two_commits(url: str, link: str) -> None:
    def build(commit: str) -> StoredBuild:
        source = {"gitSource": {"url": url, "revision": "main"}}
        resolved = {"resolvedGitSource": {"url": url, "revision": commit}}
        return stored(source=source, sourceProvenance=resolved)

    old, new = build_view(build("aaa"), now=NOW), build_view(build("bbb"), now=NOW)
    [change] = changes_since(old, new)
    assert (change.name, change.link) == ("commit", link)


def test_what_a_build_takes_is_the_median_of_the_last_that_succeeded() -> None:
    def took(seconds: float, status: str = "SUCCESS") -> dict[str, Any]:
        return {"status": status, "startTime": at(0), "finishTime": at(seconds)}

    assert usual_seconds([took(10), took(1, "FAILURE"), took(30), took(20)]) == 20
    assert usual_seconds([took(1, "FAILURE")]) is None


def test_what_is_expected_of_a_build_that_runs() -> None:
    assert (Estimate(100, 25).percent, expected(Estimate(100, 25))) == (25, "about 1 min left")
    assert expected(Estimate(10, 8)) == "about 2 s left"
    late = Estimate(100, 250)
    assert (late.percent, expected(late)) == (99, "usually 2 min")
    assert Estimate(0, 5).percent == 99


def test_pushes_and_artifacts_have_bars_of_their_own() -> None:
    results = {
        "images": [{"name": "app", "pushTiming": span(8, 9)}],
        "artifactTiming": span(9, 11),
    }
    timing = {"SETUPBUILD": span(2, 3), "FETCHSOURCE": span(2, 4), "PUSH": span(8, 11)}
    steps = [{"name": "a", "status": "SUCCESS", "timing": span(4, 8), "pullTiming": span(4, 5)}]
    bars = waterfall(
        stored(steps=steps, results=results, timing=timing).document, [()], NOW, {0: 0.5}
    )
    assert [(bar.label, bar.start_s, bar.end_s, bar.is_critical) for bar in bars] == [
        ("queue", 0, 2, True),
        ("setup", 2, 3, False),
        ("source", 2, 4, True),
        ("#0 a", 4, 8, True),
        ("push app", 8, 9, True),
        ("artifacts", 9, 11, True),
    ]
    [step] = [bar for bar in bars if bar.kind == "step"]
    assert (step.pull_s, step.run_from_s) == (1.0, 1.5)


@given(st.floats(min_value=0, max_value=1e6))
def test_the_axis_has_few_marks_and_they_lie_on_it(total: float) -> None:
    marks = ticks(total)
    assert len(marks) <= 30
    assert all(mark <= total for mark in marks)


def test_trends_are_told_by_trigger_and_by_branch() -> None:
    def ended(status: str, trigger: str, branch: str) -> StoredBuild:
        values = {"BRANCH_NAME": "forged", "TRIGGER_NAME": "forged"}
        built = stored(
            status=status,
            buildTriggerId=trigger,
            substitutions=values,
            source={"gitSource": {"url": "https://x/y", "revision": "main"}},
        )
        labels = {"trigger_name": f"name-{trigger}", "built_ref": f"refs/heads/{branch}"}
        return replace(built, labels=labels)

    summed = trends(
        [
            ended("SUCCESS", "t1", "main"),
            ended("FAILURE", "t1", "dev"),
            ended("SUCCESS", "t2", "main"),
        ]
    )
    assert [(one.key, one.name, one.builds, one.failed) for one in summed.triggers] == [
        ("t1", "name-t1", 2, 1),
        ("t2", "name-t2", 1, 0),
    ]
    assert [(one.key, one.builds, one.failed) for one in summed.branches] == [
        ("main", 2, 0),
        ("dev", 1, 1),
    ]
    assert failure_line(summed.points) == [0, 0.5, 1 / 3]


def test_starters_of_triggers_are_triggers() -> None:
    for name, (_, text) in STARTERS.items():
        trigger = trigger_of(text)
        assert errors_of(check_trigger(decode_message(BuildTrigger, trigger).value)) == [], name
