"""Shared parts of all routes: access, sessions, errors, limits, the listener."""
