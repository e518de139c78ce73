"""The server: REST API in the form of Cloud Build v1, webhooks, live logs, pages.

Start with `app`. The layers inside are in pyproject.toml: pages and routes (`api`) stand on
`services` and `events`, those on `outbox` and `logs`, all on `http` and `context`.
"""
