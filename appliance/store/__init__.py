"""Writes and reads SQLite; owns the journal."""
