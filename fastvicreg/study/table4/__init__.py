"""The paper's Table 4: the variance and covariance terms in other methods, and in VICReg without its parts."""
