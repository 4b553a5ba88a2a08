"""Your own training loop with fastvicreg's loader, loss and optimizer: python examples/own_training_loop.py FOLDER."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import nn

from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.kernels import vicreg_loss
from fastvicreg.methods.heads import expander
from fastvicreg.optim import LARS, cosine_schedule
from fastvicreg.pipelines import ViewLoader

EPOCHS, BATCH, SIZE = 2, 16, 32


def main(arguments: Sequence[str]) -> list[float]:
    """Train on the images in a folder, a .beton or tar shards; returns the loss of every step."""
    loader = ViewLoader(arguments[0], recipe="small", image_size=SIZE, batch_size=BATCH)

    encoder = resnet("resnet18", width=16, stem="3x3s2")
    network = nn.Sequential(encoder, expander(encoder.features, (256, 256, 256)))
    optimizer = LARS(network.parameters(), lr=0.0, weight_decay=1e-6)

    steps = EPOCHS * len(loader)
    losses: list[float] = []
    for epoch in range(EPOCHS):
        for (view_a, view_b), _, _ in loader:  # each (B, 3, H, W), normalised; labels and indices are not needed
            lr = cosine_schedule(len(losses), steps=steps, warmup_steps=steps // 10, base_lr=1.0, batch_size=BATCH)
            for group in optimizer.param_groups:
                group["lr"] = lr
            terms = vicreg_loss(network(view_a), network(view_b))
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
            losses.append(float(terms.total.detach()))
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    loader.close()
    return losses


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
