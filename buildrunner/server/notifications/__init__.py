"""Notifications: who is told of a build, when, and in which words."""
