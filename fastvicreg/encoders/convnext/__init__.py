"""ConvNeXts (Liu et al., arXiv 2201.03545) under timm's parameter names."""
