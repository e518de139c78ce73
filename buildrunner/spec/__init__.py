"""The Build resource of Cloud Build: its fields, how it is read, validated and written. Pure.

Start with `model.build`. `reading` turns YAML or JSON into a Build, `validation` checks it,
`substitutions` fills in values, `writing` turns it back into JSON or YAML.
"""
