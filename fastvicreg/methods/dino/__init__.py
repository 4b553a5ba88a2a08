"""DINO (Caron et al., arXiv 2104.14294)."""
