"""Facts that a delivery lacks, requested from Git and the forge: once, and only if they matter.

All triggers share the answers about one event. The payload of a comment on GitHub or Gitea names
neither the branches nor the commits of its pull request, and few payloads say who may write.

Source: GitHub's "Get a pull request" and "Get repository permissions for a user", Gitea's
``repoGetPullRequest`` and ``repoGetRepoPermissions``; see the forges' modules for the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from buildrunner.errors import (
    BuildrunnerError,
    SecretError,
    SecretNotFound,
    ServerError,
    ServerUnavailable,
    StoreError,
)
from buildrunner.secrets.secret_name import forge_host
from buildrunner.server.bounded import TOO_LONG, Busy
from buildrunner.server.context import ServerSecrets
from buildrunner.server.http.pinned import (
    HostNotFound,
    HttpAnswer,
    NotDelivered,
    PinnedHttp,
    TargetGate,
)
from buildrunner.server.outbox.http import ForgeInClear, forge_token
from buildrunner.sources.git.errors import TRANSIENT, GitFailed
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.triggers.cel import LONGEST_S
from buildrunner.triggers.events import (
    Event,
    PullRequestEvent,
    PushEvent,
    Repository,
    Rule,
    Verdict,
)
from buildrunner.triggers.forge_host import is_full_name, repository_key
from buildrunner.triggers.forges.forge import BadDelivery, items, number, part, text
from buildrunner.triggers.forges.github import pull_request_event
from buildrunner.triggers.matching import (
    FilterRule,
    Question,
    asks_for_build,
    match,
    open_question,
    payload_rule,
)
from buildrunner.triggers.repository import TriggerRepository

if TYPE_CHECKING:
    import httpx


_MOST_FILES: Final = 100_000
_SHA_LENGTH: Final = 40

ChangedFiles = Callable[[str, str, str, bool], "tuple[str, ...]"]
"""Returns the changed paths between two commits.

Arguments: the repository's URL, the old and the new commit, and whether from their merge base.
"""


class EventFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The sources of facts. All raise `BuildrunnerError`. A source that is None is never used.

    Attributes:
        files: returns the paths that differ between two commits.
        message: returns a commit's message, by the repository's URL and the SHA.
        refs: returns commits by full name of ref, for the repository's URL.
        complete: returns a comment's event with the branches and commits of its pull request.
        may_write: returns whether a person may write to a repository, given the repository, the
            person's id in the forge's API, and the login.
        stop: ends all running requests.
    """

    files: ChangedFiles | None = None
    message: Callable[[str, str], str] | None = None
    refs: Callable[[str], Mapping[str, str]] | None = None
    complete: Callable[[PullRequestEvent], PullRequestEvent] | None = None
    may_write: Callable[[Repository, str, str], bool] | None = None
    stop: Callable[[], None] = lambda: None


class KnownEvent:
    """An event, completed by facts that its payload lacks. Used by one thread.

    Args:
        event: as the delivery reports it.
        facts: the sources of facts.
        places: makes the requests. An error other than `BuildrunnerError` is raised.

    Attributes:
        event: the event with the facts so far.
        waits_for: why a needed fact is still unknown; empty if no fact is awaited.
        asked_s: seconds that Git servers and forges have taken to answer.
    """

    def __init__(self, event: Event, facts: EventFacts, places: Places) -> None:
        self.event = event
        self.waits_for = ""
        self.asked_s = 0.0
        self._facts = facts
        self._places = places
        self._unanswered: dict[Question, BuildrunnerError | None] = {}

    def _asked(self, place: str, question: Callable[[], _Answer]) -> _Answer:
        began = time.monotonic()
        try:
            return self._places.ask(place, question)
        finally:
            self.asked_s += time.monotonic() - began

    def about(self, event: Event) -> KnownEvent:
        """Return a new `KnownEvent` about another event, with the same sources of facts."""
        return KnownEvent(event, self._facts, self._places)

    @property
    def lacks_commit(self) -> bool:
        """Return whether the commit of the event must be requested from Git or the forge."""
        event = self.event
        if isinstance(event, PushEvent):
            return event.may_be_unpeeled and bool(event.after)
        if not isinstance(event, PullRequestEvent) or len(event.head_commit) >= _SHA_LENGTH:
            return False
        # Forges limit the rate of requests to their API.
        return event.action != "commented" or asks_for_build(event)

    def complete(self) -> str:
        """Request the commit of a pull request or tag. Returns the error; empty on success."""
        event = self.event
        if isinstance(event, PushEvent):
            return self._complete_tag(event)
        if not isinstance(event, PullRequestEvent) or not self.lacks_commit:
            return ""
        try:
            self.event = self._whole(event) if event.base_branch else self._completed(event)
        except StoreError:
            raise
        except BuildrunnerError as error:
            self._note(error)
            return f"the server requested facts from the forge that the delivery lacks: {error}"
        return ""

    def _complete_tag(self, event: PushEvent) -> str:
        """Request the commit of an annotated tag, if the payload has the tag's object."""
        url, ask = event.repository.clone_url, self._facts.refs
        if not (self.lacks_commit and url and ask):
            return ""
        try:
            found = self._asked(url, lambda: ask(url)).get(event.ref, "")
        except StoreError:
            raise
        except BuildrunnerError as error:
            return f"Git was asked which commit {event.tag} points to: {error}"
        if found:
            self.event = replace(event, after=found, may_be_unpeeled=False)
        return ""

    def judge(
        self,
        trigger: BuildTrigger,
        repository: TriggerRepository | None,
        filter_rule: FilterRule = payload_rule,
    ) -> Verdict:
        """Return whether the event fires a trigger. Requests the facts that decide it.

        Args:
            trigger: a valid trigger.
            repository: the trigger's repository.
            filter_rule: see `match`.

        Raises:
            Busy: the project has too many running filters.
            NotNow: see `Places`.
        """
        while True:
            verdict = self._matched(trigger, repository, filter_rule)
            question = open_question(trigger, self.event, verdict)
            if question is None:
                return verdict
            if question not in self._unanswered and self._ask(question):
                continue
            error = self._unanswered.get(question)
            return verdict if error is None else self._unsure(verdict, question, error)

    def _matched(
        self,
        trigger: BuildTrigger,
        repository: TriggerRepository | None,
        filter_rule: FilterRule,
    ) -> Verdict:
        """Return the verdict from known facts. Raises `MustAsk` if a filter needs more time."""
        longest_s = self._places.filter_s
        try:
            verdict = match(
                trigger,
                self.event,
                repository=repository,
                longest_s=longest_s,
                filter_rule=filter_rule,
            )
        except Busy:
            self._places.give_up(trigger)
            raise
        last = verdict.rules[-1]
        if not verdict.fires and last.name == "filter" and TOO_LONG in last.text:
            self._places.give_up(trigger)
        return verdict

    def _unsure(self, verdict: Verdict, question: Question, error: BuildrunnerError) -> Verdict:
        """Return the verdict, with the reason why a fact is unknown."""
        doubtful = _with_doubt(verdict, question, str(error))
        if verdict.fires or not may_pass(error):
            return doubtful
        self._note(error)
        return replace(doubtful, waits_for_answer=True)

    def _note(self, error: BuildrunnerError) -> None:
        if may_pass(error) and not self.waits_for:
            self.waits_for = str(error)

    def _completed(self, event: PullRequestEvent) -> PullRequestEvent:
        if self._facts.complete is None:
            return event
        ask = self._facts.complete
        return self._asked(_host(event.repository), lambda: ask(event))

    def _whole(self, event: PullRequestEvent) -> PullRequestEvent:
        """Return the event with the full SHA of its head, which the payload shortens or omits."""
        url, ask = event.head_clone_url or event.repository.clone_url, self._facts.refs
        if ask is None or not url:
            return event
        found = self._asked(url, lambda: ask(url)).get(f"refs/heads/{event.head_branch}", "")
        if not (found and found.startswith(event.head_commit)):
            where = f"at {event.head_commit}" if event.head_commit else "there"
            raise ServerError(f"{event.head_branch} is not {where} any more")
        return replace(event, head_commit=found)

    def _ask(self, question: Question) -> bool:
        """Request a fact. Returns whether the event changed, so that triggers are matched again."""
        try:
            learned = self._learned(question)
        except StoreError:
            raise
        except BuildrunnerError as error:
            self._unanswered[question] = error
            return self._doubts_files(question)
        if learned is None:
            self._unanswered[question] = None
            return False
        self.event = learned
        return True

    def _doubts_files(self, question: Question) -> bool:
        """Treat a doubtful list of files as unknown. Returns whether the event changed."""
        event = self.event
        if question is Question.FILES and isinstance(event, PushEvent) and event.doubtful_files:
            self.event = replace(event, files=None, doubtful_files=False)
            return True
        return False

    def _learned(self, question: Question) -> Event | None:
        """Return the event with the answer; None without a source or an answer."""
        event = self.event
        assert isinstance(event, PushEvent | PullRequestEvent)  # noqa: S101  (messages ask nothing)
        match question:
            case Question.MESSAGE:
                message = self._message(event)
                return replace(event, message=message) if message else None
            case Question.FILES:
                files = self._files(event)
                return _with_files(event, files[:_MOST_FILES]) if files is not None else None
            case Question.COMMENTER_MAY_WRITE:
                assert isinstance(event, PullRequestEvent)  # noqa: S101
                known = self._may_write(event, event.commenter_id, event.commenter)
                return replace(event, commenter_may_write=known) if known is not None else None
            case Question.AUTHOR_MAY_WRITE:
                assert isinstance(event, PullRequestEvent)  # noqa: S101
                known = self._may_write(event, event.author_id, event.author)
                return replace(event, author_may_write=known) if known is not None else None

    def _message(self, event: PushEvent | PullRequestEvent) -> str:
        url, commit = _head(event)
        ask = self._facts.message
        if ask is None or not url or len(commit) < _SHA_LENGTH:
            return ""
        return self._asked(url, lambda: ask(url, commit))

    def _files(self, event: PushEvent | PullRequestEvent) -> tuple[str, ...] | None:
        url, new = _head(event)
        old = event.before if isinstance(event, PushEvent) else event.base_commit
        if self._facts.files is None or not (url and old and len(new) >= _SHA_LENGTH):
            return None
        try:
            return self._differing(url, old, new, event)
        except StoreError:
            raise
        except BuildrunnerError:
            base = event.repository.clone_url
            if base in ("", url):
                raise
            # A fork lacks newer commits of the base branch. The base has the pull requests' heads.
            return self._differing(base, old, new, event)

    def _differing(
        self, url: str, old: str, new: str, event: PushEvent | PullRequestEvent
    ) -> tuple[str, ...]:
        ask = self._facts.files
        assert ask is not None  # noqa: S101  (tested by the caller)
        from_merge_base = isinstance(event, PullRequestEvent)
        return self._asked(url, lambda: ask(url, old, new, from_merge_base))

    def _may_write(self, event: PullRequestEvent, identity: str, person: str) -> bool | None:
        ask, repository = self._facts.may_write, event.repository
        if ask is None or repository.host is None or not identity:
            return None
        return self._asked(_host(repository), lambda: ask(repository, identity, person))


def _host(repository: Repository) -> str:
    """Return the host of the forge's API."""
    return urlsplit(repository.host.api).netloc if repository.host else ""


def _with_files(event: PushEvent | PullRequestEvent, files: tuple[str, ...]) -> Event:
    if isinstance(event, PushEvent):
        return replace(event, files=files, doubtful_files=False)
    return replace(event, files=files)


def _head(event: PushEvent | PullRequestEvent) -> tuple[str, str]:
    """Return the clone URL and the id of the commit that would be built."""
    if isinstance(event, PushEvent):
        return event.repository.clone_url, event.after
    return event.head_clone_url or event.repository.clone_url, event.head_commit


def _with_doubt(verdict: Verdict, question: Question, reason: str) -> Verdict:
    """Return the verdict with a rule about the unknown fact. That rule decides nothing."""
    names = {Question.MESSAGE: "skip", Question.FILES: "files"}
    name = names.get(question, "comment")
    unsure = Rule(name=name, passed=None, text=f"{question.value} is not known: {reason}")
    if not verdict.fires:  # the failed rule stays the last one
        return replace(verdict, rules=(*verdict.rules[:-1], unsure, verdict.rules[-1]))
    rules = tuple(unsure if rule.name == name else rule for rule in verdict.rules)
    return replace(verdict, rules=rules)


_Answer = TypeVar("_Answer")

_SILENT_S: Final = 60.0
_QUICK_S: Final = 1.0


class NotNow(Exception):
    """Raised to stop handling a delivery, and to start again elsewhere or later. No failure."""


class MustAsk(NotNow):
    """Raised if a request or a trigger may take long, and this handler must not wait.

    Attributes:
        place: the address or host to query, or the trigger in words.
        project: the project whose trigger needs the answer; empty until the handler sets it.
    """

    def __init__(self, place: str, project: str = "") -> None:
        super().__init__(place)
        self.place = place
        self.project = project


class Places(Protocol):
    """Makes requests to Git servers and forges.

    Attributes:
        filter_s: seconds that a trigger's filter may take for an event.
        project_s: seconds that all triggers of a project may take for an event.
    """

    filter_s: float
    project_s: float

    def ask(self, place: str, question: Callable[[], _Answer]) -> _Answer:
        """Return the answer of a place.

        Args:
            place: the queried address or host.
            question: makes the request.

        Raises:
            BuildrunnerError: there is no answer; see `may_pass`.
            NotNow: no requests are made now.
        """
        ...

    def give_up(self, trigger: BuildTrigger) -> None:
        """Note that a trigger takes too long. Raises `MustAsk` if it may get more time."""
        ...


class SilentPlaces:
    """Makes requests. Thread-safe.

    A place that took more than a second to fail is not queried again for one minute.

    Args:
        now: a monotonic clock, in seconds.
    """

    filter_s = LONGEST_S
    project_s = 10.0

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until: dict[str, float] = {}
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Refuse further requests: callers retry later, see `NotNow`."""
        self._stopped.set()

    def check(self, place: str) -> None:
        """Raise `ServerUnavailable` if the place failed slowly within the last minute."""
        if self._now() < self._until.get(place, 0.0):
            raise ServerUnavailable(f"{place} did not answer a moment ago")

    def ask(self, place: str, question: Callable[[], _Answer]) -> _Answer:
        """See `Places.ask`."""
        if self._stopped.is_set():
            raise NotNow
        self.check(place)
        begun = self._now()
        try:
            answer = question()
        except StoreError:
            raise
        except BuildrunnerError as error:
            if self._stopped.is_set():
                raise NotNow from error
            if self._now() - begun > _QUICK_S:  # a quick refusal costs no time
                now = self._now()
                self._until = {name: at for name, at in self._until.items() if at > now}
                self._until[place] = now + _SILENT_S
            raise
        self._until.pop(place, None)
        return answer

    def give_up(self, trigger: BuildTrigger) -> None:
        """See `Places.give_up`: there is no more time."""


class OfflinePlaces:
    """Makes no requests, for callers that must not wait. Thread-safe.

    Args:
        places: knows the places that failed slowly. For those, the error is raised at once.
    """

    filter_s = 0.1
    project_s = 0.2

    def __init__(self, places: SilentPlaces) -> None:
        self._places = places

    def ask(self, place: str, question: Callable[[], _Answer]) -> _Answer:  # noqa: ARG002
        """See `Places.ask`."""
        self._places.check(place)
        raise MustAsk(place)

    def give_up(self, trigger: BuildTrigger) -> None:
        """See `Places.give_up`."""
        raise MustAsk(f"trigger {trigger.id}")


def may_pass(error: BuildrunnerError) -> bool:
    """Return whether an error is temporary: the same request may succeed later."""
    if isinstance(error, GitFailed):
        return error.kind in TRANSIENT
    return isinstance(error, ServerUnavailable)


_PASSING: Final = frozenset({408, 425, 429})
_MOST_BYTES: Final = 5 << 20


class ForgeApi:
    """Completes pull requests, and checks who may write. Thread-safe.

    The token is that of the forge's host, as for statuses (`forge_token`). Without one the requests
    are anonymous, which is enough for public repositories.

    Args:
        secrets: the server's secrets.
        gate: decides which hosts may be contacted.
    """

    def __init__(self, secrets: ServerSecrets, gate: TargetGate) -> None:
        self._secrets = secrets
        self._gate = gate

    def complete(self, event: PullRequestEvent) -> PullRequestEvent:
        """Return the event with its branches and its commits.

        Raises:
            ServerUnavailable: the API does not answer now.
            ServerError: the API refuses the request, or its answer is not as expected.
        """
        repository = event.repository
        url = (
            repository.host.pull_request_api(repository.full_name, event.number)
            if repository.host
            else ""
        )
        if not url:
            return event
        try:
            return completed(event, self._get(url, repository.forge))
        except BadDelivery as error:
            raise ServerError(f"{_host_of_url(url)} sent no pull request: {error}") from error

    def may_write(self, repository: Repository, identity: str, person: str) -> bool:
        """Return whether a person may write to a repository.

        Args:
            repository: a repository of a forge.
            identity: the person's id in the forge's API.
            person: the person's login.

        Raises:
            ServerUnavailable: the API does not answer now.
            ServerError: the API refuses the request, or its answer is not as expected.
        """
        host, forge = repository.host, repository.forge
        if host is None:
            return False
        url = host.rights_api(repository.full_name, identity)
        return may_write(forge, person, self._get(url, forge, {} if forge == "gitlab" else None))

    def _get(self, url: str, forge: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer as JSON. A 404 returns ``missing``, or is an error if that is None."""
        import httpx

        host = _host_of_url(url)
        try:
            headers = self._headers(url, forge)
            with closing(PinnedHttp()) as http:
                answer = http.call(self._gate, "GET", url, headers, most_bytes=_MOST_BYTES)
        except HostNotFound as error:
            raise ServerUnavailable(str(error)) from error
        except NotDelivered as error:
            raise ServerError(f"the server may not ask {host or url}: {error}") from error
        except httpx.InvalidURL as error:
            raise ServerError(f"{host} can't be reached: its address is invalid") from error
        except httpx.HTTPError as error:
            raise ServerUnavailable(f"{host} does not answer: {_said(error)}") from error
        if answer.is_cut:
            raise ServerError(f"{host} answers with more than {_MOST_BYTES} bytes")
        code = answer.status_code
        if code == 404 and missing is not None:
            return missing
        if code in _PASSING or code >= 500 or (code == 403 and _is_limited(answer)):
            raise ServerUnavailable(f"{host} answers {code} when asked for {urlsplit(url).path}")
        if code != 200:
            raise ServerError(
                f"{host} answers {code} when asked for {urlsplit(url).path}",
                hint=f"set its token: buildrunner secrets set --forge {forge_host(url)}",
            )
        try:
            found = msgspec.json.decode(answer.content)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ServerError(f"{host} does not answer with JSON") from error
        return found if isinstance(found, dict) else {}

    def _headers(self, url: str, forge: str) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        try:
            token = forge_token(self._secrets, url)
        except (SecretNotFound, ForgeInClear):
            return headers
        except SecretError as error:
            host = forge_host(url)
            raise ServerUnavailable(f"the token of {host} can't be had now: {error}") from error
        scheme = "token" if forge in ("github", "gitea") else "Bearer"
        return {**headers, "Authorization": f"{scheme} {token}"}


def _said(error: httpx.HTTPError) -> str:
    """Return the name of the error, or its text if buildrunner raised it."""
    import httpx

    return str(error) if type(error) is httpx.TransportError else type(error).__name__


def _is_limited(answer: HttpAnswer) -> bool:
    """Return whether a refusal is about the rate of requests.

    Source: GitHub's "Rate limits for the REST API".
    """
    return "retry-after" in answer.headers or answer.headers.get("x-ratelimit-remaining") == "0"


def _host_of_url(url: str) -> str:
    return urlsplit(url).hostname or ""


_WRITING = frozenset({"write", "maintain", "admin", "owner"})
_GITLAB_DEVELOPER = 30


def completed(event: PullRequestEvent, pull: dict[str, Any]) -> PullRequestEvent:
    """Return the event with the API's data about its pull request.

    Args:
        event: event of a comment.
        pull: the API's answer.

    Raises:
        BadDelivery: the answer is no pull request, or one of another repository.
    """
    body = {"repository": part(pull, "base", "repo"), "pull_request": pull}
    reported = pull_request_event(body, event.action, event.repository.forge)
    base, head = event.repository, reported.head_full_name
    if repository_key(reported.repository.full_name) != repository_key(base.full_name):
        raise BadDelivery(f"it is one of {reported.repository.full_name}, not of {base.full_name}")
    if head and not is_full_name(head):
        raise BadDelivery(f"{head!r} is not the full name of a repository")
    return replace(
        event,
        base_branch=reported.base_branch,
        head_branch=reported.head_branch,
        head_commit=reported.head_commit,
        base_commit=reported.base_commit,
        head_full_name=head,
        head_clone_url=base.host.clone_url(head) if base.host and head else "",
        is_fork=reported.is_fork,
    )


def may_write(forge: str, person: str, answer: dict[str, Any]) -> bool:
    """Return whether a person may write to the repository, from the API's answer about rights.

    Args:
        forge: see `Repository`.
        person: the person's login.
        answer: the API's answer.
    """
    match forge:
        case "gitlab":
            return number(answer, "access_level") >= _GITLAB_DEVELOPER
        case "bitbucket":
            return any(text(one, "permission") in _WRITING for one in items(answer, "values"))
        case "bitbucket-server":
            return any(text(one, "name") == person for one in items(answer, "values"))
        case _:
            return text(answer, "permission") in _WRITING
