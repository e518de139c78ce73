"""Triggers as text that people write: beginnings for new ones, and what they sent back. Pure."""

from __future__ import annotations

from typing import Any

from buildrunner.errors import ConfigError, UsageError
from buildrunner.spec.model.git_address import masked_trigger
from buildrunner.spec.reading.decode import load_triggers
from buildrunner.spec.validation.check import errors_of
from buildrunner.spec.writing import encode_message, yaml_text

Document = dict[str, Any]

OURS = ("resourceName", "id", "createTime")
_BUILD = """\
filename: cloudbuild.yaml
# includedFiles: [src/**]
# ignoredFiles: [docs/**]
# substitutions: {_TARGET: staging}
# approvalConfig: {approvalRequired: true}
"""
# Name -> what fires it, in words; the text to begin with.
STARTERS: dict[str, tuple[str, str]] = {
    "github": (
        "a push to GitHub",
        "name: on-push\ngithub:\n  owner: acme\n  name: app\n  push:\n    branch: ^main$\n"
        + _BUILD,
    ),
    "pull-request": (
        "a pull request on GitHub",
        "name: on-pull-request\ngithub:\n  owner: acme\n  name: app\n  pullRequest:\n"
        "    branch: ^main$\n    commentControl: COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY\n"
        + _BUILD,
    ),
    "gitlab": (
        "a push to GitLab",
        "name: on-push\ngitlabEnterpriseEventsConfig:\n  projectNamespace: acme/app\n  push:\n"
        "    branch: ^main$\n" + _BUILD,
    ),
    "repository": (
        "a push to a Git repository of the server's settings",
        "name: on-push\ntriggerTemplate:\n  repoName: my-repo\n  branchName: ^main$\n" + _BUILD,
    ),
    "schedule": (
        "the clock",
        "name: nightly\ncron:\n  schedule: 30 2 * * *\n  timeZone: Europe/Vienna\nsourceToBuild:\n"
        "  uri: https://github.com/acme/app\n  ref: refs/heads/main\n  repoType: GITHUB\n"
        "gitFileSource:\n  uri: https://github.com/acme/app\n  revision: refs/heads/main\n"
        "  path: cloudbuild.yaml\n  repoType: GITHUB\n",
    ),
    "webhook": (
        "a call of its own address",
        "name: on-call\nwebhookConfig:\n  secret: projects/my-project/secrets/on-call/versions/1\n"
        "substitutions:\n  _WHO: $(body.who)\nbuild:\n  steps:\n  - name: buildrunner/python\n"
        "    script: echo called by $_WHO\n    env: [_WHO=$_WHO]\n",
    ),
    "manual": (
        "nothing: it is run by hand",
        "name: by-hand\nbuild:\n  steps:\n  - name: buildrunner/python\n"
        "    script: python -c 'print(\"hello\")'\n",
    ),
}


def text_of(trigger: Document) -> str:
    """A trigger as ``import`` takes it: without what only the server sets."""
    shown = masked_trigger(trigger)
    return yaml_text({name: value for name, value in shown.items() if name not in OURS})


def triggers_of(text: str) -> list[Document]:
    """The triggers of a text, YAML or JSON.

    Raises:
        ConfigError: something is wrong in it: all problems, with their lines.
        UsageError: there is none in it.
    """
    loaded = load_triggers(text.encode("utf-8", "replace"), file="line")
    problems = errors_of([problem for one in loaded for problem in one.problems])
    if problems:
        raise ConfigError(problems)
    if not loaded:
        raise UsageError("there is no trigger in this text")
    return [encode_message(one.value) for one in loaded]


def trigger_of(text: str) -> Document:
    """The one trigger of a text. Raises as `triggers_of`, also when there are several."""
    found = triggers_of(text)
    if len(found) > 1:
        raise UsageError(f"one trigger is changed here, and the text holds {len(found)}")
    return found[0]
