"""Evaluation of untrusted text in a process with limits of time, memory and output.

`calls` sends work to such a process; `filters` evaluates CEL there.
"""
