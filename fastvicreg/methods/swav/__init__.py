"""SwAV (Caron et al., arXiv 2006.09882)."""
