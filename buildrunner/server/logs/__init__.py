"""Logs of builds over HTTP: live streams and ranges of stored ones."""
