"""The tools every installation has, one family a file."""
