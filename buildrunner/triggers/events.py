"""Events of a forge, in one form for all forges.

The parsers of webhooks make these, and so do the hook of a bare repository and the loop that looks
for missed pushes. Nothing here knows a forge's own names.
"""

from __future__ import annotations

from typing import Any

import msgspec

from buildrunner.triggers.forge_host import ForgeHost


def is_commit(name: str) -> bool:
    """Whether a payload names a commit, and not "none": nothing, or zeros, 64 with SHA-256."""
    return bool(name.strip("0"))


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """A repository where something happened.

    Attributes:
        full_name: ``owner/name``, or ``group/subgroup/name``; just ``name`` for a bare repository.
        clone_url: where git fetches it. In a parsed payload: what the payload says;
            `hook_binding.bound` replaces it with the address that we compute.
        urls: other addresses in the payload: web page, ssh, ...; empty once it is bound.
        forge: a kind of `forge_host.KINDS`, or ``git`` where the kind is not known.
        host: the forge that the delivery's hook is bound to; None before that, and off forges.
        bare: a bare repository, told of by a hook of its own.
    """

    full_name: str
    clone_url: str = ""
    urls: tuple[str, ...] = ()
    forge: str = "git"
    host: ForgeHost | None = None
    bare: bool = False


class PushEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A branch or tag was made, moved or deleted.

    Attributes:
        repository: where.
        ref: in full: ``refs/heads/main``, ``refs/tags/v1``.
        before: commit it pointed to; empty for a new one.
        after: commit it points to, tags peeled; empty for a deleted one.
        may_be_unpeeled: of a tag; ``after`` is the object of an annotated tag, if it is one.
        message: of the head commit; empty where the payload does not tell.
        files: paths that changed from ``before`` to ``after``; None where the payload does not
            tell (too many commits, a forced push, a new branch).
        forced: ``after`` does not follow from ``before``.
        doubtful_files: ``files`` are those of the commits that are new here. Were the push forced,
            which its payload does not tell, others would differ, too.
        skip_option: the option with which somebody pushed so as not to have it built.
        author: who pushed.
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
        """Short name of a branch; empty for a tag."""
        return self.ref.removeprefix("refs/heads/") if self.ref.startswith("refs/heads/") else ""

    @property
    def tag(self) -> str:
        """Short name of a tag; empty for a branch."""
        return self.ref.removeprefix("refs/tags/") if self.ref.startswith("refs/tags/") else ""

    @property
    def is_deletion(self) -> bool:
        """The ref is gone."""
        return not is_commit(self.after)


class PullRequestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A pull (merge) request was opened, reopened or pushed to, or somebody wrote a comment on it.

    Attributes:
        repository: that of the base branch.
        number: the pull request's.
        action: ``opened``, ``reopened``, ``pushed``, ``commented``; ``updated``, where the forge
            does not tell commits from texts; whatever else it says (``closed``, ``labeled``, ...)
            never fires.
        base_branch: where it is to be merged.
        head_branch: what is to be merged.
        head_commit: its newest commit, or the beginning of its SHA; empty where the payload does
            not tell (comments).
        base_commit: what the base branch points to; empty where the payload does not tell.
        head_full_name: full name of the repository that has the head branch; empty when unknown.
        head_clone_url: where the head branch is fetched from: on the base's forge, computed.
        is_fork: the head branch is in another repository, or is none (Gitea's AGit flow, which
            whoever may read can use), or nobody says that it is not.
        title, description: texts of the pull request.
        message: of the head commit; empty where the payload does not tell.
        author: who opened it.
        actor: who did this: opened it, pushed to it or commented; empty where it is not told.
        author_may_write: whether the author may write to the repository; None: not known.
        comment: text of the comment, for ``commented``.
        commenter: who wrote it.
        commenter_may_write: whether that person may write to the repository.
        files: changed from the merge base to the head; None where the payload does not tell.
        author_id: what the forge's API calls the author: login, number or UUID.
        commenter_id: what it calls the commenter.
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
            "publishTime"}}`` with ``data`` decoded, and parsed where it is JSON.
        topic: of Pub/Sub, where it is known.
    """

    kind: str
    body: Any
    topic: str = ""


Event = PushEvent | PullRequestEvent | MessageEvent


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of a match, and its result.

    Attributes:
        name: ``enabled``, ``repository``, ``ref``, ``branch``, ``comment``, ``skip``, ``files``,
            ``filter``; ``internal`` for a bug that asking met.
        passed: None: it was not asked, or does not apply.
        text: one sentence for a person.
    """

    name: str
    passed: bool | None
    text: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a trigger fires, and why.

    Attributes:
        fires: it does.
        rules: in the order in which they were asked; the last one decided when it does not fire.
        hold: it fires, and its build must wait for an approval: a pull request from a fork.
        waits_for_comment: it would fire if somebody who may write wrote ``/gcbrun``.
        waits_for_answer: it may fire once somebody answers who does not now.
    """

    fires: bool
    rules: tuple[Rule, ...]
    hold: bool = False
    waits_for_comment: bool = False
    waits_for_answer: bool = False

    @property
    def reason(self) -> str:
        """The sentence that decided."""
        return self.rules[-1].text if self.rules else ""
