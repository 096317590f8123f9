"""Chat: messages into prompts by the model's own template, output back into messages, and calls
that are valid by construction. Pure code that runs inside the llama.cpp worker."""
