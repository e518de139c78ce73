"""Pages of builds: list, one build with its steps, drawings, log, artifacts."""
