"""Messages to other machines, delivered at least once: HTTP, mail, commit statuses.

`sender` claims messages from the database and retries them; `http` and `mail` deliver.
"""
