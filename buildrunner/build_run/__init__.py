"""One build, from a request to its end: the same on a laptop and on a server.

`request` describes the build that was asked for; `compile` makes a plan of it; `execution` runs the
plan in a sandbox. `requested` compiles a build that a server stored. Imports `wiring` for concrete
engines and stores.
"""
