"""Decides when; holds leases and ledgers; never sees a prompt's text."""
