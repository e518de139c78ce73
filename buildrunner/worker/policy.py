"""The policy of a server's admin: rules in CEL that a build must fulfil before it begins.

Rules are evaluated once, on the planned build: its config is read and its substitutions are made.
A rule that is false refuses the build, and so does one that can't be evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from buildrunner.containers.image_name import ImageName
from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.problem import Problem
from buildrunner.settings import Settings
from buildrunner.spec.model.build import Build
from buildrunner.spec.writing import encode_message
from buildrunner.store.model.builds import StoredBuild


def check_policy(rules: Mapping[str, str], build: Build, facts: Mapping[str, Any]) -> None:
    """Raise an error for a build that does not fulfil the policy.

    Args:
        rules: CEL expressions by name.
        build: the Build with its substitutions made; ``build`` in the expressions.
        facts: further variables (`policy_facts`).

    Raises:
        ConfigError: the build does not fulfil a rule; the message names each of these.
    """
    if not rules:
        return
    from buildrunner.triggers.build_filter import build_rule

    document = encode_message(build)
    problems = []
    for name, text in rules.items():
        found = build_rule(text, document, facts)
        if not found.passed:
            why = found.text.removeprefix("the filter ")
            message = f"the policy of this server refuses the build: the rule {name} {why}"
            problems.append(Problem(message, hint="ask the server's admin", rule=f"policy:{name}"))
    if problems:
        raise ConfigError(problems)


def policy_facts(stored: StoredBuild, plan: BuildPlan) -> dict[str, Any]:
    """Return the variables of rules besides the build. Configs and substitutions can't set them."""
    origin = plan.origin
    approval = stored.document.get("approval", {})
    approved = approval.get("state") == "APPROVED"
    return {
        "images": list(dict.fromkeys(_plain(step.image) for step in plan.steps)),
        "pushed": [_plain(image) for image in plan.images],
        "trusted": not stored.untrusted,
        "approved": approved,
        "approver": approval.get("result", {}).get("approverAccount", "") if approved else "",
        "trigger": origin.trigger_name if origin.trigger else "",
        "repository": origin.repository,
        "ref": origin.ref,
        "commit": origin.commit,
        "verified": bool(origin.commit) and origin.config_in_source and not stored.untrusted,
    }


def _plain(image: str) -> str:
    """Return an image's name with the plain host, so that no other spelling evades a rule."""
    return str(ImageName.parse(image).with_plain_host)


def check_rules(settings: Settings) -> None:
    """Check the rules of all projects when the server starts.

    Raises:
        ConfigError: a rule is no CEL expression, or names a field that builds do not have.
    """
    tables = {"policy": settings.policy} | {
        f"projects.{project}.policy": fields.get("policy", {})
        for project, fields in settings.projects.items()
    }
    problems = [problem for table, rules in tables.items() for problem in _wrong(table, rules)]
    if problems:
        raise ConfigError(problems)


def _wrong(table: str, rules: Mapping[str, str]) -> Iterable[Problem]:
    if not rules:
        return
    from buildrunner.triggers.build_filter import check_filter

    for name, text in rules.items():
        wrong = check_filter(text) if text else "the rule is empty"
        if wrong:
            yield Problem(wrong, path=f"{table}.rules.{name}")
