"""The training loop and what it is assembled from: step, updater, schedules, checkpoints, processes, signals."""
