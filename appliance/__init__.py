"""One daemon that turns a GPU workstation into an AI team of one's own."""

__version__ = "0.1.0"
