"""`buildrunner notifications`: the notifiers of a server, and what they sent."""
