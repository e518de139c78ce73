"""What a payload does not tell is asked for: only when it matters, and once for all triggers."""

from __future__ import annotations

from typing import Any

import pytest

from buildrunner.errors import ServerError, SourceError
from buildrunner.server.events.facts import EventFacts, KnownEvent, SilentPlaces
from buildrunner.spec.model.trigger import (
    BuildTrigger,
    CommentControl,
    GitHubEventsConfig,
    PullRequestFilter,
    PushFilter,
)
from buildrunner.triggers.events import PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forge_host import named_forge
from buildrunner.triggers.hook_binding import on_host
from buildrunner.triggers.repository import TriggerRepository

OLD, NEW = "a" * 40, "b" * 40
URL = "https://git.example.com/acme/app.git"
FORK = "https://git.example.com/eve/app.git"
GITEA = named_forge("gitea", "git.example.com")
REPOSITORY = on_host(Repository(full_name="acme/app"), GITEA)
WANTED = TriggerRepository(name="acme/app", host=GITEA)


def push(**fields: Any) -> PushEvent:
    given = {"repository": REPOSITORY, "ref": "refs/heads/main", "before": OLD, "after": NEW}
    return PushEvent(**{**given, **fields})


def pull(**fields: Any) -> PullRequestEvent:
    given = {
        "repository": REPOSITORY,
        "number": 7,
        "action": "opened",
        "base_branch": "main",
        "head_branch": "feat",
        "head_commit": NEW,
        "base_commit": OLD,
        "head_clone_url": FORK,
        "author": "eve",
        "author_id": "e-1",
        "commenter_id": "a-1",
    }
    return PullRequestEvent(**{**given, **fields})


def trigger(**fields: Any) -> BuildTrigger:
    events = fields.pop("events", {"push": PushFilter(branch=".")})
    return BuildTrigger(
        name="t", github=GitHubEventsConfig(owner="acme", name="app", **events), **fields
    )


def pulls(control: CommentControl = CommentControl.COMMENTS_DISABLED) -> dict[str, Any]:
    return {"pull_request": PullRequestFilter(branch=".", comment_control=control)}


class Asked:
    """Answers, and remembers the questions."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.questions: list[tuple[Any, ...]] = []

    def _answer(self, name: str, *arguments: Any) -> Any:
        self.questions.append((name, *arguments))
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def facts(self) -> EventFacts:
        return EventFacts(
            files=lambda *requested: self._answer("files", *requested),
            message=lambda *requested: self._answer("message", *requested),
            refs=lambda *requested: self._answer("refs", *requested),
            may_write=lambda *requested: self._answer("may_write", *requested),
        )

    def known(self, event: PushEvent | PullRequestEvent) -> KnownEvent:
        return KnownEvent(event, self.facts(), SilentPlaces())


@pytest.mark.parametrize(
    ("event", "requested", "where"),
    [
        (push(), trigger(), URL),
        (
            push(ref="refs/tags/v1", before=""),
            trigger(events={"push": PushFilter(tag=".")}),
            URL,
        ),
        (pull(), trigger(events=pulls()), FORK),
    ],
)
def test_a_skip_marker_that_the_payload_does_not_tell_is_honoured(
    event: PushEvent | PullRequestEvent, requested: BuildTrigger, where: str
) -> None:
    git = Asked(message="change\n\n[ci skip]")
    verdict = git.known(event).judge(requested, WANTED)
    assert not verdict.fires
    assert verdict.reason == "[ci skip] is in the message of the head commit"
    assert git.questions == [("message", where, NEW)]


def test_what_would_not_fire_anyway_asks_nothing() -> None:
    git = Asked()
    other = trigger(events={"push": PushFilter(branch="^other$")}, included_files=("src/**",))
    assert not git.known(push()).judge(other, WANTED).fires
    assert git.questions == []


def test_all_triggers_share_one_answer() -> None:
    git = Asked(message="change", files=("docs/a",))
    known = git.known(push())
    fires = [
        known.judge(trigger(included_files=(pattern,)), WANTED).fires
        for pattern in ("src/**", "docs/**", "src/*")
    ]
    assert fires == [False, True, False]
    assert git.questions == [("message", URL, NEW), ("files", URL, OLD, NEW, False)]


def test_without_an_answer_it_fires_and_says_what_is_not_known() -> None:
    git = Asked(message=SourceError("no such host"), files=SourceError("no such host"))
    known = git.known(push())
    for _ in range(2):
        verdict = known.judge(trigger(included_files=("src/**",)), WANTED)
        assert verdict.fires
        texts = [rule.text for rule in verdict.rules]
        assert "the message of the head commit is not known: no such host" in texts
        assert [rule.name for rule in verdict.rules].count("skip") == 1
    assert len(git.questions) == 1


def test_the_whole_commit_is_asked_for_where_the_payload_has_twelve_characters() -> None:
    git = Asked(refs={"refs/heads/feat": NEW, "refs/heads/main": OLD})
    known = git.known(pull(head_commit=NEW[:12]))
    assert known.complete() == ""
    assert isinstance(known.event, PullRequestEvent)
    assert known.event.head_commit == NEW
    assert git.questions == [("refs", FORK)]
    nothing = git.known(pull(head_commit=""))
    assert nothing.complete() == ""
    assert isinstance(nothing.event, PullRequestEvent)
    assert nothing.event.head_commit == NEW
    gone = git.known(pull(head_commit="", head_branch="gone"))
    assert "gone is not there any more" in gone.complete()
    late = git.known(pull(head_commit="c" * 12))
    assert "feat is not at cccccccccccc any more" in late.complete()


@pytest.mark.parametrize(("may", "fires"), [(True, True), (False, False)])
def test_a_comment_counts_when_its_writer_may_write(may: bool, fires: bool) -> None:
    forge = Asked(may_write=may, message="change")
    event = pull(action="commented", comment="/gcbrun", commenter="adam")
    verdict = forge.known(event).judge(
        trigger(events=pulls(CommentControl.COMMENTS_ENABLED)), WANTED
    )
    assert verdict.fires is fires
    assert forge.questions[0] == ("may_write", REPOSITORY, "a-1", "adam")


def test_other_comments_ask_nobody() -> None:
    forge = Asked()
    event = pull(action="commented", comment="nice", commenter="adam")
    assert not forge.known(event).judge(trigger(events=pulls()), WANTED).fires
    assert forge.questions == []


@pytest.mark.parametrize(("may", "fires"), [(True, True), (False, False)])
def test_external_contributors_are_told_from_others(may: bool, fires: bool) -> None:
    forge = Asked(may_write=may, message="change")
    control = CommentControl.COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY
    verdict = forge.known(pull()).judge(trigger(events=pulls(control)), WANTED)
    assert verdict.fires is fires
    assert verdict.waits_for_comment is not fires
    assert forge.questions[0] == ("may_write", REPOSITORY, "e-1", "eve")


def test_a_right_that_nobody_tells_is_no_right_and_the_reason_says_so() -> None:
    forge = Asked(may_write=ServerError("api.example.com answers 401"))
    event = pull(action="commented", comment="/gcbrun", commenter="adam")
    verdict = forge.known(event).judge(trigger(events=pulls()), WANTED)
    assert not verdict.fires
    assert verdict.reason == "adam wrote /gcbrun, but it is unknown whether adam may write"
    assert any("answers 401" in rule.text for rule in verdict.rules)


def test_who_was_silent_is_not_asked_again_for_a_while() -> None:
    now = [0.0]
    places = SilentPlaces(lambda: now[0])

    def hangs() -> str:
        now[0] += 120
        raise SourceError("no answer within 120 s")

    with pytest.raises(SourceError):
        places.ask(URL, hangs)
    with pytest.raises(ServerError, match="did not answer a moment ago"):
        places.ask(URL, lambda: "never asked")
    assert places.ask(FORK, lambda: "another place") == "another place"
    now[0] += 61
    assert places.ask(URL, lambda: "back") == "back"


def test_a_quick_no_is_asked_again() -> None:
    places = SilentPlaces(lambda: 0.0)

    def refuses() -> str:
        raise SourceError("the server refuses")

    for _ in range(2):
        with pytest.raises(SourceError):
            places.ask(URL, refuses)


ONLY_SRC = {"included_files": ("src/**",)}


@pytest.mark.parametrize(
    ("told", "differ", "fires"),
    [
        (("docs/a",), ("docs/a", "src/b"), True),  # the old head had changed src/b, too
        (("src/a",), ("docs/a",), False),  # the same commits on another base
    ],
)
def test_git_is_asked_for_files_where_the_payload_does_not_say_whether_the_push_was_forced(
    told: tuple[str, ...], differ: tuple[str, ...], fires: bool
) -> None:
    git = Asked(files=differ)
    known = git.known(push(message="change", files=told, doubtful_files=True))
    for _ in range(2):
        assert known.judge(trigger(**ONLY_SRC), WANTED).fires is fires
    assert known.judge(trigger(), WANTED).fires
    assert git.questions == [("files", URL, OLD, NEW, False)]


def test_doubtful_files_are_not_asked_about_where_no_filter_wants_them() -> None:
    git = Asked()
    event = push(message="change", files=("a",), doubtful_files=True)
    assert git.known(event).judge(trigger(), WANTED).fires
    assert git.questions == []


def test_without_an_answer_doubtful_files_count_as_unknown() -> None:
    git = Asked(files=SourceError("no such host"))
    known = git.known(push(message="change", files=("docs/a",), doubtful_files=True))
    for _ in range(2):
        verdict = known.judge(trigger(**ONLY_SRC), WANTED)
        assert verdict.fires
        assert "which files changed is not known: no such host" in [r.text for r in verdict.rules]
    assert len(git.questions) == 1
    alone = KnownEvent(push(files=("docs/a",), doubtful_files=True), EventFacts(), SilentPlaces())
    assert not alone.judge(trigger(**ONLY_SRC), WANTED).fires  # `triggers test` asks nobody


def tag(**fields: Any) -> PushEvent:
    return push(ref="refs/tags/v1", before="", after=OLD, may_be_unpeeled=True, **fields)


def test_git_is_asked_which_commit_a_tag_points_to_where_the_payload_has_the_tag_s_object() -> None:
    git = Asked(refs={"refs/tags/v1": NEW, "refs/heads/main": OLD})
    known = git.known(tag())
    assert known.complete() == ""
    assert isinstance(known.event, PushEvent)
    assert (known.event.after, known.event.may_be_unpeeled) == (NEW, False)
    assert git.questions == [("refs", URL)]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({}, ""),
        (SourceError("no such host"), "Git was asked which commit v1 points to: no such host"),
    ],
)
def test_a_tag_that_git_does_not_tell_of_stays_as_it_is(answer: Any, problem: str) -> None:
    known = Asked(refs=answer).known(tag())
    assert known.complete() == problem
    assert known.event == tag()
    nobody = KnownEvent(tag(), EventFacts(), SilentPlaces())
    assert nobody.complete() == ""


def test_the_forge_is_not_asked_about_comments_that_ask_for_nothing() -> None:
    def complete(_: PullRequestEvent) -> PullRequestEvent:
        raise AssertionError

    facts = EventFacts(complete=complete)
    event = pull(action="commented", comment="nice", head_commit="", base_branch="")
    assert KnownEvent(event, facts, SilentPlaces()).complete() == ""


def test_a_forge_that_is_silent_silences_no_other_of_its_kind() -> None:
    now = [0.0]
    requested = []

    def complete(event: PullRequestEvent) -> PullRequestEvent:
        requested.append(event.repository.host)
        now[0] += 60
        raise ServerError("no answer")

    places = SilentPlaces(lambda: now[0])
    for host in ("one.example", "one.example", "two.example"):
        event = pull(
            action="commented",
            comment="/gcbrun",
            head_commit="",
            base_branch="",
            repository=on_host(REPOSITORY, named_forge("gitea", host)),
        )
        assert KnownEvent(event, EventFacts(complete=complete), places).complete()
    assert requested == [named_forge("gitea", "one.example"), named_forge("gitea", "two.example")]


def test_a_fork_that_is_behind_leaves_it_to_the_base_to_tell_what_a_pull_request_changes() -> None:
    requested = []

    def files(url: str, old: str, new: str, from_merge_base: bool) -> tuple[str, ...]:
        requested.append((url, old, new, from_merge_base))
        if url == FORK:
            raise SourceError("no such commit")
        return ("docs/a",)

    known = KnownEvent(pull(message="change"), EventFacts(files=files), SilentPlaces())
    assert not known.judge(trigger(events=pulls(), **ONLY_SRC), WANTED).fires
    assert requested == [(FORK, OLD, NEW, True), (URL, OLD, NEW, True)]


def test_a_push_asks_its_own_repository_only() -> None:
    git = Asked(message="change", files=SourceError("no such commit"))
    assert git.known(push(forced=True)).judge(trigger(**ONLY_SRC), WANTED).fires
    assert [name for name, *_ in git.questions] == ["message", "files"]
