"""The dashboard: pages drawn on the server, live by server-sent events, readable without scripts."""
