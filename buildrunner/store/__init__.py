"""Builds that ran here, kept for reading again."""
