"""YAML or JSON to messages: every problem with its file, line and column.

Start with `decode`. `yaml_nodes` and `json_nodes` parse to nodes with places; `readers` and
`scalars` turn nodes into values.
"""
