"""A run's whole network with its heads, as its checkpoint has it."""

from __future__ import annotations

from fastvicreg import config_file
from fastvicreg.config import kernel_choices
from fastvicreg.contracts import Method
from fastvicreg.pretrained import TrainedEncoder
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.assemble import as_module, build_method
from fastvicreg.train.online_probe import without_probe


def whole_method(trained: TrainedEncoder, device: str) -> Method:
    """The method whose encoder ``trained`` is, of a run, with the weights of the same checkpoint."""
    assert trained.run is not None
    own = config_file.load(trained.run)  # ``trained.config`` has the encoder of the branch that was asked for
    method = build_method(own, kernel_choices(own), device)
    tensors = without_probe(checkpoints.read_tensors(trained.checkpoint, "model"))
    checkpoints.load_weights(as_module(method), tensors, str(trained.checkpoint))
    return method
