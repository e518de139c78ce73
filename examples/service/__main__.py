"""Runs the service on port 8080: ``python -m service``."""

from waitress import serve

from service.app import create_app

serve(create_app(), host="0.0.0.0", port=8080)
