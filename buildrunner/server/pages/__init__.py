"""The dashboard: drawn on the server, live by server-sent events, readable without scripts."""
