"""Messages to other machines, sent at least once: HTTP, mail, commit statuses.

`sender` claims messages from the database and retries them; `http` and `mail` deliver.
"""
