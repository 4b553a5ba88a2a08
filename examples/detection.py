"""Detection and segmentation from a trained encoder: python examples/detection.py RUN_OR_FILE [STEPS].

torchvision's Mask R-CNN with a feature pyramid on the encoder, on a few made images of rectangles and discs. A ResNet
with a 7x7 stem and width 64 is needed, and a torchvision that imports beside torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.pretrained import load_trained

SIDE = 96
CLASSES = ("background", "rectangle", "disc")


def made_scene(number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image (3, SIDE, SIDE) in 0..1 with one rectangle and one disc, and its boxes, labels and masks."""
    draw = torch.Generator().manual_seed(number)
    image_CHW = 0.3 * torch.rand(3, SIDE, SIDE, generator=draw)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    masks, boxes = [], []
    for shape in CLASSES[1:]:
        size = int(torch.randint(20, 40, (), generator=draw))
        top, left = torch.randint(0, SIDE - size, (2,), generator=draw).tolist()
        mask_HW = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
        if shape == "disc":
            radius = (size - 1) / 2
            mask_HW &= (row - top - radius) ** 2 + (column - left - radius) ** 2 <= radius**2
        image_CHW[:, mask_HW] = torch.rand(3, 1, generator=draw)
        masks.append(mask_HW)
        boxes.append([left, top, left + size, top + size])
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor([1, 2]),
        "masks": torch.stack(masks).to(torch.uint8),
    }
    return image_CHW, found


def mask_rcnn(source: str) -> torch.nn.Module:
    """Mask R-CNN on the encoder's weights, all of which go on learning, batch norms too."""
    from torchvision.models.detection import MaskRCNN  # pyright: ignore[reportMissingImports]
    from torchvision.models.detection.backbone_utils import (  # pyright: ignore[reportMissingImports]
        resnet_fpn_backbone,
    )

    trained = load_trained(source)
    config = trained.config.encoder
    if getattr(config, "stem", "") != "7x7" or getattr(config, "width", 0) != 64:
        raise UserError(f"{source} is no ResNet of torchvision's (width 64, 7x7 stem).")
    backbone = resnet_fpn_backbone(
        backbone_name=config.arch, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    backbone.body.load_state_dict(trained.encoder.state_dict())
    return MaskRCNN(backbone, num_classes=len(CLASSES), min_size=SIDE, max_size=SIDE)


def main(arguments: Sequence[str]) -> list[float]:
    """The loss of every step: classes, boxes, masks and proposals together."""
    steps = int(arguments[1]) if len(arguments) > 1 else 8
    torch.manual_seed(0)
    model = mask_rcnn(arguments[0]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    scenes = [made_scene(number) for number in range(4)]
    losses = []
    for step in range(steps):
        parts = model([image_CHW for image_CHW, _ in scenes], [found for _, found in scenes])
        loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(
            f"step {step}  loss {losses[-1]:.3f}  " + "  ".join(f"{name} {value:.3f}" for name, value in parts.items())
        )
    return losses


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
