"""Barlow Twins (Zbontar et al., arXiv 2103.03230)."""
