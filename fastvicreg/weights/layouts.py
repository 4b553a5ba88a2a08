"""Where programs put an encoder in their checkpoints: one row a layout, found by the names in a file.

A file's network is found by a name that every network of its family has; what stands before it is its prefix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.weights.files import Content

Family = Literal["resnet", "vit", "convnext"]


def _as_it_is(name: str) -> str:
    return name


def _counted(name: str) -> str:
    """Of torchvision's ResNet as ``nn.Sequential(*list(resnet.children())[:-1])``, which lightly's examples train."""
    number, dot, rest = name.partition(".")
    parts = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return parts.get(number, number) + dot + rest


def _released(name: str) -> str:
    """Of facebookresearch/ConvNeXt's network, and VICRegL's, as timm has it."""
    for pattern, ours in (
        (r"downsample_layers\.0\.", "stem."),
        (r"downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"stages\.(\d)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
        (r"stages\.(\d)\.(\d+)\.pwconv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
        (r"stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"norm\.", "head.norm."),
        (r"head\.", "fc."),
    ):
        changed, found = re.subn(f"^{pattern}", ours, name)
        if found:
            return changed
    return name


MARKS: dict[str, tuple[Family, Callable[[str], str]]] = {
    "layer1.0.conv1.weight": ("resnet", _as_it_is),
    "4.0.conv1.weight": ("resnet", _counted),
    "blocks.0.attn.qkv.weight": ("vit", _as_it_is),
    "stages.0.blocks.0.conv_dw.weight": ("convnext", _as_it_is),
    "stages.0.0.dwconv.weight": ("convnext", _released),
}
"""A name that each network has there: to its family, and from its names to ours."""

OWN = {
    "resnet": ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4."),
    "vit": ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm."),
    "convnext": ("stem.", "stages.", "head.norm."),
}
"""Beginnings of an encoder's names; all others belong to heads."""

HEADS = ("fc.", "head.", "head_dist.", "fc_norm.", "pre_logits.", "classifier.", "projection_head.", "prototypes.")
"""Beginnings of names beside a vision transformer's own that change nothing in its features."""

SECONDARY = ("momentum", "teacher", "target", "ema", "encoder_k")
"""Parts of the prefixes of networks that only follow the trained one."""


@dataclass(frozen=True)
class Layout:
    """Where a program keeps its encoder."""

    title: str
    group: str
    """Keys of the dictionary that holds the tensors, joined by dots; "": the file itself is it."""
    prefix: str
    """What an encoder's names begin with there."""
    beside: tuple[str, ...] = ()
    """Beginnings of other names that are all there too, which tell it from others of the same prefix."""
    stem: str = ""
    """Stem that a first convolution of 3x3 means there, where padding and stride are known."""


LAYOUTS = (
    Layout("a VICRegL checkpoint", "model", "module.backbone.", ("module.maps_projector.",)),
    Layout("a VICRegL checkpoint", "model", "module.backbone.", ("module.projector.", "module.classifier.")),
    Layout("a Barlow Twins checkpoint", "model", "module.backbone.", ("module.projector.", "module.bn.")),
    Layout("an official VICReg checkpoint", "model", "module.backbone.", ("module.projector.",)),
    Layout("a solo-learn checkpoint", "state_dict", "backbone.", ("classifier.",), stem="3x3p2"),
    Layout("an old solo-learn checkpoint", "state_dict", "encoder.", ("classifier.",), stem="3x3p2"),
    Layout("a lightly checkpoint", "state_dict", "backbone.", ("projection_head.",)),
    Layout("an OpenMMLab checkpoint", "state_dict", "backbone.", ("neck.",)),
    Layout("a MoCo checkpoint", "state_dict", "module.encoder_q."),
    Layout("a SimSiam checkpoint", "state_dict", "module.encoder.", ("module.predictor.",)),
    Layout("a SwAV checkpoint", "state_dict", "module.", ("module.prototypes.",)),
    Layout("SwAV's released weights", "", "module.", ("module.prototypes.",)),
    Layout("a DINO checkpoint's teacher", "teacher", "backbone.", ("head.",)),
    Layout("a fastvicreg checkpoint", "", "encoder.", ("expander.",)),
    Layout("a fastvicreg checkpoint", "", "encoder.", ("projector.",)),
    Layout("a classifier of torchvision or timm", "", "", ("fc.",)),
    Layout("a classifier of timm", "", "", ("head.weight",)),
    Layout("a classifier of timm", "", "", ("head.fc.",)),
    Layout("a bare backbone, as VICReg, VICRegL and Barlow Twins release theirs", "", ""),
)
"""From the most particular to the most general: the first that fits is taken."""


@dataclass(frozen=True)
class Found:
    """A network in a file."""

    title: str
    """Which layout it was."""
    family: Family
    tensors: dict[str, Tensor]
    """Under torchvision's names (ResNets) or timm's (vision transformers, ConvNeXts)."""
    left_out: tuple[str, ...]
    """What else was there: beginnings of names with their number of tensors, and keys that are no weights."""
    stem: str
    """Stem of a 3x3 convolution, "" where the layout does not tell."""


@dataclass(frozen=True)
class _Candidate:
    group: str
    prefix: str
    family: Family
    renamed: Callable[[str], str]


def find(content: Content) -> Found:
    """The encoder in a file; ``UserError`` where there is none, or several of which none is known as the first."""
    candidates = list(_candidates(content.groups))
    if not candidates:
        raise UserError(_nothing(content))
    for layout in LAYOUTS:
        for candidate in candidates:
            if (layout.group, layout.prefix) == (candidate.group, candidate.prefix):
                names = content.groups[layout.group]
                if all(any(name.startswith(part) for name in names) for part in layout.beside):
                    return _taken(content, candidate, layout.title, layout.stem)
    trained = [candidate for candidate in candidates if not any(part in candidate.prefix for part in SECONDARY)]
    if len(trained or candidates) > 1:
        places = ", ".join(sorted(_place(candidate) for candidate in trained or candidates))
        raise UserError(f"{content.path} holds several networks, {places}: save the one that is meant by itself.")
    (only,) = trained or candidates
    return _taken(content, only, f"a network under {_place(only)}", "")


def _candidates(groups: Mapping[str, dict[str, Tensor]]) -> Iterator[_Candidate]:
    for group, tensors in groups.items():
        for name in tensors:
            for mark, (family, renamed) in MARKS.items():
                prefix = name[: -len(mark)]
                if name.endswith(mark) and (not prefix or prefix.endswith(".")):
                    yield _Candidate(group, prefix, family, renamed)


def _taken(content: Content, candidate: _Candidate, title: str, stem: str) -> Found:
    own, others = {}, Counter[str]()
    inside = content.groups[candidate.group]
    for name, tensor in inside.items():
        inner = candidate.renamed(name.removeprefix(candidate.prefix))
        ours = name.startswith(candidate.prefix) and inner.startswith(OWN[candidate.family])
        if ours:
            own[inner] = tensor
            continue
        if candidate.family == "vit" and name.startswith(candidate.prefix) and not inner.startswith(HEADS):
            raise UserError(f"{content.path} holds {name}, a part that no vision transformer has here (cf. --arch).")
        shared = candidate.prefix if name.startswith(candidate.prefix) else "module." * name.startswith("module.")
        others[shared + name[len(shared) :].partition(".")[0]] += 1
    left = [f"{name} ({count} tensor{'s' * (count > 1)})" for name, count in others.items()]
    left += [group for group in content.groups if group != candidate.group]
    return Found(title, candidate.family, own, (*left, *content.others), stem)


def _place(candidate: _Candidate) -> str:
    return ".".join(part for part in (candidate.group, candidate.prefix.rstrip(".")) if part) or "the file itself"


def _nothing(content: Content) -> str:
    names = [name for tensors in content.groups.values() for name in tensors]
    begin = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
    return (
        f"{content.path} holds no encoder that is known here, only {begin}: ResNets under torchvision's names "
        f"(layer1.0.conv1.weight), vision transformers (blocks.0.attn.qkv.weight) and ConvNeXts under timm's are."
    )
