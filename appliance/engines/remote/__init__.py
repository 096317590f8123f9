"""Engine remote: any server that speaks OpenAI's chat completions."""
