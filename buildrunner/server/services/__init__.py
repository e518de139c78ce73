"""Operations of the server on plain values, shared by routes, pages and events. No HTTP requests.

`builds` and `triggers` have the operations. `queueing` checks new builds, and is the only way into
the queue. `documents` has the JSON of buildrunner's own resources.
"""
