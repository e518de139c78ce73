"""Substitutions: variables, `$expressions`, and bash's operators on them."""
