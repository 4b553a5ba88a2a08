"""Presets against their sources, number by number, and the divergences that each must name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastvicreg.commands.train import options_of, told_of_preset
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.methods import METHODS
from fastvicreg.methods.dino.config import DINOConfig
from fastvicreg.methods.vicregl.config import VICRegLConfig
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.presets import PRESETS, preset
from fastvicreg.study.cifar10.rows import row_config

SOLO = {
    "solo-cifar10": {"expander": (2048, 2048, 2048), "loss_form": "paper", "invariance": 25, "variance": 25},
    "solo-cifar10-byol": {"projector": (4096, 256), "predictor_hidden": (4096,), "momentum": 0.99},
    "solo-cifar10-simsiam": {
        "projector": (2048, 2048, 2048),
        "predictor_hidden": (512,),
        "predictor_constant_lr": True,
    },
    "solo-cifar10-barlow-twins": {"projector": (2048, 2048, 2048), "loss_scale": 0.1, "redundancy": 0.0051},
    "solo-cifar10-simclr": {"projector": (2048, 256), "temperature": 0.2, "batch_norm": False},
    "solo-cifar10-moco": {"projector": (2048, 256), "queue": 32768, "momentum_end": 0.999, "temperature": 0.2},
    "solo-cifar10-wmse": {"projector": (1024, 64), "w_size": 128, "w_iter": 1},
    "solo-cifar10-swav": {
        "projector": (2048, 128),
        "prototypes": 3000,
        "queue": 3840,
        "queue_from_epoch": 50,
        "freeze_prototypes": 390,
    },
}
"""vturrisi/solo-learn, scripts/pretrain/cifar/*.yaml, and the layers in solo/methods/*.py."""

# crop's least share, saturation, jitter of brightness and contrast, hue, blur, solarize of both views
VIEWS = {
    "solo-cifar10": (0.2, 0.2, 0.4, 0.1, 0.0, (0.1, 0.1)),
    "solo-cifar10-byol": (0.08, 0.2, 0.4, 0.1, 0.0, (0.0, 0.2)),
    "solo-cifar10-simsiam": (0.08, 0.4, 0.4, 0.1, 0.5, (0.0, 0.0)),
    "solo-cifar10-barlow-twins": (0.08, 0.2, 0.4, 0.1, 0.0, (0.0, 0.2)),
    "solo-cifar10-simclr": (0.08, 0.8, 0.8, 0.2, 0.5, (0.0, 0.0)),
    "solo-cifar10-moco": (0.08, 0.4, 0.4, 0.1, 0.5, (0.0, 0.0)),
    "solo-cifar10-wmse": (0.2, 0.8, 0.8, 0.2, 0.0, (0.0, 0.0)),
    "solo-cifar10-swav": (0.08, 0.8, 0.8, 0.2, 0.5, (0.0, 0.0)),
}


@pytest.mark.parametrize("name", sorted(SOLO))
def test_solo_learn_s_presets_have_its_method_encoder_and_run(name: str) -> None:
    config = preset(name).config
    assert {key: getattr(config.method, key) for key in SOLO[name]} == SOLO[name]
    assert config.encoder == ResNetConfig("resnet18", stem="3x3p2")
    assert (config.run.epochs, config.run.batch_size, config.run.precision) == (1000, 256, "fp16")
    assert (config.data.image_size, config.optim.warmup_epochs) == (32, 10)
    if config.optim.optimizer == "lars":
        assert (config.optim.lars_form, config.optim.eta) == ("clipped", 0.02)
    else:
        assert config.optim.decay_1d  # exclude_bias_n_norm_wd is false there


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_solo_learn_s_presets_have_its_views(name: str) -> None:
    least, saturation, strength, hue, blur, solarize = VIEWS[name]
    views = named_recipe(preset(name).config.data.recipe).views
    for view in views:
        assert (view.crop_scale, view.flip_p, view.jitter_p, view.grayscale_p) == ((least, 1.0), 0.5, 0.8, 0.2)
        assert (view.saturation, view.brightness, view.contrast, view.hue) == (saturation, strength, strength, hue)
        assert (view.blur_p, view.blur_sigma) == (blur, (0.1, 2.0))
    assert tuple(view.solarize_p for view in views) == solarize


@pytest.mark.parametrize("name", sorted(SOLO))
def test_solo_learn_s_presets_name_what_is_otherwise(name: str) -> None:
    told = " ".join(preset(name).told(preset(name).config))
    for words in (
        "zero_init_residual",
        "cosine at 0",
        "CIFAR-10's mean",
        "online linear classifier",
        "--precision off",
    ):
        assert words in told
    assert ("warm-up at 3e-5" in told) == (name != "solo-cifar10-wmse")  # its yaml starts at 0
    assert "pads by 2" not in told  # the stem is its own
    assert ("have a bias" in told or "has a bias" in told) == (name.endswith(("cifar10", "byol", "barlow-twins")))


@pytest.mark.parametrize(
    ("name", "method", "epochs", "recipe"),
    [
        ("imagenet-1000ep", {"expander": (8192,) * 3, "loss_form": "official"}, 1000, "official"),
        ("imagenet-100ep", {"expander": (8192,) * 3, "loss_form": "official"}, 100, "official"),
        (
            "byol-imagenet-100ep",
            {"projector": (4096, 256), "predictor_hidden": (4096,), "momentum": 0.99},
            100,
            "official",
        ),
        ("simsiam-imagenet-100ep", {"projector": (2048,) * 3, "predictor_hidden": (512,)}, 100, "moco"),
        ("barlow-twins-imagenet-1000ep", {"projector": (8192,) * 3, "lr_scale_1d": 0.024}, 1000, "official"),
        ("simclr-imagenet-100ep", {"projector": (2048, 2048, 128), "temperature": 0.1}, 100, "simclr"),
        ("moco-imagenet-200ep", {"projector": (2048, 128), "queue": 65536, "momentum": 0.999}, 200, "moco"),
        ("swav-imagenet-400ep", {"projector": (2048, 128), "freeze_prototypes": 313}, 400, "simclr"),
        ("swav-imagenet-100ep", {"projector": (2048, 128), "freeze_prototypes": 313, "queue": 0}, 100, "multicrop"),
        (
            "swav-imagenet-200ep",
            {"freeze_prototypes": 5005, "queue": 3840, "queue_from_epoch": 15, "prototypes": 3000},
            200,
            "multicrop",
        ),
    ],
)
def test_imagenet_s_presets_have_the_published_method_and_views(
    name: str, method: dict[str, Any], epochs: int, recipe: str
) -> None:
    config = preset(name).config
    assert {key: getattr(config.method, key) for key in method} == method
    assert (config.run.epochs, config.data.recipe, config.data.image_size) == (epochs, recipe, 224)
    assert config.encoder == ResNetConfig("resnet50")


def test_dino_s_preset_has_the_released_defaults() -> None:
    config = preset("dino-imagenet-100ep").config
    assert config.encoder == ViTConfig("vit_small", patch=16, drop_path=0.1)
    assert config.method == DINOConfig(
        projector=(2048, 2048, 256),
        prototypes=65536,
        temperature=0.1,
        teacher_temperature=0.04,
        center_momentum=0.9,
        momentum=0.996,
        batch_norm=False,
        freeze_prototypes=1281167 // 512,
    )
    optim = config.optim
    assert (optim.optimizer, optim.base_lr, optim.weight_decay, optim.warmup_epochs) == ("adamw", 5e-4, 0.04, 10)
    assert (optim.weight_decay_end, optim.clip, optim.clip_by) == (0.4, 3.0, "parameter")
    assert (config.run.epochs, config.run.batch_size, config.data.recipe) == (100, 512, "dino")


def test_the_transformer_s_preset_has_moco_v3_s_optimizer_for_any_method() -> None:
    """facebookresearch/moco-v3, CONFIG.md: ViT-Small, 1-node (8-GPU), 1024-batch pre-training."""
    config = preset("vit-imagenet-300ep").config
    assert (config.encoder, config.method) == (ViTConfig("vit_small", patch=16), preset("imagenet-100ep").config.method)
    optim = config.optim
    assert (optim.optimizer, optim.base_lr, optim.weight_decay, optim.warmup_epochs) == ("adamw", 1.5e-4, 0.1, 40)
    assert optim.decay_1d  # model.parameters() in one group
    assert (config.run.epochs, config.run.batch_size, config.data.recipe) == (300, 1024, "official")
    told = " ".join(preset("vit-imagenet-300ep").told(config))
    for words in ("MoCo v3's", "heads of 32", "ends at 0", "hinge halved", "blur p 1.0", "eq. 5", "--precision fp16"):
        assert words in told
    assert "0.002 absolute" not in told  # of the paper's LARS
    for method in METHODS:
        settings = options_of(f"--preset vit-imagenet-300ep --data D --method {method}".split()).settings
        settings.check()
        assert (settings.method.name, settings.encoder, settings.optim) == (method, config.encoder, optim)


def test_vicregl_s_preset_has_the_released_resnet_s_settings() -> None:
    config = preset("vicregl-imagenet-300ep").config
    assert config.encoder == ResNetConfig("resnet50")
    assert config.method == VICRegLConfig(
        expander=(8192,) * 3,
        local_projector=(512,) * 3,
        alpha=0.9,
        local_matches=(20,),
        invariance=25.0,
        variance=25.0,
        covariance=1.0,
    )
    optim = config.optim
    assert (optim.optimizer, optim.base_lr, optim.weight_decay, optim.warmup_epochs) == ("lars", 0.2, 1e-6, 10)
    assert (config.run.epochs, config.run.batch_size, config.data.recipe) == (300, 2048, "official")


def test_vicregl_s_other_preset_has_the_released_defaults_and_their_convnext() -> None:
    config = preset("vicregl-convnext-400ep").config
    assert config.encoder == ConvNeXtConfig(
        "convnext_small", patch=4, layer_scale=0.0, final_norm="positions", drop_path=0.1
    )
    assert config.method == VICRegLConfig(
        expander=(8192,) * 3, local_projector=(512,) * 3, alpha=0.75, local_matches=(20, 4), layer_norm=True
    )
    optim = config.optim
    assert (optim.optimizer, optim.base_lr, optim.weight_decay, optim.warmup_epochs) == ("adamw", 7.5e-4, 0.05, 10)
    assert (config.run.epochs, config.run.batch_size, config.data.recipe) == (400, 384, "vicregl")


def test_imagenet_s_presets_name_what_is_otherwise() -> None:
    words = {
        "imagenet-1000ep": ("hinge halved", "blur p 1.0/0.1", "0.002 absolute", "eq. 5", "--precision fp16"),
        "barlow-twins-imagenet-1000ep": ("1/W", "--precision fp16"),
        "simsiam-imagenet-100ep": ("batch 2048", "once an epoch", "ends at 0", "--precision off"),
        "moco-imagenet-200ep": ("shuffled", "zero_init_residual", "once an epoch", "ends at 0", "--precision off"),
        "swav-imagenet-400ep": ("six small crops", "published one at .3", "zero_init_residual", "--precision fp16"),
        "swav-imagenet-200ep": ("all crops of a size together", "zero_init_residual", "--precision fp16"),
        "dino-imagenet-100ep": ("gradient of 0", "--precision fp16"),
        "byol-imagenet-100ep": ("begins as a copy", "ends at 0"),
        "vicregl-imagenet-300ep": ("unflipped", "take 4 of the second", "no maps of a ResNet", "--precision fp16"),
        "vicregl-convnext-400ep": ("unflipped", "4 of the second map", "400 epochs", "--precision fp16"),
        "simclr-imagenet-100ep": ("ends at 0", "three layers"),
    }
    for name, parts in words.items():
        told = " ".join(preset(name).told(preset(name).config))
        assert all(part in told for part in parts), name


def test_every_preset_s_setting_of_a_divergence_is_one_that_there_is() -> None:
    for name in PRESETS:
        made = preset(name)
        for divergence in made.divergences:
            if divergence.setting:
                section, _, field = divergence.setting.partition(".")
                assert hasattr(getattr(made.config, section), field), (name, divergence)


def test_what_of_a_preset_another_part_leaves_behind_is_told() -> None:
    def told(arguments: str) -> str:
        settings = options_of(f"--preset dino-imagenet-100ep --data D {arguments}".split()).settings
        return "; ".join(told_of_preset("dino-imagenet-100ep", settings))

    assert "made for" not in told("--arch vit_tiny")
    assert "made for vit_small; --arch resnet50 has its family's own settings" in told("--arch resnet50")
    both = told("--arch resnet50 --method byol")
    assert "made for dino; of it, --method byol keeps data, encoder and schedule; made for vit_small" in both


def test_the_row_of_four_views_is_a_preset() -> None:
    row, kept = row_config("vicreg-4views", "cpu"), preset("cifar10-cpu-4views")
    assert replace(row, run=replace(row.run, eval_every=kept.config.run.eval_every)) == kept.config
    told = "; ".join(kept.told(kept.config))
    assert "four views" in told
    assert told.count("base learning rate") == 1
