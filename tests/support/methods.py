"""Encoders and batches small enough to test a method on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fastvicreg.contracts import Batch, BuildContext, Cursor
from fastvicreg.encoders.resnet.network import ResNet, resnet
from fastvicreg.encoders.vit.network import VisionTransformer
from fastvicreg.methods import MethodConfig
from fastvicreg.methods.barlow_twins.config import BarlowTwinsConfig
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.dino.config import DINOConfig
from fastvicreg.methods.moco.config import MoCoConfig
from fastvicreg.methods.settings import takes_places
from fastvicreg.methods.simclr.config import SimCLRConfig
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.swav.config import SwAVConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicregl.config import VICRegLConfig
from fastvicreg.methods.vicregl.method import VICRegL
from fastvicreg.methods.wmse.config import WMSEConfig


def encoder() -> ResNet:
    """The narrowest ResNet."""
    return resnet("resnet18", width=16, stem="3x3s2")


def batch_of(samples: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Two views of noise, always the same."""
    generator = torch.Generator().manual_seed(7)
    views = torch.randn(2, samples, 3, 16, 16, generator=generator).to(dtype)
    index_B = torch.arange(samples)
    ordered = tuple(view.contiguous(memory_format=torch.channels_last) for view in views)
    return Batch(ordered, index_B, index_B % 2, Cursor(0, 0))


def batch_for(method: Any, samples: int, dtype: torch.dtype = torch.float32) -> Batch:
    """``batch_of``, with places where ``method`` takes them: view 1 is a quarter of a flipped view 2, more or less."""
    batch = batch_of(samples, dtype)
    if not takes_places(method.config):
        return batch
    moved_B = torch.arange(float(samples))
    one_B5 = torch.stack([moved_B, 2 * moved_B, torch.full((samples,), 40.0), 30 + moved_B, moved_B % 2], 1)
    other_B5 = torch.tensor([0.0, 0.0, 80.0, 70.0, 1.0]).expand(samples, 5)
    return replace(batch, places_BV5=torch.stack((one_B5, other_B5), 1))


METHOD_CONFIGS: dict[str, MethodConfig] = {
    "vicreg": VICRegConfig(expander=(32, 16)),
    "byol": BYOLConfig(projector=(32, 16), predictor_hidden=(32,), momentum=0.9),
    "simsiam": SimSiamConfig(projector=(32, 32, 16), predictor_hidden=(8,)),
    "barlow_twins": BarlowTwinsConfig(projector=(32, 16)),
    "simclr": SimCLRConfig(projector=(32, 16)),
    "moco": MoCoConfig(projector=(32, 16), queue=16, momentum=0.9, symmetric=True),
    "wmse": WMSEConfig(projector=(32, 2), w_size=4, w_iter=2),
    "swav": SwAVConfig(projector=(32, 16), prototypes=24, freeze_prototypes=2, queue=16, queue_from_epoch=0),
    "dino": DINOConfig(projector=(32, 16), prototypes=24, freeze_prototypes=1, momentum=0.9, batch_norm=True),
    "vicregl": VICRegLConfig(expander=(32, 16), local_projector=(32, 16), local_matches=(1,), alpha=0.75),
}
"""Every method by name, narrow enough for a test of batches of 8."""


LOCAL = VICRegLConfig(
    expander=(32, 16),
    local_projector=(24, 12),
    local_matches=(5, 2),
    alpha=0.75,
    invariance=3.0,
    variance=5.0,
    covariance=7.0,
)
"""VICRegL for maps of at least five positions, with a weight of its own for each term."""


def vicregl(config: VICRegLConfig = LOCAL, build: Any = encoder) -> VICRegL:
    """The method on a new ``build()``, always with the same weights."""
    torch.manual_seed(0)
    return config.build(BuildContext(lambda *words: build()))


BRANCHED_CONFIGS: dict[str, MethodConfig] = {
    f"{name} branched": replace(METHOD_CONFIGS[name], branch_b=("vit_tiny",), head_b=(24, width))  # type: ignore[type-var]
    for name, width in (("vicreg", 16), ("barlow_twins", 16), ("simclr", 16), ("wmse", 2))
}
"""Methods of two branches that share nothing: ``encoder()`` and a transformer, with heads of different widths."""


def either_encoder(*words: str) -> ResNet | VisionTransformer:
    """``encoder()``, or for the second branch a transformer of one block."""
    return VisionTransformer(32, 2, 1, 8, 2) if words else encoder()


def built(config: MethodConfig) -> Any:
    """The method on ``encoder()``, always with the same weights."""
    torch.manual_seed(0)
    return config.build(BuildContext(either_encoder))
