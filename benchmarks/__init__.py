"""Speed figures as ratios: buildrunner and a yardstick, in turn, on the same machine.

    python -m benchmarks                 all of it, some 4 minutes
    python -m benchmarks --quick         fewer rounds
    python -m benchmarks steps source    these only

Absolute times say more about the machine than about the program, so every figure is the median of
the ratios of single rounds, each of which runs both sides one right after the other. Nothing is
asserted: the table names a target and a verdict, for a person to judge.
"""
