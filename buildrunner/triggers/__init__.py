"""From an event to a build: triggers, the events they match, the builds they make. Pure.

Start with `matching`. `events` are the inputs; `forges` reads them from webhooks; `build` makes
the Build; `schedule` computes the times of schedules.
"""
