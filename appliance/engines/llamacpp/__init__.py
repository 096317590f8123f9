"""Engine llamacpp: one child process per loaded model on the low-level binding."""
