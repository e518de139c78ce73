"""A stored build as it asks for secrets."""

from __future__ import annotations

from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.store.model.builds import StoredBuild
from buildrunner.triggers.labels import BUILT_REF, TRIGGER_NAME


def build_asker(stored: StoredBuild, default_project: str) -> Asker:
    """Return what the server knows of a build that asks for secrets, not what its config says.

    Args:
        stored: the build.
        default_project: the project of a build that names none.
    """
    trigger = str(stored.document.get("buildTriggerId", ""))
    name = stored.labels.get(TRIGGER_NAME, "")
    return Asker(
        use=Use.BUILD,
        project=str(stored.document.get("projectId", default_project)),
        trusted=not stored.untrusted,
        triggers=tuple(filter(None, (trigger, name))) if trigger else (),
        ref=stored.labels.get(BUILT_REF, "") if trigger else "",
    )
