"""Parts of `engine.py`: what is measured, and the servers it is measured on."""
