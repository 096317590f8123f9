"""Parts of the router's bench: data, metrics, learning at the desk, a simulation of steps."""
