"""The routes: one that renders, one that says that the service is well."""

from flask import Flask, Response, jsonify, request
from markdown_it import MarkdownIt

LIMIT = 64 * 1024
"""Longest Markdown text that is taken, in bytes."""


def create_app() -> Flask:
    """The service, ready to be run by any WSGI server."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = LIMIT
    markdown = MarkdownIt("js-default")  # HTML in the text is shown, not passed on

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="ok")

    @app.post("/render")
    def render() -> Response:
        text = request.get_data(cache=False).decode("utf-8", "replace")
        return Response(markdown.render(text), mimetype="text/html")

    return app
