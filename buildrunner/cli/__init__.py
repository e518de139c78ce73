"""The command line: a module, or a package with `command`, for each command.

Start with `main`, which lists the commands. A command parses its arguments, calls the package that
does the work, and turns the result into text and an exit code.
"""
