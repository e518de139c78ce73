"""Facts for the approver of a build: the author of its code, and the rights of the build.

Pure. The facts of the pull request are labels of the build, which only the server sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from buildrunner.logs.console.wording import printable
from buildrunner.server.services.authorship import AUTHOR, COMMENTER, people_of, unresolved_ref
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.records import FROM_BUILD, FROM_STEP, ROLLBACK_TO
from buildrunner.triggers.forge_host import request_number, request_word
from buildrunner.triggers.labels import (
    FORK,
    GIVEN_FOLDER,
    GIVEN_VALUES,
    HEAD_REPOSITORY,
    NAMED_COMMIT,
    trigger_name,
)

AUTHOR_ID: Final = "author_id"
BASE_BRANCH: Final = "base_branch"
PULL_REQUEST_URL: Final = "pull_request_url"
TITLE: Final = "pull_request_title"

_OF_STRANGERS: Final = (
    "Its steps run on this server, on images that everyone can pull or that its settings allow",
    "It gets no secret and no login of the server, no dependencies, submodules or files of Git LFS",
    "It gets neither the engine's socket nor privileged steps",
    "It pushes no image and uploads no file, and its log goes to no bucket",
)


class ApprovalFacts(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The facts that an approver of a build needs. Builds without an approval have them, too.

    Attributes:
        state: state of the approval; empty for a build that needs none.
        fork: the code is untrusted: it is from the pull request of a fork.
        forge: kind of the forge; empty without a pull request.
        pull_request: number of the pull request; 0 for none.
        title, url: title and URL of the pull request.
        author: author of the pull request; ``user NUMBER`` if the forge sent no login.
        commenter: author of the comment that requested the build; empty for none.
        people: the known people behind the build: names of tokens, and ``FORGE:LOGIN``.
        other_people: the server does not know whether others are behind the build, too.
        head_repository, head_branch: repository and branch of the code.
        base_repository, base_branch: target of the pull request.
        commit: commit of the code; empty if unknown.
        trusted: the build acts with the rights of its project.
        grants: sentences about the rights of the build after the approval.
        secrets: names of the secrets that the build requests, as far as its config is known; empty
            for untrusted code.
        approver, time, comment, decision_url: facts about the decision; empty before the decision.
    """

    state: str = ""
    fork: bool = False
    forge: str = ""
    pull_request: int = 0
    title: str = ""
    url: str = ""
    author: str = ""
    commenter: str = ""
    people: tuple[str, ...] = ()
    other_people: bool = False
    head_repository: str = ""
    head_branch: str = ""
    base_repository: str = ""
    base_branch: str = ""
    commit: str = ""
    trusted: bool = True
    grants: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    approver: str = ""
    time: str = ""
    comment: str = ""
    decision_url: str = ""

    @property
    def people_text(self) -> str:
        """Return the people behind the build as text."""
        others = ("and people whom the server does not know",) if self.other_people else ()
        return ", ".join((*self.people, *others)).removeprefix("and ")

    @property
    def request_word(self) -> str:
        """Return the forge's own term: pull request or merge request."""
        return request_word(self.forge)

    @property
    def request_number(self) -> str:
        """Return the number in the forge's form: ``#7`` or ``!7``."""
        return request_number(self.forge, self.pull_request)


def approval_facts(stored: StoredBuild) -> ApprovalFacts:
    """Return the facts of a build. The pull request is included even without an approval.

    Texts of other users are made printable, so that they can't reverse adjacent text.
    """
    labels = {name: printable(text) for name, text in stored.labels.items()}
    approval = stored.document.get("approval", {})
    result = approval.get("result", {})
    values = stored.document.get("substitutions", {})
    number = labels.get("pull_request", "")
    secrets = secrets_of(stored.request)
    people = people_of(stored.labels)
    state = approval.get("state", "")
    commit = _which_commit(stored) if state == "PENDING" else ()
    return ApprovalFacts(
        state=state,
        fork=bool(labels.get(FORK)) or stored.untrusted,
        forge=labels.get("forge", "") if number else "",
        pull_request=int(number) if number.isdecimal() else 0,
        title=labels.get(TITLE, ""),
        url=labels.get(PULL_REQUEST_URL, ""),
        author=_author(labels) if number else "",
        commenter=labels.get(COMMENTER, ""),
        people=tuple(map(printable, people.names)),
        other_people=not people.are_all,
        head_repository=labels.get(HEAD_REPOSITORY, "")
        or printable(values.get("_HEAD_REPO_URL", "") if number else ""),
        head_branch=labels.get("branch", "") if number else "",
        base_repository=labels.get("repository", "") if number else "",
        base_branch=labels.get(BASE_BRANCH, ""),
        commit=labels.get("commit", ""),
        trusted=not stored.untrusted,
        grants=(
            *_which_trigger(stored),
            *commit,
            *_begins_with(stored),
            *_whose_steps(stored),
            *_given(stored),
            *_grants(stored, secrets),
        ),
        secrets=() if stored.untrusted else secrets,
        approver=result.get("approverAccount", ""),
        time=result.get("approvalTime", ""),
        comment=printable(result.get("comment", "")),
        decision_url=result.get("url", ""),
    )


def secrets_of(request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the secrets and keys that a Build requests."""
    available = request.get("availableSecrets", {})
    names = [
        *(one.get("versionName", "") for one in available.get("secretManager", ())),
        *(one.get("kmsKeyName", "") for one in available.get("inline", ())),
        *(one.get("kmsKeyName", "") for one in request.get("secrets", ())),
    ]
    return tuple(dict.fromkeys(name for name in names if name))


def _begins_with(stored: StoredBuild) -> tuple[str, ...]:
    """Return a sentence about the build whose files or deployment this one takes."""
    labels = stored.labels
    step, before = _quoted(labels.get(FROM_STEP, "")), printable(labels.get(FROM_BUILD, ""))
    if ROLLBACK_TO in labels:
        return (f"It is a rollback: of build {before} it runs step {step} only, with its images",)
    if FROM_STEP in labels:
        return (f"It begins at step {step}, with the files that the steps of build {before} left",)
    return ()


def _whose_steps(stored: StoredBuild) -> tuple[str, ...]:
    """Return a sentence about the origin of the steps if the request does not contain them."""
    if stored.request.get("steps"):
        return ()
    return ("Its steps are those of the config in the commit",)


def _given(stored: StoredBuild) -> tuple[str, ...]:
    """Return a sentence for each value, and for the folder, that the caller of the run gave."""
    values = stored.request.get("substitutions", {})
    names = stored.labels.get(GIVEN_VALUES, "").split()
    said = [f"Its caller set {name} to {_quoted(values.get(name, ''))}" for name in names]
    if folder := stored.labels.get(GIVEN_FOLDER, ""):
        said.append(f"Its caller chose the folder {_quoted(folder)} of the source")
    return tuple(said)


def _quoted(text: str) -> str:
    """Return another user's text in quotes that it can't end."""
    return printable(json.dumps(text, ensure_ascii=False))


def _which_trigger(stored: StoredBuild) -> tuple[str, ...]:
    name = trigger_name(stored.labels, stored.document.get("buildTriggerId", ""))
    return (f"It is a build of trigger {printable(name)}",) if name else ()


def _which_commit(stored: StoredBuild) -> tuple[str, ...]:
    """Return a sentence about a branch or tag that may move, or a commit that nobody checked."""
    if NAMED_COMMIT in stored.labels:
        return ("It builds the commit that its caller named, which may be a fork's",)
    name = printable(unresolved_ref(decode_message(Build, stored.request).value))
    said = f"It takes the commit that {name} has when it begins, even one that is pushed later"
    return (said,) if name else ()


def _grants(stored: StoredBuild, secrets: tuple[str, ...]) -> tuple[str, ...]:
    if stored.untrusted:
        return _OF_STRANGERS
    project = stored.document.get("projectId", "")
    if stored.request.get("steps"):
        names = ", ".join(secrets)
        said = f"It gets these secrets: {names}" if secrets else "It asks for no secret"
    else:
        said = "It gets the secrets that its config asks for, as far as their scopes allow"
    pushes = "pushes images and uploads files" if stored.push else "pushes no images"
    return (
        f"It acts with the rights of project {project}",
        said,
        f"It uses the registry logins of the server, and {pushes}",
        "Its steps get the engine's socket and privileges, as far as the server gives them",
    )


def _author(labels: Mapping[str, str]) -> str:
    login = labels.get(AUTHOR, "").partition(":")[2]
    number = labels.get(AUTHOR_ID, "")
    return login or (f"user {number}" if number else "")
