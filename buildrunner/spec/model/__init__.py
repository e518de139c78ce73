"""Messages of the Cloud Build API as classes: Build, BuildStep, Source, BuildTrigger.

A message is a msgspec Struct whose annotations are the schema: `shapes` reads them, `descriptions`
says what each field means, `stands` how far buildrunner serves it.
"""
