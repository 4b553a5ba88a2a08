"""W-MSE (Ermolov et al., arXiv 2007.06346)."""
