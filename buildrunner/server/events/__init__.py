"""From a webhook, a schedule or a missed push to queued builds.

`intake` stores a delivery, `loop` and `handling` make builds of it; `known_triggers` reads the
triggers that they match. `reconcile` finds pushes whose webhook was missed; `scheduler` fires by
the clock.
"""
