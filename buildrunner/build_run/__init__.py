"""One build, from a request to its end: the same on a laptop and on a server.

`request` is a requested build: its config, its source and the values that count for it. `compile`
plans it; `execution` fetches its source and runs the plan. Imports `wiring` for concrete engines
and stores.
"""
