"""Secret values: the encrypted local store, Google's Secret Manager and KMS, and scopes.

Start with `provider`, which tries the sources of values in order. `secret_scope` decides which
build may read which secret.
"""
