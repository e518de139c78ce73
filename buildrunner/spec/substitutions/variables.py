"""The variables of a build: their names, the permission to set them, and built-in values.

Source: Cloud Build "Substituting variable values" (which lists twelve overridable built-ins, where
the help of gcloud lists six).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

USER_VARIABLE = re.compile(r"_[A-Z0-9_]+")

OVERRIDABLE: Final = frozenset(
    {
        "TRIGGER_NAME",
        "TRIGGER_BUILD_CONFIG_PATH",
        "COMMIT_SHA",
        "REVISION_ID",
        "SHORT_SHA",
        "REPO_NAME",
        "REPO_FULL_NAME",
        "BRANCH_NAME",
        "TAG_NAME",
        "REF_NAME",
        "SERVICE_ACCOUNT_EMAIL",
        "SERVICE_ACCOUNT",
    }
)
FIXED: Final = frozenset({"PROJECT_ID", "PROJECT_NUMBER", "BUILD_ID", "LOCATION"})
BUILT_IN: Final = OVERRIDABLE | FIXED

# Set by the event of a pull request; they have the form of user variables.
PULL_REQUEST: Final = ("_HEAD_BRANCH", "_BASE_BRANCH", "_HEAD_REPO_URL", "_PR_NUMBER")

_SHORT_SHA_LENGTH: Final = 7


class BuiltIns(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of the built-in variables.

    Attributes:
        project_id: project of the build.
        project_number: its number; any stable number will do.
        build_id: id of this build.
        location: region, ``global`` by default.
        commit_sha: resolved commit of the source; empty if it has none.
        branch: the built branch; empty for tags.
        tag: the built tag; empty for branches.
        repo_full_name: ``owner/name``; empty without a repository.
        trigger_name: name of the trigger; empty for none.
        config_path: path of the config file in the repository (triggered builds).
        service_account_email: account of the build; empty if unknown.
        pull_request: values of ``_HEAD_BRANCH``, ``_BASE_BRANCH``, ``_HEAD_REPO_URL`` and
            ``_PR_NUMBER``; empty unless a pull request fired the trigger.
    """

    project_id: str = ""
    project_number: str = ""
    build_id: str = ""
    location: str = "global"
    commit_sha: str = ""
    branch: str = ""
    tag: str = ""
    repo_full_name: str = ""
    trigger_name: str = ""
    config_path: str = ""
    service_account_email: str = ""
    pull_request: dict[str, str] = {}

    def values(self) -> dict[str, str]:
        """Return every built-in by name. Those without a value are empty, never absent."""
        account = self.service_account_email
        project = self.project_id
        return {
            "PROJECT_ID": project,
            "PROJECT_NUMBER": self.project_number,
            "BUILD_ID": self.build_id,
            "LOCATION": self.location,
            "TRIGGER_NAME": self.trigger_name,
            "TRIGGER_BUILD_CONFIG_PATH": self.config_path,
            "COMMIT_SHA": self.commit_sha,
            "REVISION_ID": self.commit_sha,
            "SHORT_SHA": self.commit_sha[:_SHORT_SHA_LENGTH],
            "REPO_NAME": self.repo_full_name.rpartition("/")[2],
            "REPO_FULL_NAME": self.repo_full_name,
            "BRANCH_NAME": self.branch,
            "TAG_NAME": self.tag,
            "REF_NAME": self.tag or self.branch,
            "SERVICE_ACCOUNT_EMAIL": account,
            "SERVICE_ACCOUNT": f"projects/{project}/serviceAccounts/{account}" if account else "",
            **{name: self.pull_request[name] for name in PULL_REQUEST if name in self.pull_request},
        }


def is_user_variable(name: str) -> bool:
    """Return whether ``name`` has the form ``_X`` of a user-defined variable (not ``_`` alone)."""
    return USER_VARIABLE.fullmatch(name) is not None


def may_be_set(name: str) -> bool:
    """Return whether a caller may set ``name``: user variables and overridable built-ins."""
    return name in OVERRIDABLE or is_user_variable(name)


def merged(*maps: Mapping[str, str]) -> dict[str, str]:
    """Return one map of user values; later maps win (file, then trigger, then flags).

    Source: a value given at run time overrides the trigger's, which overrides the file's.
    """
    result: dict[str, str] = {}
    for each in maps:
        result.update(each)
    return result
