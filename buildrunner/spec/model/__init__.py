"""Messages of the Cloud Build API as classes: Build, BuildStep, Source, BuildTrigger.

A message is a msgspec Struct whose annotations are the schema, which `message` reads.
`descriptions` has a sentence for each field; `stands` says how far buildrunner supports the field.
"""
