"""The inner loops: slow float32 references that define them, and the fast forms."""
