"""Pictures of structures and of scores."""
