"""Checkpoints as other programs write them, made from small encoders of ours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig

Tensors = dict[str, Tensor]


def exclude_bias_and_norm(parameter: Tensor) -> bool:
    """What official optimizers keep in their ``param_groups``."""
    return parameter.ndim == 1


def trained(config: ResNetConfig | ViTConfig | ConvNeXtConfig, *, seed: int = 0) -> nn.Module:
    """An encoder whose norms, their running statistics and biases are not their initial ones."""
    torch.manual_seed(seed)
    encoder = config.build()
    for value in encoder.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:  # norms and biases: more would let deep networks overflow
            value.add_(torch.rand_like(value) * 0.1)
    return encoder.eval()


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def head(prefix: str, *names: str) -> Tensors:
    """A few tensors of a head."""
    return {prefix + name: torch.ones(2, 2) for name in names or ("0.weight", "0.bias")}


def optimizer() -> dict[str, Any]:
    """As official LARS leaves it: with functions."""
    group = {"lr": 0.1, "params": [0], "weight_decay_filter": exclude_bias_and_norm}
    return {"state": {0: {"mu": torch.ones(3)}}, "param_groups": [group]}


def numbered(tensors: Mapping[str, Tensor]) -> Tensors:
    """As ``nn.Sequential(*list(resnet.children())[:-1])`` names them."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {".".join([numbers[(parts := name.split("."))[0]], *parts[1:]]): value for name, value in tensors.items()}


def contents(own: Tensors) -> dict[str, tuple[Any, str]]:
    """By layout: what a file holds around an encoder's tensors, and words of the line that tells of it."""
    lightning = {"epoch": 3, "pytorch-lightning_version": "2.1", "optimizer_states": [optimizer()], "callbacks": {}}
    solo = {**under("backbone.", own), **head("projector."), **head("classifier.", "weight", "bias")}
    return {
        "vicreg": (
            {
                "epoch": 4,
                "model": {**under("module.backbone.", own), **head("module.projector.")},
                "optimizer": optimizer(),
            },
            "an official VICReg checkpoint; left out: module.projector (2 tensors), epoch, optimizer",
        ),
        "vicreg-backbone": (own, "a bare backbone, as VICReg, VICRegL and Barlow Twins release theirs."),
        "vicregl": (
            {
                "epoch": 4,
                "model": {
                    **under("module.backbone.", own),
                    **head("module.projector."),
                    **head("module.maps_projector."),
                    **head("module.classifier.", "weight"),
                },
                "optimizer": optimizer(),
            },
            "a VICRegL checkpoint; left out: module.projector (2 tensors), module.maps_projector (2 tensors), "
            "module.classifier (1 tensor), epoch, optimizer",
        ),
        "barlow-twins": (
            {
                "epoch": 4,
                "model": {
                    **under("module.backbone.", own),
                    **head("module.projector."),
                    **head("module.bn.", "running_mean"),
                },
                "optimizer": optimizer(),
            },
            "a Barlow Twins checkpoint; left out: module.projector (2 tensors), module.bn (1 tensor)",
        ),
        "solo-learn": (
            {**lightning, "state_dict": solo, "hyper_parameters": {"args": argparse.Namespace(lr=0.3)}},
            "a solo-learn checkpoint; left out: projector (2 tensors), classifier (2 tensors)",
        ),
        "solo-learn-byol": (
            {**lightning, "state_dict": {**under("momentum_backbone.", {n: -v for n, v in own.items()}), **solo}},
            "a solo-learn checkpoint; left out: momentum_backbone",
        ),
        "lightly": (
            {
                **lightning,
                "state_dict": {**under("backbone.", own), **head("projection_head.layers.")},
                "hyper_parameters": {"batch_size_per_device": np.float64(4.0), "path": Path("x")},
            },
            "a lightly checkpoint; left out: projection_head (2 tensors)",
        ),
        "lightly-example": (
            {**lightning, "state_dict": {**under("backbone.", numbered(own)), **head("projection_head.layers.")}},
            "a lightly checkpoint; left out: projection_head (2 tensors)",
        ),
        "moco": (
            {
                "epoch": 200,
                "arch": "resnet50",
                "state_dict": {
                    **under("module.encoder_q.", {**own, **head("fc.")}),
                    **under("module.encoder_k.", {n: -v for n, v in own.items()}),
                    "module.queue": torch.ones(2, 4),
                },
            },
            "a MoCo checkpoint; left out: module.encoder_q.fc (2 tensors), module.encoder_k",
        ),
        "simsiam": (
            {"state_dict": {**under("module.encoder.", {**own, **head("fc.")}), **head("module.predictor.")}},
            "a SimSiam checkpoint; left out: module.encoder.fc (2 tensors), module.predictor (2 tensors)",
        ),
        "swav": (
            {**under("module.", own), **head("module.projection_head."), "module.prototypes.weight": torch.ones(3, 2)},
            "SwAV's released weights; left out: module.projection_head (2 tensors), module.prototypes (1 tensor)",
        ),
        "dino": (
            {
                "student": {**under("module.backbone.", {n: -v for n, v in own.items()}), **head("module.head.")},
                "teacher": {**under("backbone.", own), **head("head.")},
                "args": argparse.Namespace(arch="resnet50"),
            },
            "a DINO checkpoint's teacher; left out: head (2 tensors), student, args",
        ),
        "torchvision": ({**own, **head("fc.", "weight", "bias")}, "a classifier of torchvision or timm; left out: fc"),
        "data-parallel": (under("module.", own), "a network under module."),
    }


def write(content: Any, path: Path, *, old: bool = False) -> Path:
    """By ``torch.save``, in the format of before 1.6 where asked for; safetensors by the name's ending."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path
