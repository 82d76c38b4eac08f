"""Evaluation: what a run predicts, how good that is, and how sure a difference is."""
