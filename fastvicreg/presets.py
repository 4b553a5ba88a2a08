"""Published settings as functions: each returns a whole config and names where it departs from the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastvicreg import method_presets
from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.divergences import FP16, SOLO_LEARN, WARM_START, Divergence, Preset
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.registry import unknown

OFFICIAL_CODE = (
    Divergence(
        "variance hinge halved per branch, as the official code (--loss-form paper: not halved)", "method.loss_form"
    ),
    Divergence(
        "asymmetric views: blur p 1.0/0.1, solarize p 0/.2, as the official code (--recipe paper: .5/.5, .1/.1)",
        "data.recipe",
    ),
    Divergence("learning rate ends at 0.001 x peak, as the official code (paper: 0.002 absolute)"),
    Divergence("invariance is the mean over samples and dimensions, as the official code (paper eq. 5: over samples)"),
    FP16,
)


def imagenet_1000ep() -> Preset:
    """VICReg's main result: paper section 5 and appendix C, official main_vicreg.py."""
    config = TrainConfig(
        optim=OptimConfig(base_lr=0.2), run=RunConfig(epochs=1000, batch_size=2048, eval_every=10, seed=0)
    )
    return Preset("ResNet-50, 1000 epochs (paper: linear 73.2)", config, OFFICIAL_CODE)


def imagenet_100ep() -> Preset:
    """The ablations' setting: base learning rate .3 (official README, paper appendix D)."""
    config = TrainConfig(
        optim=OptimConfig(base_lr=0.3), run=RunConfig(epochs=100, batch_size=2048, eval_every=10, seed=0)
    )
    return Preset("ResNet-50, 100 epochs (paper: linear 68.6)", config, OFFICIAL_CODE)


def imagenet_fast() -> Preset:
    """Half the epochs of the ablations, on crops that grow to their full size in the last quarter."""
    config = TrainConfig(
        data=DataConfig(resolution="128:160:192:224"),
        optim=OptimConfig(base_lr=0.3),
        run=RunConfig(epochs=50, batch_size=2048, eval_every=5, seed=0),
    )
    return Preset(
        "ResNet-50, 50 epochs on growing crops: a third of the arithmetic of 100 at 224 px",
        config,
        (
            Divergence("not published and not run yet: its accuracy is not known", "data.resolution"),
            Divergence(
                "crops grow from 128 to 224 px (paper: 224 throughout), which makes an epoch .64 of the arithmetic",
                "data.resolution",
            ),
            Divergence("50 epochs at the learning rate of 100 (paper: .3 at 100)", "run.epochs"),
            *OFFICIAL_CODE,
        ),
    )


def vit_imagenet() -> Preset:
    """A ViT-S/16 by facebookresearch/moco-v3's optimizer and schedule for one (CONFIG.md, 1 node)."""
    config = TrainConfig(
        encoder=ViTConfig("vit_small"),
        optim=OptimConfig(optimizer="adamw", base_lr=1.5e-4, weight_decay=0.1, decay_1d=True, warmup_epochs=40.0),
        run=RunConfig(epochs=300, batch_size=1024, eval_every=10, seed=0),
    )
    halved, views, _, mean, _ = OFFICIAL_CODE
    return Preset(
        "ViT-S/16, 300 epochs: AdamW and warm-up for any method on a transformer",
        config,
        (
            Divergence(
                "not published and not run yet: the paper has a ViT-S as second branch alone (Table 5) and names no "
                "optimizer for it; this one is MoCo v3's, the loss and the views are the official code's",
                "optim.optimizer",
            ),
            Divergence(
                "patches' convolution and positions are trained, heads are 64 wide, as timm's; MoCo v3 holds both "
                "constant and has heads of 32",
                "encoder.arch",
            ),
            method_presets.ENDS_ABOVE_0,
            halved,
            views,
            mean,
            FP16,
        ),
    )


def cifar10() -> Preset:
    """32 px images on one GPU: a CIFAR stem, no blur, 10 % warm-up."""
    config = TrainConfig(
        data=DataConfig(image_size=32, recipe="small"),
        encoder=ResNetConfig(arch="resnet18", stem="3x3"),
        method=VICRegConfig(expander=(2048, 2048, 2048)),
        optim=OptimConfig(base_lr=0.3, weight_decay=1e-4, eta=0.02, warmup_share=0.1),
        run=RunConfig(epochs=200, batch_size=256, eval_every=5),
    )
    return Preset(
        "ResNet-18 on 32 px images, 200 epochs",
        config,
        (
            Divergence(
                "the paper has no CIFAR setting: weights 25/25/1 and the loss are its own, the rest is this project's"
            ),
            OFFICIAL_CODE[0],
            Divergence("crops of at least .2 of the image, no blur (--recipe small)", "data.recipe"),
            Divergence("warm-up is 10 % of the steps (paper: 10 epochs)", "optim.warmup_share"),
        ),
    )


def cifar10_cpu() -> Preset:
    """Minutes on a CPU core: of some settings tried, what learnt most in 120 CPU-seconds (docs/methods.md)."""
    config = TrainConfig(
        data=DataConfig(image_size=32, recipe="small"),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=VICRegConfig(expander=(512, 512, 512)),
        optim=OptimConfig(base_lr=3.0, weight_decay=1e-6, warmup_share=0.1),
        run=RunConfig(epochs=10, batch_size=256),
    )
    return Preset(
        "a narrow ResNet-18 on 32 px images, about 95 seconds an epoch of CIFAR-10 on one CPU core",
        config,
        (
            Divergence(
                "the paper has no CIFAR setting: weights 25/25/1 and the loss are its own, the rest is this project's"
            ),
            OFFICIAL_CODE[0],
            Divergence("a network of a quarter of ResNet-18's width with a stem of stride 2", "encoder.width"),
            Divergence("expander of 512 (paper: 8192)", "method.expander"),
            Divergence("crops of at least .2 of the image, no blur (--recipe small)", "data.recipe"),
            Divergence("base learning rate 3.0 (paper: .5 at a batch of 256)", "optim.base_lr"),
            Divergence("warm-up is 10 % of the steps (paper: 10 epochs)", "optim.warmup_share"),
        ),
    )


def of_views(config: TrainConfig, views: int) -> TrainConfig:
    """``config`` at an equal cost: ``views`` of each image, 2 / ``views`` of the images, and the same peak rate.

    A step so takes as many views through the network, whose price is all but the whole step's, and a run of as many
    CPU-seconds has as many steps. LARS's steps have a length by the learning rate, whatever the gradient's: the rate
    by the number of images, half for half of them, would move the weights half as far in the same time.
    """
    run, optim = config.run, config.optim
    return replace(
        config,
        data=replace(config.data, num_views=views),
        run=replace(run, batch_size=run.batch_size * 2 // views),
        optim=replace(optim, base_lr=optim.base_lr * views / 2),
    )


def cifar10_cpu_4views() -> Preset:
    """``cifar10_cpu`` with what won of it in as much CPU time: kNN 49.6 beside 47.3 (docs/methods.md)."""
    two = cifar10_cpu()
    return Preset(
        "cifar10-cpu by four views of half the images, at the same cost a step: 2 points more in the same time",
        of_views(two.config, 4),
        (
            *(each for each in two.divergences if each.setting != "optim.base_lr"),
            Divergence("four views an image (paper: 2)", "data.num_views"),
            Divergence("base learning rate 6.0, which is 3.0 at its batch (paper: .5 at 256)", "optim.base_lr"),
        ),
    )


def solo_cifar10() -> Preset:
    """solo-learn's scripts/pretrain/cifar/vicreg.yaml, which reports 92.07 (online linear) on CIFAR-10."""
    config = TrainConfig(
        data=DataConfig(image_size=32, recipe="small"),
        encoder=ResNetConfig(arch="resnet18", stem="3x3p2"),
        method=VICRegConfig(expander=(2048, 2048, 2048), loss_form="paper"),
        optim=OptimConfig(base_lr=0.3, weight_decay=1e-4, eta=0.02, warmup_epochs=10, lars_form="clipped"),
        run=RunConfig(epochs=1000, batch_size=256, precision="fp16", eval_every=10),
    )
    return Preset(
        "solo-learn's VICReg on CIFAR-10: ResNet-18, 1000 epochs (it reports 92.07)",
        config,
        (
            Divergence("solo-learn's expander has a bias in its last layer; this one has none, as the official code"),
            WARM_START,
            *SOLO_LEARN,
        ),
    )


def demo() -> Preset:
    """Minutes on two CPU cores, on the embedded photographs."""
    config = TrainConfig(
        data=DataConfig(image_size=32, recipe="small"),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=VICRegConfig(expander=(512, 512, 512)),
        optim=OptimConfig(base_lr=2.0, weight_decay=1e-6, warmup_share=0.1),
        run=RunConfig(epochs=12, batch_size=128),
    )
    return Preset(
        "a small ResNet-18 on 32 px patches, minutes on two CPU cores",
        config,
        (
            Divergence(
                "made for the demo: narrow network, narrow expander, small batch, no blur; the loss is the official one"
            ),
        ),
    )


PRESETS: dict[str, Callable[[], Preset]] = {
    "imagenet-1000ep": imagenet_1000ep,
    "imagenet-100ep": imagenet_100ep,
    "imagenet-fast": imagenet_fast,
    "vit-imagenet-300ep": vit_imagenet,
    "cifar10": cifar10,
    "cifar10-cpu": cifar10_cpu,
    "cifar10-cpu-4views": cifar10_cpu_4views,
    "solo-cifar10": solo_cifar10,
    "demo": demo,
    **method_presets.PRESETS,
}


def preset(name: str) -> Preset:
    """The preset called ``name``; ``UserError`` with the nearest name where there is none."""
    if name not in PRESETS:
        raise UserError(unknown("preset", name, PRESETS))
    return PRESETS[name]()
