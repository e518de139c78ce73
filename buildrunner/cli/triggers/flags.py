"""Flags of ``triggers create`` and ``update``, and their conversion to a trigger.

Source: gcloud's ``builds triggers create github|gitlab|...``; semantics 11.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from buildrunner.client.client import Document
from buildrunner.errors import ConfigError, UsageError

KINDS: Final = (
    "github",
    "gitlab",
    "bitbucket-server",
    "repository",
    "cloud-source-repositories",
    "manual",
    "pubsub",
    "webhook",
)
_COMMENTS: Final = (
    "COMMENTS_DISABLED",
    "COMMENTS_ENABLED",
    "COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY",
)
_TYPES: Final = ("GITHUB", "GITLAB", "BITBUCKET_SERVER", "CLOUD_SOURCE_REPOSITORIES", "UNKNOWN")
# The field of the trigger that contains its events, by kind.
CONFIGS: Final = {
    "github": "github",
    "gitlab": "gitlabEnterpriseEventsConfig",
    "bitbucket-server": "bitbucketServerTriggerConfig",
    "repository": "repositoryEventConfig",
}
TEMPLATES: Final = ("autodetect", "build", "filename", "gitFileSource")
"""Fields that define a trigger's build. A trigger has one of them."""

WHERE: Final = {
    "github": {"repo_owner": "github.owner", "repo_name": "github.name"},
    "gitlab": {"project_namespace": "gitlabEnterpriseEventsConfig.projectNamespace"},
    "bitbucket-server": {
        "project_key": "bitbucketServerTriggerConfig.projectKey",
        "repo_slug": "bitbucketServerTriggerConfig.repoSlug",
    },
    "repository": {"repository": "repositoryEventConfig.repository"},
    "cloud-source-repositories": {"repo_name": "triggerTemplate.repoName"},
    "pubsub": {"topic": "pubsubConfig.topic"},
    "webhook": {"secret": "webhookConfig.secret"},
    "manual": {},
}
"""The fields that a trigger of each kind needs, by flag."""

PATTERNS: Final = ("branch_pattern", "tag_pattern", "pull_request_pattern")
_LISTENING: Final = ("github", "gitlab", "bitbucket-server", "repository")
_TEMPLATE_KIND: Final = "cloud-source-repositories"
# The kinds of triggers that accept each flag. Other flags fit all kinds.
_GOES_WITH: Final = {
    **{
        flag: tuple(kind for kind, flags in WHERE.items() if flag in flags)
        for flag in sorted({flag for flags in WHERE.values() for flag in flags})
    },
    **dict.fromkeys(
        ("branch_pattern", "tag_pattern", "invert_regex"), (*_LISTENING, _TEMPLATE_KIND)
    ),
    **dict.fromkeys(("pull_request_pattern", "comment_control"), _LISTENING),
    **dict.fromkeys(("forge", "forge_host"), (*_LISTENING, _TEMPLATE_KIND)),
    **dict.fromkeys(("repo", "repo_type", "branch", "tag"), ("manual", "pubsub", "webhook")),
}
_NOT_OF_THE_TRIGGER: Final = frozenset(
    ("action", "kind", "name", "trigger", "trigger_config", "project", "server", "local", "ca_file")
)


class Pairs(argparse.Action):
    """``KEY=VALUE,...``, as gcloud reads it; may be given several times."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add the values of one use of the flag."""
        from buildrunner.cli.arguments import parse_map

        found = dict(getattr(namespace, self.dest) or {})
        found.update(parse_map(str(option_string), [str(values)]))
        setattr(namespace, self.dest, found)


def add_create_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``create``."""
    parser.add_argument(
        "kind", choices=KINDS, metavar="KIND", help=f"kind of the trigger: {', '.join(KINDS)}"
    )
    parser.add_argument("--name", default="", help="name, unique in the project")
    parser.add_argument(
        "--substitutions",
        action=Pairs,
        default=None,
        metavar="KEY=VALUE,...",
        help="substitutions of the trigger's builds",
    )
    _add_common(parser)


def add_update_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``update``."""
    changes = parser.add_mutually_exclusive_group()
    changes.add_argument(
        "--substitutions",
        action=Pairs,
        default=None,
        metavar="KEY=VALUE,...",
        help="replace all substitutions",
    )
    changes.add_argument(
        "--update-substitutions",
        action=Pairs,
        default=None,
        metavar="KEY=VALUE,...",
        help="add or change these substitutions, and keep the others",
    )
    changes.add_argument(
        "--remove-substitutions",
        type=_words,
        default=None,
        metavar="KEY,...",
        help="remove these substitutions, and keep the others",
    )
    changes.add_argument(
        "--clear-substitutions", action="store_true", default=None, help="remove all substitutions"
    )
    _add_common(parser)


def add_forge_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--forge`` and ``--forge-host``."""
    parser.add_argument(
        "--forge",
        default=None,
        metavar="FORGE",
        help="kind of the forge that hosts the repository: github, gitlab, gitea, bitbucket,"
        " bitbucket-server (default: the public forge of the trigger's kind)",
    )
    parser.add_argument(
        "--forge-host", default=None, metavar="URL", help="with --forge: address of the forge"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--trigger-config", metavar="FILE", default=None, help="read the whole trigger from a file")
    add("--description", default=None, metavar="TEXT", help="description for people")
    add("--service-account", default=None, metavar="NAME", help="service account of the builds")
    add(
        "--require-approval",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="builds wait until a user approves them",
    )
    add(
        "--included-files",
        type=_words,
        default=None,
        metavar="GLOB,...",
        help="fire only if a changed file matches",
    )
    add(
        "--ignored-files",
        type=_words,
        default=None,
        metavar="GLOB,...",
        help="do not fire if all changed files match",
    )
    add(
        "--subscription-filter",
        "--filter",
        dest="filter",
        default=None,
        metavar="CEL",
        help="fire only if this CEL expression is true",
    )
    event = parser.add_argument_group("events")
    for flag, about in (
        ("repo-owner", "github: owner of the repository"),
        ("repo-name", "github, cloud-source-repositories: name of the repository"),
        ("project-namespace", "gitlab: the repository, as group/project"),
        ("project-key", "bitbucket-server: key of the project"),
        ("repo-slug", "bitbucket-server: name of the repository"),
        ("repository", "repository: name or URL of the repository"),
    ):
        event.add_argument(f"--{flag}", default=None, help=about)
    add_forge_flags(event)
    patterns = event.add_mutually_exclusive_group()
    for flag, about in zip(
        PATTERNS,
        (
            "fire on pushes to branches that match",
            "fire on pushes of tags that match",
            "fire on pull requests into branches that match",
        ),
        strict=True,
    ):
        patterns.add_argument(
            f"--{flag.replace('_', '-')}", default=None, metavar="REGEX", help=about
        )
    event.add_argument(
        "--invert-regex",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="fire on names that do not match the pattern",
    )
    event.add_argument(
        "--comment-control",
        choices=_COMMENTS,
        default=None,
        help="whether builds of pull requests wait for the comment /gcbrun (default for a new"
        " trigger: COMMENTS_ENABLED)",
    )
    event.add_argument(
        "--secret", default=None, help="webhook: name of the secret version that callers must know"
    )
    event.add_argument(
        "--topic", default=None, help="pubsub: name of the topic, projects/P/topics/T"
    )
    build = parser.add_argument_group("build")
    build.add_argument(
        "--build-config", default=None, metavar="PATH", help="path of the config in the repository"
    )
    build.add_argument(
        "--inline-config",
        default=None,
        metavar="FILE",
        help="config on this machine, which becomes part of the trigger",
    )
    build.add_argument(
        "--dockerfile",
        default=None,
        metavar="PATH",
        help="build this Dockerfile of the repository instead of a config",
    )
    build.add_argument(
        "--dockerfile-dir",
        default=None,
        metavar="DIR",
        help="with --dockerfile: folder to build it in",
    )
    build.add_argument(
        "--dockerfile-image",
        default=None,
        metavar="IMAGE",
        help="with --dockerfile: name of the image",
    )
    build.add_argument(
        "--repo", default=None, metavar="URL", help="manual, pubsub, webhook: repository to build"
    )
    build.add_argument("--repo-type", choices=_TYPES, default=None, help="with --repo: its kind")
    build.add_argument("--branch", default=None, help="with --repo: branch to build")
    build.add_argument("--tag", default=None, help="with --repo: tag to build")


def created(args: argparse.Namespace) -> Document:
    """Return the trigger that the flags of ``create`` describe.

    Raises:
        UsageError: flags are missing, or don't fit the kind.
        ConfigError: a file is wrong.
    """
    if args.trigger_config is not None:
        document = from_file(args)
        return {**document, **({"name": args.name} if args.name else {})}
    check_kind(args, args.kind)
    document = {"name": args.name} if args.name else {}
    fields = {**common_fields(args), **_event(args.kind, args), **_template(args)}
    if args.substitutions is not None:
        fields["substitutions"] = args.substitutions
    if not any(path in fields for path in TEMPLATES):
        fields["autodetect"] = True
    return with_fields(document, fields)


def from_file(args: argparse.Namespace) -> Document:
    """Return the only trigger of ``--trigger-config``.

    Raises:
        UsageError: other flags are also given, or the file holds several triggers.
        ConfigError: the file is invalid.
    """
    from buildrunner.cli.triggers.files import read_triggers

    others = [flag for flag in given_flags(args) if flag not in ("forge", "forge_host")]
    if others:
        raise UsageError(
            f"--trigger-config says all of the trigger: {shown_flags(*others)} can't, too"
        )
    (document, *more) = read_triggers(args.trigger_config)
    if more:
        raise UsageError(f"{args.trigger_config} holds more than one trigger: import it")
    return document


def given_flags(args: argparse.Namespace) -> list[str]:
    """Return the flags that describe the trigger, by their names in the namespace."""
    return [
        flag
        for flag, value in vars(args).items()
        if flag not in _NOT_OF_THE_TRIGGER and value is not None
    ]


def shown_flags(*flags: str) -> str:
    """Return flags as the user types them, given their names in the namespace."""
    return " and ".join(f"--{flag.replace('_', '-')}" for flag in flags)


def check_kind(args: argparse.Namespace, kind: str) -> None:
    """Refuse flags for which a trigger of that kind has no field.

    Raises:
        UsageError: such flags are given.
    """
    for flag in given_flags(args):
        kinds = _GOES_WITH.get(flag, KINDS)
        if kind not in kinds:
            raise UsageError(
                f"{shown_flags(flag)} does not go with a trigger of kind {kind}",
                hint=f"it is for {', '.join(kinds)}",
            )
        if flag in ("dockerfile_dir", "dockerfile_image") and args.dockerfile is None:
            raise UsageError(f"{shown_flags(flag)} goes with --dockerfile")


def with_fields(document: Document, fields: dict[str, Any]) -> Document:
    """Return a document with values at paths such as ``github.owner``."""
    result = {**document}
    for path, value in fields.items():
        *above, last = path.split(".")
        place = result
        for name in above:
            place[name] = {**place.get(name, {})}
            place = place[name]
        place[last] = value
    return result


def common_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return values by path, from the flags that all kinds of triggers have."""
    given = {
        "description": args.description,
        "serviceAccount": args.service_account,
        "includedFiles": args.included_files,
        "ignoredFiles": args.ignored_files,
        "filter": args.filter,
        "approvalConfig.approvalRequired": args.require_approval,
    }
    return {path: value for path, value in given.items() if value is not None}


def event_filter(args: argparse.Namespace, old: Document) -> tuple[str, Document]:
    """Return the events that fire: ``push`` or ``pullRequest``, and the filter.

    Args:
        args: the flags.
        old: the events before the change: a part with at most one of these two.

    Raises:
        UsageError: the pattern is missing, or a flag does not fit it.
    """
    name = next((one for one in ("push", "pullRequest") if one in old), "")
    before = dict(old.get(name, {}))
    if args.pull_request_pattern is not None:
        kept = before if name == "pullRequest" else {"commentControl": "COMMENTS_ENABLED"}
        kept |= {"invertRegex": True} if before.get("invertRegex") else {}
        name, before = "pullRequest", {**kept, "branch": args.pull_request_pattern}
    elif args.tag_pattern is not None or args.branch_pattern is not None:
        kept = {"invertRegex": True} if before.get("invertRegex") else {}
        is_tag = args.tag_pattern is not None
        ref = {"tag": args.tag_pattern} if is_tag else {"branch": args.branch_pattern}
        name, before = "push", {**kept, **ref}
    if not name:
        flags = ", ".join(shown_flags(flag) for flag in PATTERNS)
        raise UsageError(f"one of {flags} is required")
    if args.comment_control is not None:
        if name == "push":
            raise UsageError("--comment-control is for pull requests, and this trigger is not")
        before["commentControl"] = args.comment_control
    if args.invert_regex is not None:
        before["invertRegex"] = args.invert_regex
    return name, before


def template_ref(args: argparse.Namespace, old: Document) -> dict[str, Any]:
    """Return the events of a ``triggerTemplate``, by field; ``old`` has them before the change."""
    names = {"branchName": "branch", "tagName": "tag"}
    push: Document = {theirs: old[ours] for ours, theirs in names.items() if old.get(ours)}
    push |= {"invertRegex": True} if old.get("invertRegex") else {}
    _, after = event_filter(args, {"push": push} if old else {})
    found = {ours: after[theirs] for ours, theirs in names.items() if theirs in after}
    return {**found, **({"invertRegex": True} if after.get("invertRegex") else {})}


def build_template(args: argparse.Namespace) -> Document | None:
    """Return the build of ``--inline-config`` or ``--dockerfile``; None without them.

    Raises:
        UsageError: flags contradict each other, or a file can't be read.
        ConfigError: the file is invalid.
    """
    flags = ("build_config", "inline_config", "dockerfile")
    given = [flag for flag in flags if getattr(args, flag) is not None]
    if len(given) > 1:
        raise UsageError(f"{shown_flags(*given)} contradict each other")
    if args.inline_config is not None:
        return _inline(args.inline_config)
    return _dockerfile(args) if args.dockerfile is not None else None


def source_ref(args: argparse.Namespace) -> str:
    """Return the ref of ``--branch`` or ``--tag``; empty without them.

    Raises:
        UsageError: both are given.
    """
    if args.branch is not None and args.tag is not None:
        raise UsageError("--branch and --tag contradict each other")
    if args.branch is not None:
        return f"refs/heads/{args.branch}"
    return f"refs/tags/{args.tag}" if args.tag is not None else ""


def _event(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    where = WHERE[kind]
    missing = [flag for flag in where if not getattr(args, flag)]
    if missing:
        raise UsageError(f"a trigger of kind {kind} needs {shown_flags(*missing)}")
    fields = {path: getattr(args, flag) for flag, path in where.items()}
    if kind == _TEMPLATE_KIND:
        ref = template_ref(args, {})
        return {**fields, **{f"triggerTemplate.{name}": value for name, value in ref.items()}}
    if kind in CONFIGS:
        name, found = event_filter(args, {})
        return {**fields, f"{CONFIGS[kind]}.{name}": found}
    return {**fields, **_source(args)}


def _source(args: argparse.Namespace) -> dict[str, Any]:
    ref = source_ref(args)
    if args.repo is None:
        flags = ("repo_type", "branch", "tag")
        lost = [flag for flag in flags if getattr(args, flag) is not None]
        if lost:
            raise UsageError(f"{shown_flags(*lost)} goes with --repo")
        return {}
    if not ref:
        raise UsageError("--repo needs one of --branch and --tag")
    return {
        "sourceToBuild": {"uri": args.repo, "ref": ref, "repoType": args.repo_type or "UNKNOWN"}
    }


def _template(args: argparse.Namespace) -> dict[str, Any]:
    build = build_template(args)
    if build is not None:
        return {"build": build}
    if args.build_config is None:
        return {}
    if args.repo is None:
        return {"filename": args.build_config}
    kind = args.repo_type or "UNKNOWN"
    return {"gitFileSource": {"path": args.build_config, "uri": args.repo, "repoType": kind}}


def _inline(path: str) -> Document:
    from buildrunner.spec.reading.decode import load_build
    from buildrunner.spec.validation.check import errors_of
    from buildrunner.spec.writing import encode_message

    try:
        with open(path, "rb") as file:
            loaded = load_build(file.read(), file=path)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    problems = errors_of(list(loaded.problems))
    if problems:
        raise ConfigError(problems)
    return encode_message(loaded.build)


def _dockerfile(args: argparse.Namespace) -> Document:
    """Source: semantics 9.13, what gcloud makes of ``--dockerfile``."""
    image = args.dockerfile_image or "gcr.io/$PROJECT_ID/$REPO_NAME:$COMMIT_SHA"
    step: Document = {
        "name": "gcr.io/cloud-builders/docker",
        "args": ["build", "-t", image, "-f", args.dockerfile, "."],
    }
    folder = (args.dockerfile_dir or "").strip("/")
    if folder:
        step["dir"] = folder
    return {"steps": [step], "images": [image]}


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def trigger_change(args: argparse.Namespace, old: Document) -> tuple[Document, str]:
    """Return the changed fields, and the update mask that names them. Both may be empty.

    Args:
        args: flags of ``update`` without ``--trigger-config``.
        old: the trigger as the server has it.

    Raises:
        UsageError: no flag is given, or a flag does not fit the trigger.
        ConfigError: a file is wrong.
    """
    flags = given_flags(args)
    if not flags:
        raise UsageError("there is nothing to change: give a flag that says what")
    kind = kind_of(old)
    check_kind(args, kind)
    fields = {
        **common_fields(args),
        **_where(args, kind),
        **_events(args, kind, old),
        **_changed_source(args, old),
        **_changed_template(args, old),
        **_substitutions(args, old),
    }
    given = {path: value for path, value in fields.items() if value is not None}
    return with_fields({}, given), ",".join(fields)


def forge_change(args: argparse.Namespace, settings: Document) -> Document | None:
    """Return the trigger's settings with the forge of the flags; None without such flags."""
    given = {
        name: value
        for name, value in (("kind", args.forge), ("host", args.forge_host))
        if value is not None
    }
    if not given:
        return None
    before = settings.get("forge", {})
    if before.get("unconfirmed"):  # a guessed forge is ignored
        before = {}
    after = {**before, **given}
    if "kind" not in after:
        raise UsageError("--forge-host needs --forge: the kind of that forge")
    return {**settings, "forge": after}


def kind_of(trigger: Document) -> str:
    """Return the kind of a trigger, as ``create`` calls it."""
    for kind, fields in WHERE.items():
        if any(path.partition(".")[0] in trigger for path in fields.values()):
            return kind
    return "manual"


def _where(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    fields = {}
    for flag, path in WHERE[kind].items():
        value = getattr(args, flag)
        if value == "":
            raise UsageError(f"--{flag.replace('_', '-')} is empty")
        if value is not None:
            fields[path] = value
    return fields


def _events(args: argparse.Namespace, kind: str, old: Document) -> dict[str, Any]:
    flags = (*PATTERNS, "invert_regex", "comment_control")
    if all(getattr(args, flag) is None for flag in flags):
        return {}
    if kind not in CONFIGS:
        ref = template_ref(args, old["triggerTemplate"])
        names = ("branchName", "tagName", "invertRegex")
        return {f"triggerTemplate.{name}": ref.get(name) for name in names}
    config = CONFIGS[kind]
    name, found = event_filter(args, old[config])
    other = "push" if name == "pullRequest" else "pullRequest"
    return {f"{config}.{name}": found, f"{config}.{other}": None}


def _changed_source(args: argparse.Namespace, old: Document) -> dict[str, Any]:
    """Return the changed source, and the changed config file if it is in the same repository."""
    ref, before = source_ref(args), old.get("sourceToBuild", {})
    given = {
        name: value
        for name, value in (("uri", args.repo), ("ref", ref), ("repoType", args.repo_type))
        if value
    }
    if not given:
        return {}
    if not (before or args.repo):
        flags = (flag for flag in ("repo_type", "branch", "tag") if getattr(args, flag) is not None)
        raise UsageError(f"{shown_flags(*flags)} needs --repo: this trigger has no source yet")
    if not (before.get("ref") or ref):
        raise UsageError("--repo needs one of --branch and --tag")
    fields: dict[str, Any] = {f"sourceToBuild.{name}": value for name, value in given.items()}
    if args.repo:
        fields["sourceToBuild.repository"] = None
    file = old.get("gitFileSource", {})
    if file.get("uri") and file["uri"] == before.get("uri"):
        shared = ("uri", "repoType")
        fields |= {f"gitFileSource.{name}": given[name] for name in shared if name in given}
    if ref and "revision" in file and file["revision"] == before.get("ref"):
        fields["gitFileSource.revision"] = ref
    return fields


def _changed_template(args: argparse.Namespace, old: Document) -> dict[str, Any]:
    build = build_template(args)
    if build is not None:
        return {name: build if name == "build" else None for name in TEMPLATES}
    if args.build_config is None:
        return {}
    if "gitFileSource" in old:
        return {"gitFileSource.path": args.build_config}
    return {name: args.build_config if name == "filename" else None for name in TEMPLATES}


def _substitutions(args: argparse.Namespace, old: Document) -> dict[str, Any]:
    values = dict(old.get("substitutions", {}))
    if args.substitutions is not None:
        values = args.substitutions
    elif args.update_substitutions is not None:
        values |= args.update_substitutions
    elif args.remove_substitutions is not None:
        missing = [key for key in args.remove_substitutions if key not in values]
        if missing:
            raise UsageError(f"this trigger has no substitution {', '.join(missing)}")
        values = {key: one for key, one in values.items() if key not in args.remove_substitutions}
    elif args.clear_substitutions:
        values = {}
    else:
        return {}
    return {"substitutions": values}
