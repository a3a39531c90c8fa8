"""Training: data, heads, losses, the trainer and evaluation. What needs torch needs the extra `train`."""
