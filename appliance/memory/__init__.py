"""Remembers and recalls, with provenance and labels."""
