"""Sources in local folders: the walk, and the rules of .gcloudignore."""
