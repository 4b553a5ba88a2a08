"""VICReg (Bardes, Ponce, LeCun, arXiv 2105.04906)."""
