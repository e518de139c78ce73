"""What a build is: the Cloud Build resource, how it is read, checked and written.

Start with `model.build`. `reading` turns YAML or JSON into it, `validation` checks it,
`substitutions` fills in values, `writing` turns it back into JSON or YAML. Pure.
"""
