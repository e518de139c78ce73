"""The flags of ``buildrunner submit``: ours, and those of ``gcloud builds submit``."""

from __future__ import annotations

import argparse

from buildrunner.errors import UsageError

EPILOG = """\
examples:
  buildrunner submit .                             this folder with its cloudbuild.yaml
  buildrunner submit cloudbuild.yaml --no-source   that config, on an empty workspace
  buildrunner submit . --substitutions _ENV=test,_TAG=1
  buildrunner submit . --dry-run                   show what would run
  buildrunner submit gs://bucket/source.tgz        an archive in a bucket, the config of this folder
  buildrunner submit https://host/repo.git --git-source-revision v1.2      a Git repository
  buildrunner submit . --step test                 run one step
  buildrunner submit . --triggered                 as a trigger would, with the folder's Git values
  buildrunner submit . --tag registry.example.com/app:1    build a Dockerfile without a config
  buildrunner submit . --server http://host:8080   on a server: upload, follow, Ctrl-C cancels

exit codes: 0 success, 1 build failed, 2 bad config or usage, 3 infrastructure, 4 timeout,
130 interrupted
"""

# gcloud's flags that mean the hosted service: accepted and without effect here ...
_WITHOUT_EFFECT = (
    "--polling-interval",
    "--default-buckets-behavior",
    # flags of every gcloud command
    "--account",
    "--billing-project",
    "--configuration",
    "--impersonate-service-account",
    "--verbosity",
)
# ... or refused, because they would change what happens.
_ASYNC = "--async"
_REFUSED = {
    _ASYNC: "a local build runs in this process: put the command in the background instead",
    "--pack": "buildpacks are not run here: write a config with a pack step, or use --tag",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of ``submit``."""
    parser.epilog = EPILOG
    parser.usage = "buildrunner submit [CONFIG | SOURCE] [flags]"
    parser.add_argument(
        "subject",
        nargs="?",
        metavar="CONFIG | SOURCE",
        help="a config file, run on this folder; or a folder with a config, an archive, "
        "gs://BUCKET/ARCHIVE, or the URL of a Git repository (default: .)",
    )
    _add_build_flags(parser.add_argument_group("config and source"))
    _add_git_flags(parser.add_argument_group("a Git repository as the source"))
    _add_part_flags(parser.add_argument_group("part of the build (steps by id or index)"))
    _add_run_flags(parser.add_argument_group("execution"))
    _add_output_flags(parser.add_argument_group("output"))
    _add_server_flags(parser.add_argument_group("on a server"))
    _add_gcloud_flags(parser.add_argument_group("flags of gcloud"))


def check_gcloud_flags(args: argparse.Namespace, *, remote: bool = False) -> list[str]:
    """Return warnings for gcloud's flags that have no effect here.

    Args:
        args: the flags.
        remote: the build runs on a server.

    Raises:
        UsageError: a flag can't be honoured.
    """
    for flag, reason in _REFUSED.items():
        if getattr(args, _name(flag)) and not (remote and flag == _ASYNC):
            raise UsageError(f"{flag} can't be honoured", hint=reason)
    _check_queue_flags(args, remote=remote)
    place = "on a server" if remote else "on a local build"
    given = [flag for flag in _WITHOUT_EFFECT if getattr(args, _name(flag))]
    return [f"{flag} has no effect {place}" for flag in given]


def _check_queue_flags(args: argparse.Namespace, *, remote: bool) -> None:
    for flag in ("--priority", "--group", "--supersede"):
        if getattr(args, _name(flag)) and not remote:
            raise UsageError(
                f"{flag} is for the queue of a server, and a local build runs at once",
                hint="name a server with --server, or log in to one (buildrunner login)",
            )
    if args.supersede and not args.group:
        raise UsageError(
            "--supersede goes with --group", hint="name the builds that belong together"
        )


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _add_build_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--config",
        metavar="FILE",
        help="path of the config; -: standard input (default: cloudbuild.yaml)",
    )
    group.add_argument(
        "--tag", metavar="IMAGE", help="build the folder's Dockerfile and push the image"
    )
    group.add_argument(
        "--triggered",
        action="store_true",
        help="build as a trigger would: substitutions are loose and dynamic, and the folder's Git"
        " repository gives $COMMIT_SHA, $BRANCH_NAME and the like",
    )
    group.add_argument(
        "--trigger",
        default="",
        metavar="FILE",
        help="build as the trigger in this file would, with its config, substitutions and"
        " settings; FILE#NAME selects one of several triggers",
    )
    group.add_argument(
        "--source", metavar="DIR", help="folder to build (default: the current folder)"
    )
    group.add_argument("--no-source", action="store_true", help="start with an empty workspace")
    group.add_argument(
        "--ignore-file", default="", metavar="FILE", help="use this file instead of .gcloudignore"
    )
    group.add_argument(
        "--substitutions",
        action="append",
        default=[],
        metavar="K=V,...",
        help="values of substitutions; may be repeated; ^:^K=a,b:K2=c separates them by : instead",
    )
    group.add_argument(
        "--project", default="", metavar="ID", help="project of the build, $PROJECT_ID"
    )
    group.add_argument(
        "--timeout",
        default="",
        metavar="TIME",
        help="limit for the whole build, instead of the config's: 600 (seconds), 10m, 2h15m5s",
    )


def _add_git_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--git-source", default="", metavar="URL", help="URL of the repository to build"
    )
    group.add_argument(
        "--git-source-revision",
        "--revision",
        default="",
        metavar="REV",
        help="branch, tag, commit or full ref to build (default: the repository's HEAD)",
    )
    group.add_argument(
        "--git-source-dir",
        "--dir",
        default="",
        metavar="DIR",
        help="folder of the repository in which steps start (default: its root)",
    )
    group.add_argument(
        "--git-submodules", action="store_true", help="also fetch the submodules of the source"
    )
    group.add_argument("--git-lfs", action="store_true", help="also fetch Git LFS files")
    group.add_argument(
        "--no-git-cache", action="store_true", help="do not use or fill the cache of repositories"
    )


def _add_part_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="STEP",
        help="run only this step; may be repeated",
    )
    group.add_argument(
        "--from", dest="from_", metavar="STEP", help="run this step and all later ones"
    )
    group.add_argument("--until", metavar="STEP", help="run all steps up to this one")
    group.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="STEP",
        help="leave this step out; may be repeated",
    )


def _add_run_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dry-run", action="store_true", help="show the plan and run nothing")
    group.add_argument(
        "--no-push", action="store_true", help="push no images and upload no artifacts"
    )
    group.add_argument(
        "--write-workspace",
        default="",
        metavar="DIR",
        help="copy /workspace to this new or empty folder at the end, also of a failed build",
    )
    group.add_argument(
        "--storage",
        action="append",
        default=[],
        metavar="gs://B=file:///DIR",
        help="use a folder of this machine instead of a bucket; may be repeated",
    )
    group.add_argument(
        "--image-alias",
        action="append",
        default=[],
        metavar="A=B",
        help="run image B for steps that name A; may be repeated",
    )
    group.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=env:X|file:Y",
        help="take the value of a secret from an environment variable or a file; may be repeated",
    )
    group.add_argument(
        "--google-secrets",
        action="store_true",
        help="use Google's Secret Manager and Cloud KMS, with your own credentials",
    )
    group.add_argument(
        "--sandbox",
        choices=("host", "nested"),
        default="host",
        help="host: run on this machine's engine; nested: start an engine for this build alone"
        " (default: host)",
    )
    group.add_argument(
        "--no-docker-socket",
        action="store_true",
        help="do not mount the engine's socket into steps",
    )
    group.add_argument(
        "--share-registry-logins",
        action="store_true",
        help="give steps your docker logins for the registries of the build's images",
    )
    group.add_argument(
        "--metadata-server",
        action="store_true",
        help="let steps read the project and its service account from metadata.google.internal",
    )
    group.add_argument(
        "--metadata-credentials",
        nargs="?",
        const="",
        metavar="FILE",
        help="with --metadata-server: also give steps access tokens, made with this file of"
        " credentials (default: your own credentials)",
    )
    group.add_argument(
        "--privileged", action="store_true", help="run steps as privileged containers"
    )
    group.add_argument(
        "--no-cache", action="store_true", help="with --tag: do not reuse layers of earlier builds"
    )


def _add_output_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output",
        choices=("text", "json"),
        default="text",
        help="text: the log; json: events, one object a line (default: text)",
    )
    group.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="with --dry-run: format of the plan (default: text)",
    )
    group.add_argument(
        "-q", "--quiet", "--suppress-logs", action="store_true", help="do not show the log"
    )
    group.add_argument(
        "--strict", action="store_true", help="treat warnings about the config as errors"
    )


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    from buildrunner.cli.server.choice import add_server_flags

    add_server_flags(group)
    group.add_argument(
        _ASYNC, action="store_true", help="print the build's id and do not wait for its end"
    )
    group.add_argument(
        "--priority",
        type=int,
        default=0,
        metavar="N",
        help="from -1000 to 1000; a higher number starts earlier (default: 0)",
    )
    group.add_argument(
        "--group", default="", metavar="NAME", help="name of a group of builds, for --supersede"
    )
    group.add_argument(
        "--supersede",
        choices=("cancel_queued", "cancel_all"),
        default="",
        help="cancel the older builds of the --group: cancel_queued those that wait, cancel_all"
        " also those that run",
    )


def _add_gcloud_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--region", default="", metavar="REGION", help="value of $LOCATION; does not move the build"
    )
    group.add_argument(
        "--machine-type",
        default="",
        metavar="TYPE",
        help="limit the processors and memory of steps to those of this type",
    )
    group.add_argument(
        "--disk-size", default="", metavar="SIZE", help="recorded with the build; sets no limit"
    )
    group.add_argument(
        "--worker-pool",
        default="",
        metavar="POOL",
        help="on a server: the pool whose workers run the build; sets options.pool",
    )
    group.add_argument(
        "--service-account",
        default="",
        metavar="NAME",
        help="recorded with the build; gives no rights",
    )
    group.add_argument(
        "--gcs-source-staging-dir",
        default="",
        metavar="gs://B/DIR",
        help="upload the source there, and build the upload",
    )
    group.add_argument(
        "--gcs-log-dir", default="", metavar="gs://B/DIR", help="upload the finished log there"
    )
    for flag in _WITHOUT_EFFECT:
        group.add_argument(flag, default="", metavar="VALUE", help="accepted without effect")
    for flag, reason in _REFUSED.items():
        if flag != _ASYNC:
            group.add_argument(flag, default="", metavar="VALUE", help=f"refused, since {reason}")
