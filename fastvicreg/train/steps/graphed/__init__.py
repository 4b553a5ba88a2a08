"""The whole step as one CUDA graph: recorded once, replayed by a single launch."""
