"""The composition root: builds the rooms, supervises, reloads, tells systemd."""
