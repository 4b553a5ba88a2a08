"""The whole story on embedded photographs in minutes, and the report that tells it."""
