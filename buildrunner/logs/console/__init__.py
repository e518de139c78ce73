"""A build on a terminal: log lines, status line, summary.

Start with `console`, which writes to one of the `outputs`; `wording` has the words that terminal
and pages share.
"""
