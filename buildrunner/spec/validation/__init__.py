"""The validation rules of Cloud Build, one module for each subject.

Start with `check`. docs/reference/rules.md lists the rules by number.
"""
