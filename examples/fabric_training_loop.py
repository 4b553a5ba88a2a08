"""A Lightning Fabric loop with fastvicreg's loader, loss and LARS, on one device or several, stopped and resumed.

python examples/fabric_training_loop.py FOLDER CHECKPOINT [PROCESSES]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.kernels import vicreg_loss
from fastvicreg.methods.heads import expander
from fastvicreg.optim import LARS, cosine_schedule
from fastvicreg.pipelines import ViewLoader
from fastvicreg.train.batch_norm import own_group, replace_norms

EPOCHS, BATCH, SIZE = 2, 16, 32


class BothViews(nn.Module):
    """Encoder and expander; one forward pass for both views, as DistributedDataParallel needs it."""

    def __init__(self) -> None:
        super().__init__()
        encoder = resnet("resnet18", width=16, stem="3x3s2")
        self.network = nn.Sequential(encoder, expander(encoder.features, (256, 256, 256)))

    def forward(self, view_a: Tensor, view_b: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(view_a), self.network(view_b)


def main(arguments: Sequence[str], steps: int | None = None) -> list[float]:
    """Train on a folder, a .beton or tar shards, from the checkpoint on where there is one; the loss of every step.

    ``steps`` ends the run early, counted from its beginning.
    """
    folder, checkpoint = map(Path, arguments[:2])
    processes = int(arguments[2]) if len(arguments) > 2 else 1
    fabric = Fabric(devices=processes, strategy="ddp" if processes > 1 else "auto")  # precision="bf16-mixed" on a GPU
    fabric.launch()
    fabric.seed_everything(0, verbose=False)

    # The loader gives this process its share of each batch, on its device: fabric.setup_dataloaders has nothing to do.
    ranks: dict[str, Any] = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    loader = ViewLoader(folder, recipe="small", image_size=SIZE, batch_size=BATCH, device=str(fabric.device), **ranks)

    model = BothViews().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the loader's views
    if processes > 1:
        replace_norms(model, ranks=fabric.world_size, group=own_group())  # statistics of the whole batch
    model, optimizer = fabric.setup(model, LARS(model.parameters(), lr=0.0, weight_decay=1e-6))
    # The loader is resumed as the model is: by state_dict and load_state_dict.
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "loader": loader, "step": 0}
    if checkpoint.exists():
        fabric.load(checkpoint, state)

    total = EPOCHS * len(loader)
    end = total if steps is None else min(steps, total)
    losses: list[float] = []
    while state["step"] < end:
        for (view_a, view_b), _, _ in loader:
            lr = cosine_schedule(state["step"], steps=total, warmup_steps=total // 10, base_lr=1.0, batch_size=BATCH)
            for group in optimizer.param_groups:
                group["lr"] = lr
            # The loss of all processes' rows; its gradient is made for the average that DDP takes.
            whole = dist.group.WORLD if processes > 1 else None
            terms = vicreg_loss(*model(view_a, view_b), group=whole)
            optimizer.zero_grad()
            fabric.backward(terms.total)
            optimizer.step()
            losses.append(float(terms.total.detach()))
            state["step"] += 1
            if state["step"] == end:
                break
        fabric.print(f"step {state['step']}: loss {losses[-1]:.4f}")
    fabric.save(checkpoint, state)
    loader.close()
    return losses


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
