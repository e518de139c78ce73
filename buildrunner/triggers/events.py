"""Events of a forge, in one form for all forges.

The parsers of webhooks make these, and so do the hook of a bare repository and the loop that checks
for missed pushes. This module has no forge-specific names.
"""

from __future__ import annotations

from typing import Any

import msgspec

from buildrunner.triggers.forge_host import ForgeHost


def is_commit(name: str) -> bool:
    """Return whether a payload's value is a commit, and not empty or zeros."""
    return bool(name.strip("0"))


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """The repository of an event.

    Attributes:
        full_name: ``owner/name``, or ``group/subgroup/name``; just ``name`` for a bare repository.
        clone_url: its URL for Git. In a parsed payload: the payload's, which `hook_binding.bound`
            replaces with the computed URL.
        urls: other addresses in the payload: web page, ssh, ...; empty once it is bound.
        forge: a kind of `forge_host.KINDS`, or ``git`` if unknown.
        host: the forge of the hook's binding; None before it is bound, and if it has no forge.
        bare: whether it is a bare repository, whose own hook reports its events.
    """

    full_name: str
    clone_url: str = ""
    urls: tuple[str, ...] = ()
    forge: str = "git"
    host: ForgeHost | None = None
    bare: bool = False


class PushEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A branch or tag was created, moved or deleted.

    Attributes:
        repository: its repository.
        ref: full name: ``refs/heads/main``, ``refs/tags/v1``.
        before: previous commit; empty for a new ref.
        after: new commit, tags peeled; empty for a deleted ref.
        may_be_unpeeled: ``after`` may be the object of an annotated tag.
        message: message of the head commit; empty if the payload has none.
        files: paths that changed from ``before`` to ``after``; None if the payload does not have
            them (too many commits, a forced push, a new branch).
        forced: ``after`` does not follow from ``before``.
        doubtful_files: ``files`` are those of the new commits. If the push was forced, which the
            payload does not say, other files differ, too.
        skip_option: the push option that requests no build; empty if it was not given.
        author: the user who pushed.
        body: the payload, for ``$(body...)``.
    """

    repository: Repository
    ref: str
    before: str = ""
    after: str = ""
    may_be_unpeeled: bool = False
    message: str = ""
    files: tuple[str, ...] | None = None
    forced: bool = False
    doubtful_files: bool = False
    skip_option: str = ""
    author: str = ""
    body: Any = None

    @property
    def branch(self) -> str:
        """Return the short name of a branch; empty for a tag."""
        return self.ref.removeprefix("refs/heads/") if self.ref.startswith("refs/heads/") else ""

    @property
    def tag(self) -> str:
        """Return the short name of a tag; empty for a branch."""
        return self.ref.removeprefix("refs/tags/") if self.ref.startswith("refs/tags/") else ""

    @property
    def is_deletion(self) -> bool:
        """Return whether the ref was deleted."""
        return not is_commit(self.after)


class PullRequestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A pull (merge) request was opened, reopened, pushed to, or commented on.

    Attributes:
        repository: repository of the base branch.
        number: number of the pull request.
        action: ``opened``, ``reopened``, ``pushed``, ``commented``; ``updated``, if the forge
            does not distinguish commits from texts; other actions (``closed``, ``labeled``, ...)
            never fire.
        base_branch: the target branch.
        head_branch: the source branch.
        head_commit: commit of the source branch, maybe abbreviated; empty if the payload does not
            have it (comments).
        base_commit: commit of the base branch; empty if the payload does not have it.
        head_full_name: full name of the head branch's repository; empty if unknown.
        head_clone_url: URL of the head branch's repository, computed on the base's forge.
        is_fork: the head branch is in another repository, or does not exist (Gitea's AGit flow,
            which every reader can use), or its repository is unknown.
        title, description: texts of the pull request.
        message: message of the head commit; empty if the payload has none.
        author: the user who opened it.
        actor: the user who opened it, pushed or commented; empty if unknown.
        author_may_write: whether the author may write to the repository; None: unknown.
        comment: text of the comment, for ``commented``.
        commenter: author of the comment.
        commenter_may_write: whether the commenter may write to the repository; None: unknown.
        files: files changed from the merge base to the head; None if unknown.
        author_id: the author's id in the forge's API: login, number or UUID.
        commenter_id: the commenter's id there.
        body: the payload, for ``$(body...)`` and ``$(pull_request...)``.
    """

    repository: Repository
    number: int
    action: str
    base_branch: str
    head_branch: str
    head_commit: str = ""
    base_commit: str = ""
    head_full_name: str = ""
    head_clone_url: str = ""
    is_fork: bool = False
    title: str = ""
    description: str = ""
    message: str = ""
    author: str = ""
    actor: str = ""
    author_may_write: bool | None = None
    comment: str = ""
    commenter: str = ""
    commenter_may_write: bool | None = None
    files: tuple[str, ...] | None = None
    author_id: str = ""
    commenter_id: str = ""
    body: Any = None


class MessageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a webhook trigger, or a message of a Pub/Sub topic.

    Attributes:
        kind: ``webhook`` or ``pubsub``.
        body: the payload; for Pub/Sub ``{"message": {"data", "attributes", "messageId",
            "publishTime"}}`` with ``data`` decoded, and parsed if it is JSON.
        topic: the Pub/Sub topic, if known.
    """

    kind: str
    body: Any
    topic: str = ""


Event = PushEvent | PullRequestEvent | MessageEvent


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of a match, and its result.

    Attributes:
        name: ``enabled``, ``repository``, ``ref``, ``branch``, ``comment``, ``skip``, ``files``,
            ``filter``; ``internal`` for a bug of buildrunner.
        passed: its result; None: not evaluated, or not applicable.
        text: one sentence for the user.
    """

    name: str
    passed: bool | None
    text: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The decision whether a trigger fires, with reasons.

    Attributes:
        fires: whether it fires.
        rules: evaluated rules in order; the last one decided if it does not fire.
        hold: it fires, and its build must wait for an approval: a pull request from a fork.
        waits_for_comment: it would fire on a ``/gcbrun`` of a user with write access.
        waits_for_answer: a host did not answer; the trigger may fire once it does.
    """

    fires: bool
    rules: tuple[Rule, ...]
    hold: bool = False
    waits_for_comment: bool = False
    waits_for_answer: bool = False

    @property
    def reason(self) -> str:
        """Return the deciding sentence."""
        return self.rules[-1].text if self.rules else ""
