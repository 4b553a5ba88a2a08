"""Gradient caching: the exact loss of a batch that the device's memory does not hold."""
