"""Features of your images by a trained encoder: python examples/features_from_a_run.py RUN_OR_FILE IMAGE..."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from fastvicreg import load_encoder


def main(arguments: Sequence[str]) -> Tensor:
    """features_NF of the images, in their order; the first argument is a run's folder or an exported file."""
    encoder = load_encoder(arguments[0])
    images = [encoder.preprocess(Image.open(path)) for path in arguments[1:]]  # type: ignore[operator]
    with torch.no_grad():
        features_NF = encoder(torch.stack(images))
    print(f"{len(features_NF)} images, {features_NF.shape[1]} features each")
    return features_NF


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
