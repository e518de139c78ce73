"""Where the values of secrets come from."""
