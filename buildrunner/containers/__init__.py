"""Containers: the engine protocol, the Docker engine, the in-memory engine, the guardian."""
