"""The step as PyTorch runs it, operation by operation."""
