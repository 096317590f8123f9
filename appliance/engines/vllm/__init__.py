"""Engine vllm: `vllm serve` as a child of ours on loopback, one for each loaded model."""
