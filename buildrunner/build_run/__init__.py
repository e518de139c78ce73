"""One build, from a request to its end: the same on a laptop and for a server.

`request` is what to build; `compile` makes a plan of it; `execution` runs the plan in a sandbox.
`requested` does the same for a build that a server stored. Imports `wiring` for concrete engines
and stores; knows neither the command line's arguments nor the server.
"""
