"""Turns `config.toml` into one frozen value, and two such values into a list of changes."""
