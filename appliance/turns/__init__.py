"""Runs the loop of an agent's turn and journals it."""
