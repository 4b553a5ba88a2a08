"""Published settings of the other methods: ImageNet as their authors, CIFAR-10 as solo-learn; see ``presets``."""

from __future__ import annotations

from collections.abc import Callable

from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.divergences import FP16, FP32, NO_RESIDUAL, SOLO_LEARN, WARM_START, Divergence, Preset
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.methods import MethodConfig
from fastvicreg.methods.barlow_twins.config import BarlowTwinsConfig
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.dino.config import DINOConfig
from fastvicreg.methods.moco.config import MoCoConfig
from fastvicreg.methods.simclr.config import SimCLRConfig
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.swav.config import SwAVConfig
from fastvicreg.methods.vicregl.config import VICRegLConfig
from fastvicreg.methods.wmse.config import WMSEConfig

ENDS_ABOVE_0 = Divergence("learning rate ends at 0.001 x peak; the published cosine ends at 0")
BY_STEP = Divergence("learning rate changes at every step; the published code changes it once an epoch")


def imagenet(
    method: MethodConfig, optim: OptimConfig, *, epochs: int, batch_size: int, recipe: str = "official"
) -> TrainConfig:
    """ResNet-50 on 224 px images."""
    run = RunConfig(epochs=epochs, batch_size=batch_size, eval_every=10, seed=0)
    return TrainConfig(data=DataConfig(recipe=recipe), method=method, optim=optim, run=run)


def byol_imagenet() -> Preset:
    """VICReg's re-implementation for Table 4 (appendix C.4), deepmind-research's networks and schedules."""
    config = imagenet(BYOLConfig(momentum=0.99), OptimConfig(base_lr=0.45), epochs=100, batch_size=4096)
    copied = Divergence("the target network begins as a copy of the online one; deepmind-research draws its own")
    return Preset("BYOL, ResNet-50, 100 epochs (VICReg's Table 4: linear 69.3)", config, (copied, ENDS_ABOVE_0))


def simsiam_imagenet() -> Preset:
    """facebookresearch/simsiam's main_simsiam.py."""
    optim = OptimConfig(optimizer="sgd", base_lr=0.05, weight_decay=1e-4, warmup_epochs=0.0, decay_1d=True)
    config = imagenet(SimSiamConfig(), optim, epochs=100, batch_size=512, recipe="moco")
    table_4 = Divergence(
        "no warm-up, batch 512, as the original; VICReg's Table 4 has 10 epochs of it and batch 2048", "run.batch_size"
    )
    return Preset(
        "SimSiam, ResNet-50, 100 epochs (published: linear 68.1)", config, (table_4, BY_STEP, ENDS_ABOVE_0, FP32)
    )


def barlow_twins_imagenet() -> Preset:
    """facebookresearch/barlowtwins's main.py."""
    config = imagenet(BarlowTwinsConfig(), OptimConfig(base_lr=0.2), epochs=1000, batch_size=2048)
    told = (
        Divergence(
            "on W processes the gradient is one process's; the released code has 1/W of it, which LARS hides for "
            "weights and not for biases and norms"
        ),
        FP16,
    )
    return Preset("Barlow Twins, ResNet-50, 1000 epochs (published: linear 73.5)", config, told)


def simclr_imagenet() -> Preset:
    """google-research/simclr's ImageNet settings."""
    optim = OptimConfig(base_lr=0.3, weight_decay=1e-4, lars_form="tensorflow")
    config = imagenet(SimCLRConfig(loss_form="official"), optim, epochs=100, batch_size=4096, recipe="simclr")
    told = (
        ENDS_ABOVE_0,
        Divergence("a head of three layers, the code's default; its first paper has two", "method.projector"),
    )
    return Preset("SimCLR, ResNet-50, 100 epochs (published: linear 64.5)", config, told)


def moco_imagenet() -> Preset:
    """facebookresearch/moco's main_moco.py with --mlp --moco-t 0.2 --aug-plus --cos."""
    optim = OptimConfig(optimizer="sgd", base_lr=0.03, weight_decay=1e-4, warmup_epochs=0.0, decay_1d=True)
    config = imagenet(MoCoConfig(), optim, epochs=200, batch_size=256, recipe="moco")
    told = (
        Divergence("batch norm is over all processes and keys are not shuffled among them; the original shuffles"),
        NO_RESIDUAL,
        BY_STEP,
        ENDS_ABOVE_0,
        FP32,
    )
    return Preset("MoCo v2, ResNet-50, 200 epochs (published: linear 67.5)", config, told)


SWAV = (
    Divergence(
        "batch norm takes each view's statistics by themselves; the released code those of all crops of a size together"
    ),
    NO_RESIDUAL,
    FP16,
)


def swav_imagenet() -> Preset:
    """facebookresearch/swav's main_swav.py on two crops."""
    optim = OptimConfig(base_lr=0.3, lars_form="larc")
    config = imagenet(SwAVConfig(), optim, epochs=400, batch_size=4096, recipe="simclr")
    told = (
        Divergence("two views of one size; the best published results have six small crops more"),
        Divergence("warm-up starts at 0; the published one at .3"),
        *SWAV,
    )
    return Preset("SwAV, ResNet-50, 400 epochs, two views (published: linear 70.1)", config, told)


def swav_multicrop() -> Preset:
    """facebookresearch/swav's scripts/swav_100ep_pretrain.sh."""
    optim = OptimConfig(base_lr=0.3, lars_form="larc")
    config = imagenet(SwAVConfig(), optim, epochs=100, batch_size=4096, recipe="multicrop")
    told = (Divergence("warm-up starts at 0; the published one at .3"), *SWAV)
    return Preset("SwAV, ResNet-50, 100 epochs, 2 x 224 + 6 x 96 (published: linear 72.1)", config, told)


def swav_small_batch() -> Preset:
    """facebookresearch/swav's scripts/swav_200ep_bs256_pretrain.sh."""
    optim = OptimConfig(base_lr=0.6, lars_form="larc", warmup_epochs=0.0)
    method = SwAVConfig(queue=3840, queue_from_epoch=15, freeze_prototypes=5005)
    config = imagenet(method, optim, epochs=200, batch_size=256, recipe="multicrop")
    summary = "SwAV, ResNet-50, 200 epochs at batch 256, multi-crop, a queue (published: linear 72.7)"
    return Preset(summary, config, SWAV)


def dino_imagenet() -> Preset:
    """facebookresearch/dino's main_dino.py at its defaults on 8 GPUs: its README's "Vanilla DINO training".

    The README's 800-epoch networks have arguments of their own, in an args.txt each.
    """
    config = TrainConfig(
        data=DataConfig(recipe="dino"),
        encoder=ViTConfig("vit_small", drop_path=0.1),
        method=DINOConfig(freeze_prototypes=2502),
        optim=OptimConfig(
            optimizer="adamw", base_lr=5e-4, weight_decay=0.04, weight_decay_end=0.4, clip=3.0, clip_by="parameter"
        ),
        run=RunConfig(epochs=100, batch_size=512, eval_every=10, seed=0),
    )
    told = (
        Divergence(
            "frozen prototypes go through AdamW with a gradient of 0, which decays them and counts their steps; the "
            "released code leaves them out of it",
            "method.freeze_prototypes",
        ),
        FP16,
    )
    return Preset("DINO, ViT-S/16, 100 epochs, 2 x 224 + 8 x 96 (published: kNN 69.3, linear 74.0)", config, told)


FLIPPED = Divergence("positions follow a view's flip; the released code's default leaves them unflipped")


def vicregl_imagenet() -> Preset:
    """facebookresearch/VICRegL's main_vicregl.py as its README runs it for a ResNet-50, at alpha .9."""
    config = imagenet(VICRegLConfig(local_matches=(20,)), OptimConfig(base_lr=0.2), epochs=300, batch_size=2048)
    told = (
        FLIPPED,
        Divergence(
            "20 positions of both views are matched by location; the released defaults take 4 of the second",
            "method.local_matches",
        ),
        Divergence(
            "the local projector's batch norm is over all positions of a view; the released one takes no maps of a "
            "ResNet",
            "method.batch_norm",
        ),
        FP16,
    )
    summary = "VICRegL, ResNet-50, 300 epochs, two views, alpha .9 (published: linear 71.2, linear mIoU on VOC 54.0)"
    return Preset(summary, config, told)


def vicregl_convnext() -> Preset:
    """facebookresearch/VICRegL's main_vicregl.py at its defaults, with its README's batch and rate for a ConvNeXt-S."""
    config = TrainConfig(
        data=DataConfig(recipe="vicregl"),
        encoder=ConvNeXtConfig("convnext_small", layer_scale=0.0, final_norm="positions", drop_path=0.1),
        method=VICRegLConfig(alpha=0.75, layer_norm=True),
        optim=OptimConfig(optimizer="adamw", base_lr=7.5e-4, weight_decay=0.05),
        run=RunConfig(epochs=400, batch_size=384, eval_every=10, seed=0),
    )
    told = (
        FLIPPED,
        Divergence(
            "20 positions of a large crop and 4 of a small one are matched by location; the released code takes 4 of "
            "the second map, whichever it is",
            "method.local_matches",
        ),
        Divergence(
            "400 epochs, as its README for a ConvNeXt-B; its command for a ConvNeXt-S has 100, and no epochs are named "
            "beside its results",
            "run.epochs",
        ),
        FP16,
    )
    summary = "VICRegL, ConvNeXt-S, 2 x 224 + 6 x 96, alpha .75 (published: linear 74.6, linear mIoU on VOC 67.5)"
    return Preset(summary, config, told)


def solo(name: str, reports: float, method: MethodConfig, optim: OptimConfig, *told: Divergence, recipe: str) -> Preset:
    """solo-learn's scripts/pretrain/cifar on CIFAR-10, with its own recipe and stem."""
    config = TrainConfig(
        data=DataConfig(image_size=32, recipe=recipe),
        encoder=ResNetConfig(arch="resnet18", stem="3x3p2"),
        method=method,
        optim=optim,
        run=RunConfig(epochs=1000, batch_size=256, precision="fp16", eval_every=10),
    )
    summary = f"solo-learn's {name} on CIFAR-10: ResNet-18, 1000 epochs (it reports {reports:.2f})"
    return Preset(summary, config, (*told, *SOLO_LEARN))


def clipped(base_lr: float, weight_decay: float) -> OptimConfig:
    """solo-learn's LARS for CIFAR."""
    return OptimConfig(base_lr=base_lr, weight_decay=weight_decay, eta=0.02, warmup_epochs=10, lars_form="clipped")


def solo_byol() -> Preset:
    """byol.yaml."""
    head = Divergence("solo-learn's last linear layers of both heads have a bias; these have none")
    return solo("BYOL", 92.58, BYOLConfig(), clipped(1.0, 1e-5), head, WARM_START, recipe="solo-asymmetric")


def solo_simsiam() -> Preset:
    """simsiam.yaml."""
    optim = OptimConfig(optimizer="sgd", base_lr=0.5, weight_decay=1e-5, decay_1d=True)
    return solo("SimSiam", 90.51, SimSiamConfig(), optim, WARM_START, recipe="solo-weak")


def solo_barlow_twins() -> Preset:
    """barlow.yaml."""
    method = BarlowTwinsConfig(projector=(2048, 2048, 2048), loss_scale=0.1, lr_scale_1d=1.0)
    head = Divergence("solo-learn's projector has a bias in every layer; this one has none")
    return solo("Barlow Twins", 92.10, method, clipped(0.3, 1e-4), head, WARM_START, recipe="solo-asymmetric")


def solo_simclr() -> Preset:
    """simclr.yaml."""
    method = SimCLRConfig(projector=(2048, 256), temperature=0.2, batch_norm=False)
    return solo("SimCLR", 90.74, method, clipped(0.4, 1e-4), WARM_START, recipe="simclr")


def solo_moco() -> Preset:
    """mocov2plus.yaml."""
    method = MoCoConfig(projector=(2048, 256), queue=32768, momentum=0.99, momentum_end=0.999, symmetric=True)
    optim = OptimConfig(optimizer="sgd", base_lr=0.3, weight_decay=1e-4, decay_1d=True)
    return solo("MoCo V2+", 92.94, method, optim, WARM_START, recipe="solo-weak")


def solo_wmse() -> Preset:
    """wmse.yaml."""
    detached = Divergence("gradients flow into both views, as its authors' code; solo-learn detaches the second")
    optim = OptimConfig(optimizer="adam", base_lr=2e-3, weight_decay=1e-6, decay_1d=True)
    return solo("W-MSE", 88.67, WMSEConfig(), optim, detached, recipe="solo-wmse")


def solo_swav() -> Preset:
    """swav.yaml."""
    queue = Divergence(
        "the queue fills from epoch 50 on, in 15 steps; solo-learn fills it from the start and uses it from there",
        "method.queue",
    )
    frozen = Divergence("prototypes are frozen for 390 updates: 2 epochs of CIFAR-10 alone", "method.freeze_prototypes")
    method = SwAVConfig(freeze_prototypes=390, queue=3840, queue_from_epoch=50)
    return solo("SwAV", 89.17, method, clipped(0.6, 1e-6), queue, frozen, WARM_START, recipe="simclr")


PRESETS: dict[str, Callable[[], Preset]] = {
    "byol-imagenet-100ep": byol_imagenet,
    "simsiam-imagenet-100ep": simsiam_imagenet,
    "barlow-twins-imagenet-1000ep": barlow_twins_imagenet,
    "simclr-imagenet-100ep": simclr_imagenet,
    "moco-imagenet-200ep": moco_imagenet,
    "swav-imagenet-400ep": swav_imagenet,
    "swav-imagenet-100ep": swav_multicrop,
    "swav-imagenet-200ep": swav_small_batch,
    "dino-imagenet-100ep": dino_imagenet,
    "vicregl-imagenet-300ep": vicregl_imagenet,
    "vicregl-convnext-400ep": vicregl_convnext,
    "solo-cifar10-byol": solo_byol,
    "solo-cifar10-simsiam": solo_simsiam,
    "solo-cifar10-barlow-twins": solo_barlow_twins,
    "solo-cifar10-simclr": solo_simclr,
    "solo-cifar10-moco": solo_moco,
    "solo-cifar10-wmse": solo_wmse,
    "solo-cifar10-swav": solo_swav,
}
