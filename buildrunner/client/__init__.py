"""The client of a buildrunner server: calls, uploads and live logs over HTTP.

Start with `client`. Imports nothing of buildrunner but its errors and pauses (`retry`).
"""
