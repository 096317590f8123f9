"""Makes a model ready and generates with it; never decides which model."""
