"""The server: REST API in Cloud Build v1 form, live logs, access."""
