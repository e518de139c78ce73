"""The compiled form of a build, and the pure rules by which its steps run. Pure.

Start with `build_plan`, the result of `compile`. `step_graph` decides which steps may run;
`selection` leaves steps out; `privilege` limits the rights of steps. `drawing` draws the steps.
"""
