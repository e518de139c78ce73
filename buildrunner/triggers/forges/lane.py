"""Which deliveries must be handled in their order: those of one repository. Pure."""

from __future__ import annotations

from buildrunner.triggers.forge_host import repository_key
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest, json_object, text

# Where payloads tell which repository they are about, of a pull request's base: GitHub and Gitea;
# GitLab; Bitbucket; a bare repository's hook; Bitbucket Server, which may tell no address.
_PATHS: tuple[tuple[str | int, ...], ...] = (
    ("repository", "clone_url"),
    ("project", "git_http_url"),
    ("repository", "links", "html", "href"),
    ("repository", "url"),
    ("repository", "links", "self", 0, "href"),
    ("pullRequest", "toRef", "repository", "links", "self", 0, "href"),
    ("repository", "full_name"),
    ("repository", "slug"),
    ("pullRequest", "toRef", "repository", "slug"),
)
_MOST = 500


def lane_of(request: WebhookRequest) -> str:
    """One name for the repository that a genuine delivery is about; empty where it names none."""
    try:
        body = json_object(request)
    except BadDelivery:
        return ""
    keys = (repository_key(text(body, *path)) for path in _PATHS)
    return next((key[:_MOST] for key in keys if key), "")
