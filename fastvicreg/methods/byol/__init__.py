"""BYOL (Grill et al., arXiv 2006.07733)."""
