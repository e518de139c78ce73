"""Drawings of a plan's steps: text, SVG, Mermaid. Pure."""
