"""SimCLR (Chen et al., arXiv 2002.05709)."""
