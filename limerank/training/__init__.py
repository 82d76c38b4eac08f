"""Training: batches in, a run folder out."""
