"""ResNets as published with VICReg: torchvision's names and initialisation, other widths and stems."""
