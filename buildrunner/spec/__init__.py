"""The Build resource of Cloud Build: its fields, reading, validation and writing. Pure.

Start with `model.build`. `reading` turns YAML or JSON into a Build, `validation` checks it,
`substitutions` fills in values, `writing` converts it back to JSON or YAML.
"""
