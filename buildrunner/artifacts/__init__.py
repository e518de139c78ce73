"""Uploads of what a build made, besides images: files and packages."""
