"""Knows what memory exists, what a model will need, and what fits where."""
