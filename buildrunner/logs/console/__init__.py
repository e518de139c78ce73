"""A build on a terminal: log lines, status line, summary.

Start with `console`; `wording` has the words that terminal and pages share.
"""
