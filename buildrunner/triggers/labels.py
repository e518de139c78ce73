"""Labels of builds that only the server sets, from a trigger and its event; no caller can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# The config is in the fetched source: the path, or AUTODETECT for the usual names.
CONFIG_LABEL: Final = "config_file"
AUTODETECT: Final = "?"
# The trigger's name at the time when it made the build.
TRIGGER_NAME: Final = "trigger_name"
# The built refs/heads/BRANCH or refs/tags/TAG of the trigger's own repository, from the event,
# the trigger or the revision of a run. A fork's build has none.
BUILT_REF: Final = "built_ref"
# The caller of a manual run named the commit. Forges serve commits of forks, too.
NAMED_COMMIT: Final = "named_commit"
# The names of the substitutions and the folder that the caller of a manual run gave.
GIVEN_VALUES: Final = "given_values"
GIVEN_FOLDER: Final = "given_folder"
# The code is of the pull request of a fork, and the fork's full name.
FORK: Final = "fork"
HEAD_REPOSITORY: Final = "head_repository"
# The delivery that made the build, and the index of its event in the delivery.
DELIVERY: Final = "delivery"
EVENT_NUMBER: Final = "event_number"
# The trigger wants a build to run again whose worker is lost after a step began.
RERUNS_LOST: Final = "reruns_lost"
# No source was given: the build failed, and can't be retried.
NOTHING_TO_BUILD: Final = "nothing_to_build"


def trigger_name(labels: Mapping[str, str], trigger_id: str) -> str:
    """Return the name of a build's trigger; empty without one.

    A run may change ``$TRIGGER_NAME``, so it is no substitution. Without the label it is the id.
    """
    return labels.get(TRIGGER_NAME, "") or trigger_id
