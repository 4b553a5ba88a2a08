"""One module a part: each has ``run(...) -> list of rows`` and the columns of its table."""
