"""The check of ``buildrunner doctor`` that looks at a server's triggers and hooks."""

from __future__ import annotations

from buildrunner.cli.doctor_checks import Finding
from buildrunner.cli.server_place import has_database
from buildrunner.errors import BuildrunnerError

_SUBJECT = "triggers"


def check_triggers(database: str, folder: str) -> list[Finding]:
    """Triggers and hooks that need their administrator; nothing where there is no server.

    Args:
        database: URL of the server's database; it is not changed.
        folder: where the user is, for the settings that hold there.
    """
    from buildrunner import wiring
    from buildrunner.server.trigger_problems import trigger_problems
    from buildrunner.settings import load_settings

    if not has_database(database):
        return []
    try:
        repositories = load_settings(folder).git.repositories
        store = wiring.current_server_store(database)
        if store is None:
            text = "the server's database is of an older version: `buildrunner serve` upgrades it"
            return [Finding("warn", _SUBJECT, text)]
        try:
            problems = trigger_problems(store, repositories)
        finally:
            store.close()
    except BuildrunnerError as error:
        return [Finding("warn", _SUBJECT, str(error), error.hint)]
    if not problems:
        return [Finding("ok", _SUBJECT, "all can fire, and all hooks are bound")]
    return [Finding("warn", _SUBJECT, problem) for problem in problems]
