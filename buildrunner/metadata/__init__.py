"""The metadata server that steps may ask who they are (semantics of Compute Engine's)."""
