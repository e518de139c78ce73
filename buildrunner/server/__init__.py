"""The server: REST API in the form of Cloud Build v1, webhooks, live logs, pages.

Start with `app`. The layers inside are in pyproject.toml: pages and routes (`api`) use
`services` and `events`; those use `outbox` and `logs`; all use `http` and `context`.
"""
