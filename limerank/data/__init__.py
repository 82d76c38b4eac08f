"""Logs, datasets and what a model eats of them: the way from a value in a file to a batch."""
