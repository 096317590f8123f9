"""Speaks to clients in several dialects over one set of calls; contains no policy."""
