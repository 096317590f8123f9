"""Renders what the socket says."""
