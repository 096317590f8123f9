"""Carries out what a model asked for, after approval, in a sandbox."""
