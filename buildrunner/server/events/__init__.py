"""From a webhook, a schedule or a missed push to queued builds.

`intake` verifies and stores deliveries of forges. `webhook_calls` does the same for calls of
webhook triggers. `loop` and `handling` make builds of the deliveries. `reconcile` finds pushes
whose webhook was missed. `scheduler` fires triggers with a schedule.
"""
