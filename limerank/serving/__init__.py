"""Serving: events and user states, live items, and the HTTP service on top of them."""
