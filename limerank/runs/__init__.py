"""A run: what training leaves on disk, and the model that is loaded from it."""
