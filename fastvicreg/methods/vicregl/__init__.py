"""VICRegL (Bardes, Ponce, LeCun, arXiv 2210.01571)."""
