"""YAML or JSON to messages: every problem with its file, line and column.

Start with `decode`, which turns nodes into messages. `nodes` parses to nodes with places;
`scalars` turns one node into one value.
"""
