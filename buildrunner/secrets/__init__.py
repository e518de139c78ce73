"""Secret values: the encrypted local store, Google's Secret Manager and KMS, and scopes.

Start with `provider`. `secret_scope` decides which build may read which secret.
"""
