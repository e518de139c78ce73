"""Notifiers: the builds that they report, the receivers, and the text.

`notifier` is the resource; `dispatch` decides which messages are sent; `messages` and `templates`
write the text, in a bounded process.
"""
