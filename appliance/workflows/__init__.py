"""Strings turns together over time, on the one journal."""
