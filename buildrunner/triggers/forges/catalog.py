"""All forges, by the name in their webhook's address ``/hooks/NAME``."""

from __future__ import annotations

from collections.abc import Mapping

from buildrunner.triggers.forges.bare_git import BareGit
from buildrunner.triggers.forges.bitbucket import Bitbucket
from buildrunner.triggers.forges.bitbucket_server import BitbucketServer
from buildrunner.triggers.forges.forge import Forge
from buildrunner.triggers.forges.gitea import Gitea
from buildrunner.triggers.forges.github import GitHub
from buildrunner.triggers.forges.gitlab import GitLab

FORGES: Mapping[str, Forge] = {
    "github": GitHub(),
    "gitlab": GitLab(),
    "gitea": Gitea(),
    "forgejo": Gitea(),
    "bitbucket": Bitbucket(),
    "bitbucket-server": BitbucketServer(),
    "git": BareGit(),
}
