"""A process that carries paid calls and outlives the daemon; docs/adr/0043."""
