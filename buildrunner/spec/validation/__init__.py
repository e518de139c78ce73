"""The rules of Cloud Build on a Build, a module for each subject.

Start with `check`. docs/reference/rules.md lists the rules by their numbers.
"""
