"""MoCo v2 (Chen et al., arXiv 2003.04297)."""
