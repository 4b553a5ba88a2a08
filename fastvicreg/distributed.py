"""How many processes a run has; the one place, with doctor, that reads the environment."""

import os


def world_size() -> int:
    """Processes that torchrun launched; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
