"""Ranking: a user and an index in, ranked items with reasons out."""
