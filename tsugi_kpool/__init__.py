"""K-Pool: a straggler-tolerant LoRA engine."""
