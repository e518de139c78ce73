"""Runs one compiled build: the loop, the life of a step, the log, the push, the results."""
