"""Translates between our types and other people's JSON; opens no connection."""
