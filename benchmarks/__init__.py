"""Measurements: each module writes rows into results/, and `report` makes docs/results of them."""
