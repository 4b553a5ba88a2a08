"""Inspection of torch.profiler traces: what a step's time went into, what held it back, and what changed."""
