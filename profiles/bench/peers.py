"""What others would run: the pipelines and transforms of a user without this project, written out plainly."""

from __future__ import annotations

import io
import math
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastvicreg.contracts import Source


class PILViews(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """As torchvision's ImageFolder + RandomResizedCrop + RandomHorizontalFlip: PIL, one view at a time."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.open(io.BytesIO(self._source.encoded(index))).convert("RGB")
        return self._view(image), self._view(image)

    def _view(self, image: Image.Image) -> Tensor:
        box = random_resized_crop(*image.size)
        view = image.crop(box).resize((self._size, self._size), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(view))


def random_resized_crop(width: int, height: int, draw: random.Random | None = None) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) by torchvision's RandomResizedCrop.get_params, scale .08-1, ratio 3/4-4/3.

    Drawn by ``draw``, or by the process's own generator.
    """
    chance = draw or random
    for _ in range(10):
        area = width * height * chance.uniform(0.08, 1.0)
        ratio = math.exp(chance.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = chance.randint(0, width - w), chance.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
