"""Operations of the server on plain values, shared by routes, pages and events. No HTTP requests.

`builds` and `triggers` are the operations; `queueing` is the one way into the queue, and
`admission` checks a new build. `documents` shows our own resources as JSON.
"""
