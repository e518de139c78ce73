"""Workers: claim builds, run each in a process of its own, adopt what a crash left."""
