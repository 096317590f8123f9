"""Decides where one step should run, and says why; never waits, loads or calls."""
