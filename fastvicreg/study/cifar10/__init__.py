"""What methods learn of CIFAR-10 for equal CPU time, or in equal epochs."""
