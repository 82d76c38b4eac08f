"""Logs, datasets and batches: from a value in a file to the input of a model."""
