"""A transformer for captions."""
