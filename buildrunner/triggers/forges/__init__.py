"""Webhooks of forges, one module each: verifies the signature, reads the payload. Pure."""
