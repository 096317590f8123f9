"""A stand-in for the Messages API: a program of its own on loopback."""
