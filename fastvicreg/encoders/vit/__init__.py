"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) under timm's parameter names."""
