"""Labels by which attempts of the same build know each other.

``first_attempt`` is on every later one and names the first, whose ``attempts`` lists them
(`NewBuild.attempt_of`). A build that goes on from a step of another one has ``from_build``,
``from_step`` (its id, or ``#2``) and ``reused_steps``: indexes, in the whole build, of the steps
that need not run again.
"""

from __future__ import annotations

from typing import Final

FIRST_ATTEMPT: Final = "first_attempt"
ATTEMPTS: Final = "attempts"
FROM_BUILD: Final = "from_build"
FROM_STEP: Final = "from_step"
REUSED_STEPS: Final = "reused_steps"
# A later attempt does not inherit them.
OF_ONE_ATTEMPT: Final = frozenset({ATTEMPTS, FROM_BUILD, FROM_STEP, REUSED_STEPS})
