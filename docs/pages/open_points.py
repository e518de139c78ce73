"""The decision record on what Cloud Build's documentation leaves open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pages.behaviours import proof
from pages.markdown import table

if TYPE_CHECKING:
    from pages.behaviours import Behaviours

_TEXT = """\
# 0010: Choices where Cloud Build's behaviour is not documented

**Decided.** Where the documentation is silent, or its sources contradict each other, the table lists the behaviour of
buildrunner. In doubt, it follows the meaning that real configs rely on, then the harmless meaning.

**Weighed.** Each point was compared with the API's own texts, the archived local builder, gcloud and public logs. The number
O-39 is not used.

"""

_TAIL = """
**What would change our mind.** A word of the documentation, or a hosted build that shows otherwise.
"""


def page(found: Behaviours) -> str:
    """The page."""
    rows = [
        (
            point.id,
            point.question,
            point.decision,
            proof(point.tests),
        )
        for point in found.open_points
    ]
    return _TEXT + table(("", "question", "what we do", "tests"), rows) + _TAIL
