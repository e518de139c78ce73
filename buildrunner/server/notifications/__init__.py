"""Notifications: who is notified of a build, when, and in which words.

`model` and `notifier` are the resource; `dispatch` decides what is sent; `messages` and `templates`
make the text, in a bounded process.
"""
