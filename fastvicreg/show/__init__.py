"""What a run tells of itself: metrics, the display in a terminal, warnings, pictures; columns come from the method."""
