"""A run: the folder that training writes, and the model that is loaded from it."""
