"""Notifiers: which builds they report, to whom, and in which words.

`notifier` is the resource; `dispatch` decides which messages are sent; `messages` and `templates`
write the text, in a bounded process.
"""
