"""Operations of the server on plain values, shared by routes, pages and events. No HTTP requests.

`builds` and `triggers` are the operations; `queueing` checks a new build and is the one way into
the queue. `documents` shows our own resources as JSON.
"""
