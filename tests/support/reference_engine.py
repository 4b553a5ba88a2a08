"""The engine every other must equal: PIL from file to pixels, one image at a time, one view at a time."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from fastvicreg.contracts import Plan, Source


def reference_crops(source: Source, plan: Plan, epoch: int, index_B: torch.Tensor) -> np.ndarray:
    """crops_BVHWC, where all views are of one size."""
    return np.stack(reference_views(source, plan, epoch, index_B), 1)


def reference_views(source: Source, plan: Plan, epoch: int, index_B: torch.Tensor) -> list[np.ndarray]:
    """view_BHWC of each view: open, convert, crop, resize bicubic, flip."""
    sides = plan.sizes(epoch)
    batch: list[list[np.ndarray]] = [[] for _ in sides]
    for index in index_B.tolist():
        image = Image.open(io.BytesIO(source.encoded(index))).convert("RGB")
        boxes, flips = plan.boxes(epoch, torch.tensor([index]), torch.tensor([image.size]))
        for views, side, box, flip in zip(batch, sides, boxes[0].tolist(), flips[0].tolist(), strict=True):
            x, y, w, h = box
            if plan.support == "crop":
                view = image.crop((int(x), int(y), int(x + w), int(y + h)))
                view = view.resize((side, side), Image.Resampling.BICUBIC)
            else:
                view = whole_then_crop(image, round(side * image.width / w), round(side * image.height / h), box, side)
            views.append(np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view))
    return [np.stack(views) for views in batch]


def whole_then_crop(image: Image.Image, width: int, height: int, box: list[float], side: int) -> Image.Image:
    """Evaluation as torchvision does it: resize the whole image, then cut the centre."""
    left, top = round(box[0] * width / image.width), round(box[1] * height / image.height)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))
