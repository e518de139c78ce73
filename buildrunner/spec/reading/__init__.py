"""YAML or JSON to messages: every problem with its file, line and column.

Start with `decode`. `nodes` parses to nodes with places; `readers` and
`scalars` turn nodes into values.
"""
