"""SimSiam (Chen and He, arXiv 2011.10566)."""
