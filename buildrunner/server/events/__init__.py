"""From a webhook, a schedule or a missed push to queued builds.

`intake` verifies and stores deliveries of forges, `webhook_calls` calls of webhook
triggers. `loop` and `handling` make builds of them. `reconcile` finds pushes whose webhook was
missed; `scheduler` fires schedules.
"""
