"""A run that begins with an encoder's weights from elsewhere: another run, an export, or another program's file."""

from __future__ import annotations

from torch import nn

from fastvicreg.config import TrainConfig
from fastvicreg.methods.momentum import MomentumCopy
from fastvicreg.methods.settings import branch_of
from fastvicreg.pretrained import load_trained
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.weights.imported import require_same


def begin_with_weights(config: TrainConfig, method: nn.Module, encoder: nn.Module) -> tuple[str, ...]:
    """Copy ``config.run.init``'s encoder into ``encoder``, ``method``'s own, and into the momentum copies of it.

    Heads keep their fresh weights, so that any method can go on from any other's encoder. Returns lines on what was
    taken. ``UserError`` where the file is refused or holds another architecture than the run's.
    """
    assert config.run.init is not None
    found = load_trained(config.run.init)
    require_same(found.config.encoder, config.encoder, config.run.init)
    tensors = found.encoder.state_dict()
    shapes = {name: value.shape for name, value in tensors.items()}
    copies = [module.network for module in method.modules() if isinstance(module, MomentumCopy)]
    for network in (encoder, *copies):
        if network is encoder or {name: value.shape for name, value in network.state_dict().items()} == shapes:
            checkpoints.load_weights(network, tensors, config.run.init)
    notes = list(found.notes)
    stems = [getattr(part, "stem", "") for part in (found.config.encoder, config.encoder)]
    if stems[0] != stems[1]:
        notes.append(f"its stem was {stems[0]}, the run's is --stem {stems[1]}: the same weights on other pixels.")
    if found.passed_over:
        notes.append(f"{found.passed_over}: an older one was taken.")
    branches = "branch A's encoder" if branch_of(config.method) else "encoder"
    taken = f"{branches} from {found.checkpoint}; {'the rest is' if branch_of(config.method) else 'heads are'} fresh."
    return (*notes, taken)
