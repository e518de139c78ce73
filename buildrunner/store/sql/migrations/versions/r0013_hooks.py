"""Store the bindings of hooks, and which forge triggers were fired from.

Before this revision, a repository was known by its name alone, and deliveries reported its URL.
These URLs are not trusted: a trigger that was fired by a forge other than its own is marked, and
waits for its admin.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_ADDRESSES = "addresses of "
_PUBLIC = {"github": "github.com", "gitlabEnterpriseEventsConfig": "gitlab.com"}


def upgrade() -> None:
    """Make the tables what this revision has."""
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    op.create_table(
        "hooks",
        sa.Column("name", text, nullable=False),
        sa.Column("binding", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    connection = op.get_bind()
    told = _told_addresses(connection)
    _bind_bare_repositories(connection, told)
    _mark_triggers(connection, told)
    connection.execute(
        sa.text("DELETE FROM known_refs WHERE repository LIKE :like"), {"like": f"{_ADDRESSES}%"}
    )


def _told_addresses(connection: sa.Connection) -> dict[str, dict[str, str]]:
    """Return the URLs of repositories that deliveries reported: by kind of forge, by name."""
    found: dict[str, dict[str, str]] = {}
    rows = connection.execute(
        sa.text("SELECT repository, ref, commit_sha FROM known_refs WHERE repository LIKE :like"),
        {"like": f"{_ADDRESSES}%"},
    )
    for repository, forge, url in rows:
        found.setdefault(repository.removeprefix(_ADDRESSES), {})[forge] = url
    return found


def _bind_bare_repositories(connection: sa.Connection, told: dict[str, dict[str, str]]) -> None:
    rows = connection.execute(
        sa.text("SELECT DISTINCT hook FROM deliveries WHERE hook LIKE 'git/%'")
    )
    for (hook,) in rows.all():
        url = told.get(hook.removeprefix("git/").casefold(), {}).get("git", "")
        if url:
            connection.execute(
                sa.text("INSERT INTO hooks (name, binding) VALUES (:name, :binding)"),
                {"name": hook, "binding": _encoded({"repository": url})},
            )


def _mark_triggers(connection: sa.Connection, told: dict[str, dict[str, str]]) -> None:
    rows = connection.execute(
        sa.text(
            "SELECT t.project_id, t.id, t.document, s.settings FROM triggers t"
            " LEFT JOIN trigger_settings s ON s.project_id = t.project_id AND s.trigger_id = t.id"
        )
    )
    for project, identity, document, stored in rows.all():
        forge = _other_forge(json.loads(bytes(document)), told)
        if forge is None:
            continue
        settings = json.loads(bytes(stored)) if stored is not None else {}
        which = {"project": project, "id": identity}
        connection.execute(
            sa.text(
                "DELETE FROM trigger_settings WHERE project_id = :project AND trigger_id = :id"
            ),
            which,
        )
        connection.execute(
            sa.text(
                "INSERT INTO trigger_settings (project_id, trigger_id, settings)"
                " VALUES (:project, :id, :settings)"
            ),
            {**which, "settings": _encoded({**settings, "forge": {**forge, "unconfirmed": True}})},
        )


def _other_forge(trigger: dict[str, Any], told: dict[str, dict[str, str]]) -> dict[str, str] | None:
    """Return the forge that fired a trigger, if its own never did."""
    kind, name = _named(trigger)
    addresses = told.get(name.casefold(), {}) if name else {}
    hosts = {forge: _host(url, name) for forge, url in addresses.items() if forge != "git"}
    own = _PUBLIC.get(kind, "")
    if own and any(host.rpartition("/")[2] == own for host in hosts.values()):
        return None
    return next(({"kind": forge, "host": host} for forge, host in hosts.items() if host), None)


def _named(trigger: dict[str, Any]) -> tuple[str, str]:
    """Return the field that names a trigger's repository, and the name in it."""
    github = trigger.get("github")
    if github:
        return "github", f"{github.get('owner', '')}/{github.get('name', '')}"
    gitlab = trigger.get("gitlabEnterpriseEventsConfig")
    if gitlab:
        return "gitlabEnterpriseEventsConfig", str(gitlab.get("projectNamespace", ""))
    server = trigger.get("bitbucketServerTriggerConfig")
    if server:
        name = f"{server.get('projectKey', '')}/{server.get('repoSlug', '')}"
        return "bitbucketServerTriggerConfig", name
    return "", ""


def _host(url: str, name: str) -> str:
    """Return the forge's URL from a repository's URL; empty if unknown."""
    page = url.rstrip("/").removesuffix(".git")
    if not page.startswith(("https://", "http://")) or not page.casefold().endswith(
        f"/{name}".casefold()
    ):
        return ""
    scheme, _, rest = page[: -len(name) - 1].partition("://")
    place = rest.rpartition("@")[2].removesuffix("/scm")
    return f"{scheme}://{place}"


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
