"""The daily loop: new logs, a warm start, a gate, and an index that goes live only if it is not
worse."""
