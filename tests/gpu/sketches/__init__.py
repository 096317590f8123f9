"""Sketches of real models: dimensions as published, tensors as llama.cpp's loader wants them."""
