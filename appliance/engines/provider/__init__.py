"""What a call to a model over HTTP costs, how long it may be silent, and how it can fail."""
