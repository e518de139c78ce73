"""YAML or JSON to messages: every problem with its file, line and column.

Start with `decode`, which converts nodes to messages. `nodes` parses text to nodes with places;
`scalars` converts one node to one value.
"""
