"""Who to be at registries and package repositories: logins from steps and of the user."""
