"""The step's forward pass, loss and their gradients through torch.compile."""
