"""Any of timm's image networks (Wightman, pytorch-image-models) as an encoder."""
