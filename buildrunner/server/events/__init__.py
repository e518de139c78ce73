"""From a webhook, a schedule or a missed push to queued builds.

`intake` verifies and stores what forges send, `webhook_calls` what callers of webhook triggers
send. `loop` and `handling` make builds of it. `reconcile` finds pushes whose webhook was missed;
`scheduler` fires by the clock.
"""
