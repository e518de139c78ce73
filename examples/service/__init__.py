"""A web service that turns Markdown into HTML."""
