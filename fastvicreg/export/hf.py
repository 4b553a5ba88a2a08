"""A folder as the Hugging Face Hub takes it: model.safetensors, config.json in timm's form, README.md as model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.errors import UserError
from fastvicreg.export import Written
from fastvicreg.export.card import card_of, markdown, texts_of
from fastvicreg.export.timm import name_of, side_of
from fastvicreg.export.writing import draft, features, noise_input, peer, require_close, tensors_of
from fastvicreg.pretrained import TrainedEncoder, load_encoder

ENDS: dict[type[Any], tuple[str, str]] = {
    ViTConfig: ("patch_embed.proj", "head"),
    ConvNeXtConfig: ("stem.0", "head.fc"),
}
"""timm's names of the first convolution and the classifier, where they are not a ResNet's."""


def write(trained: TrainedEncoder, path: Path) -> Written:
    """Write the folder ``path``. ``load_encoder`` takes any; timm takes it where it has such an architecture.

    ``UserError`` where the folder cannot be written.
    """
    card, x_BCHW = card_of(trained), noise_input(trained, side=side_of(trained))
    expected_BF = features(trained.encoder, x_BCHW)
    try:
        name, options = name_of(trained.config.encoder)
    except UserError:
        name, options = "", {}
    ours = f'encoder = fastvicreg.load_encoder("{path}")'
    hub = f'model = timm.create_model("local-dir:{path}", pretrained=True)  # uploaded: "hf-hub:OWNER/NAME"'
    load = f"import timm\n\n{hub}" if name else f"import fastvicreg\n\n{ours}"
    timm, reason = peer("timm")
    with draft(path) as aside:
        aside.mkdir()
        save_file(tensors_of(trained), aside / "model.safetensors", texts_of(trained))
        config = _timm_config(trained, card, name, options) if name else {"fastvicreg": card}
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (aside / "README.md").write_text(markdown(card, title=path.name, load=load, head=_front_matter(card, name)))
        worst = require_close("fastvicreg", path, features(load_encoder(aside), x_BCHW), expected_BF)
        proof = f"read back by fastvicreg.load_encoder, largest difference {worst:.0e}"
        if name and timm is not None:
            model = timm.create_model(f"local-dir:{aside}", pretrained=True)
            worst = require_close("timm", path, features(model, x_BCHW), expected_BF)
            proof = f"loaded by timm {timm.__version__}, largest difference {worst:.0e}"
        elif name:
            proof += f"; timm does not import here ({reason})"
    return Written(proof, hub if name else ours)


def _timm_config(trained: TrainedEncoder, card: dict[str, Any], name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Timm's config.json (timm/models/_hub.py), for features without a classifier."""
    vit, size = isinstance(trained.config.encoder, ViTConfig), side_of(trained)
    first, classifier = ENDS.get(type(trained.config.encoder), ("conv1", "fc"))
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": card["features"],
        "global_pool": "token" if vit else "avg",
        **({"model_args": options} if options else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": vit,
            "interpolation": card["interpolation"],
            "crop_pct": round(card["crop"] / card["resize"], 6),
            "crop_mode": "center",
            "mean": card["mean"],
            "std": card["std"],
            "num_classes": 0,
            "first_conv": first,
            "classifier": classifier,
        },
        "fastvicreg": card,
    }


def _front_matter(card: dict[str, Any], name: str) -> str:
    tags = ["self-supervised-learning", "image-feature-extraction", *([card["method"]] if card.get("method") else [])]
    lines = [
        "---",
        f"library_name: {'timm' if name else 'fastvicreg'}",
        "pipeline_tag: image-feature-extraction",
        "tags:",
    ]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---", "", ""])
