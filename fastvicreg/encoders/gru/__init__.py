"""A recurrent network for captions."""
