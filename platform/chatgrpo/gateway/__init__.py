"""What happens to a request before a model sees it."""
