"""Flags of ``triggers create`` and ``update``, and the trigger that they describe.

Source: gcloud's ``builds triggers create github|gitlab|...``; semantics 11.1.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from buildrunner.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.client import Document

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
# Where the trigger keeps its events, by kind.
_CONFIGS: Final = {
    "github": "github",
    "gitlab": "gitlabEnterpriseEventsConfig",
    "bitbucket-server": "bitbucketServerTriggerConfig",
    "repository": "repositoryEventConfig",
}
_TEMPLATES: Final = ("autodetect", "build", "filename", "gitFileSource")


class Pairs(argparse.Action):
    """``KEY=VALUE,...``, as gcloud reads it; may be given several times."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add what one use of the flag says."""
        from buildrunner.cli.flags import parse_map

        found = dict(getattr(namespace, self.dest) or {})
        found.update(parse_map(str(option_string), [str(values)]))
        setattr(namespace, self.dest, found)


def add_create_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``create``."""
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--name", default="", help="unique in the project")
    _add_common(parser)


def add_update_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``update``."""
    _add_common(parser)
    changes = parser.add_mutually_exclusive_group()
    changes.add_argument(
        "--update-substitutions", action=Pairs, default={}, metavar="KEY=VALUE,..."
    )
    changes.add_argument("--remove-substitutions", type=_words, default=[], metavar="KEY,...")
    changes.add_argument("--clear-substitutions", action="store_true")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--trigger-config", metavar="FILE", default="", help="take all of it from a file")
    add("--description", default=None)
    add("--service-account", default=None)
    add("--require-approval", action=argparse.BooleanOptionalAction, default=None)
    add("--substitutions", action=Pairs, default=None, metavar="KEY=VALUE,...")
    add("--included-files", type=_words, default=None, metavar="GLOB,...")
    add("--ignored-files", type=_words, default=None, metavar="GLOB,...")
    add("--subscription-filter", "--filter", dest="filter", default=None, metavar="CEL")
    event = parser.add_argument_group("what fires it")
    event.add_argument("--repo-owner", default="", help="github: the owner")
    event.add_argument("--repo-name", default="", help="github and the like: the name")
    event.add_argument("--project-namespace", default="", help="gitlab: group/project")
    event.add_argument("--project-key", default="", help="bitbucket-server: project key")
    event.add_argument("--repo-slug", default="", help="bitbucket-server: name of the repository")
    event.add_argument("--repository", default="", help="repository: its name or URL")
    patterns = event.add_mutually_exclusive_group()
    patterns.add_argument("--branch-pattern", default=None, metavar="REGEX")
    patterns.add_argument("--tag-pattern", default=None, metavar="REGEX")
    patterns.add_argument("--pull-request-pattern", default=None, metavar="REGEX")
    event.add_argument(
        "--invert-regex", action="store_true", help="what the pattern does not match fires"
    )
    event.add_argument("--comment-control", choices=_COMMENTS, default="COMMENTS_ENABLED")
    event.add_argument("--secret", default="", help="webhook: name of a secret version")
    event.add_argument("--topic", default="", help="pubsub: projects/P/topics/T")
    build = parser.add_argument_group("what it builds")
    build.add_argument("--build-config", default="", metavar="PATH", help="in the repository")
    build.add_argument("--inline-config", default="", metavar="FILE", help="of this machine")
    build.add_argument("--dockerfile", default="", metavar="PATH", help="in the repository")
    build.add_argument("--dockerfile-dir", default="/", metavar="DIR")
    build.add_argument("--dockerfile-image", default="", metavar="IMAGE")
    build.add_argument("--repo", default="", metavar="URL", help="manual, pubsub, webhook: source")
    build.add_argument("--repo-type", choices=_TYPES, default="UNKNOWN")
    build.add_argument("--branch", default="", help="of --repo")
    build.add_argument("--tag", default="", help="of --repo")


def created(args: argparse.Namespace) -> Document:
    """The trigger that the flags of ``create`` describe.

    Raises:
        UsageError: flags that are missing, or don't go with the kind.
        ConfigError: a file is wrong.
    """
    if args.trigger_config:
        from buildrunner.cli.trigger_files import read_triggers

        (document, *more) = read_triggers(args.trigger_config)
        if more:
            raise UsageError(f"{args.trigger_config} holds more than one trigger: import it")
        return {**document, **({"name": args.name} if args.name else {})}
    document = {"name": args.name} if args.name else {}
    document |= _common(args) | _event(args.kind, args) | _template(args)
    if not any(name in document for name in _TEMPLATES):
        document["autodetect"] = True
    return document


def updated(args: argparse.Namespace, old: Document) -> Document:
    """A trigger, changed as the flags of ``update`` say.

    Raises:
        UsageError: flags that don't go with the trigger.
        ConfigError: a file is wrong.
    """
    if args.trigger_config:
        return {"name": old.get("name", ""), **created(args)}
    new = {**old, **_common(args)}
    template = _template(args)
    if template:
        new = {name: value for name, value in new.items() if name not in _TEMPLATES} | template
    kind = next((kind for kind, config in _CONFIGS.items() if config in old), "")
    if kind and _has_pattern(args):
        new[_CONFIGS[kind]] = {
            **{k: v for k, v in old[_CONFIGS[kind]].items() if k not in ("push", "pullRequest")},
            **_filter(args),
        }
    elif _has_pattern(args):
        raise UsageError("this trigger listens to no repository: it has no pattern")
    values = {**new.get("substitutions", {}), **args.update_substitutions}
    for key in args.remove_substitutions:
        values.pop(key, None)
    new["substitutions"] = {} if args.clear_substitutions else values
    return new


def _common(args: argparse.Namespace) -> Document:
    given = {
        "description": args.description,
        "serviceAccount": args.service_account,
        "substitutions": args.substitutions,
        "includedFiles": args.included_files,
        "ignoredFiles": args.ignored_files,
        "filter": args.filter,
    }
    if args.require_approval is not None:
        given["approvalConfig"] = {"approvalRequired": args.require_approval}
    return {name: value for name, value in given.items() if value is not None}


def _event(kind: str, args: argparse.Namespace) -> Document:
    match kind:
        case "github":
            where = _required(args, owner="repo_owner", name="repo_name")
        case "gitlab":
            where = _required(args, projectNamespace="project_namespace")
        case "bitbucket-server":
            where = _required(args, projectKey="project_key", repoSlug="repo_slug")
        case "repository":
            where = _required(args, repository="repository")
        case "cloud-source-repositories":
            return {"triggerTemplate": _required(args, repoName="repo_name") | _template_ref(args)}
        case "pubsub":
            return {"pubsubConfig": _required(args, topic="topic"), **_source(args)}
        case "webhook":
            named = {"secret": "secret"}  # of the flag's name, not a secret
            return {"webhookConfig": _required(args, **named), **_source(args)}
        case _:
            return _source(args)
    return {_CONFIGS[kind]: {**where, **_filter(args)}}


def _has_pattern(args: argparse.Namespace) -> bool:
    patterns = (args.branch_pattern, args.tag_pattern, args.pull_request_pattern)
    return any(pattern is not None for pattern in patterns)


def _filter(args: argparse.Namespace) -> Document:
    inverted = {"invertRegex": True} if args.invert_regex else {}
    if args.pull_request_pattern is not None:
        pull = {"branch": args.pull_request_pattern, "commentControl": args.comment_control}
        return {"pullRequest": {**pull, **inverted}}
    if args.tag_pattern is not None:
        return {"push": {"tag": args.tag_pattern, **inverted}}
    if args.branch_pattern is not None:
        return {"push": {"branch": args.branch_pattern, **inverted}}
    raise UsageError("one of --branch-pattern, --tag-pattern, --pull-request-pattern is required")


def _template_ref(args: argparse.Namespace) -> Document:
    found = _filter(args).get("push")
    if found is None:
        raise UsageError("such a trigger knows no pull requests")
    names = {"branch": "branchName", "tag": "tagName"}
    return {names.get(name, name): value for name, value in found.items()}


def _source(args: argparse.Namespace) -> Document:
    if not args.repo:
        return {}
    if bool(args.branch) is bool(args.tag):
        raise UsageError("--repo needs one of --branch and --tag")
    ref = f"refs/heads/{args.branch}" if args.branch else f"refs/tags/{args.tag}"
    return {"sourceToBuild": {"uri": args.repo, "ref": ref, "repoType": args.repo_type}}


def _template(args: argparse.Namespace) -> Document:
    given = [one for one in ("build_config", "inline_config", "dockerfile") if getattr(args, one)]
    if len(given) > 1:
        flags = " and ".join(f"--{one.replace('_', '-')}" for one in given)
        raise UsageError(f"{flags} contradict each other")
    if args.build_config and args.repo:
        file = {"path": args.build_config, "uri": args.repo, "repoType": args.repo_type}
        return {"gitFileSource": file}
    if args.build_config:
        return {"filename": args.build_config}
    if args.inline_config:
        return {"build": _inline(args.inline_config)}
    if args.dockerfile:
        return {"build": _dockerfile(args)}
    return {}


def _inline(path: str) -> Document:
    from buildrunner.spec.decode import load_build
    from buildrunner.spec.encode import encode_message
    from buildrunner.spec.validate import errors_of

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
    folder = args.dockerfile_dir.strip("/")
    if folder:
        step["dir"] = folder
    return {"steps": [step], "images": [image]}


def _required(args: argparse.Namespace, **fields: str) -> dict[str, Any]:
    missing = [f"--{flag.replace('_', '-')}" for flag in fields.values() if not getattr(args, flag)]
    if missing:
        raise UsageError(f"a trigger of this kind needs {' and '.join(missing)}")
    return {name: getattr(args, flag) for name, flag in fields.items()}


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
