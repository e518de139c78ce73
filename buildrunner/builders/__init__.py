"""Builder images of our own: which there are, what they stand in for, and how they are made."""
