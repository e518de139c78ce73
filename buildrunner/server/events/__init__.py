"""From a webhook, a schedule or a missed push to queued builds.

`intake` stores a delivery, `loop` and `handling` make builds of it; `reconcile` finds pushes whose
webhook was missed; `scheduler` fires by the clock.
"""
