"""Every setting of a run as frozen dataclasses: what the command line overrides, a preset fills in and a run saves.

Encoders, methods and steps bring settings of their own. Importing this file imports no torch: the command line's
help must start at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fastvicreg.agreement import check_agreement
from fastvicreg.encoders import EncoderConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError, at_least
from fastvicreg.kernels.dispatch import parse_choices
from fastvicreg.methods import MethodConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.show.trackers import names_of
from fastvicreg.stalls import LIMIT
from fastvicreg.train.steps import StepConfig
from fastvicreg.train.steps.eager.config import EagerConfig

LARGEST = 65535  # pixels a side that a JPEG may have
RESUMABLE = "resumable"
"""Key of a field's metadata: a resumed run may change it."""


def resumable(default: Any) -> Any:
    """A field that a resumed run may change: where and how fast it computes, not what."""
    return field(default=default, metadata={RESUMABLE: True})


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they become crops."""

    data: str | None = resumable(None)
    """Folder of images (class folders or flat) or of tar shards, or a .beton; a folder may hold train/ and val/ (or
    test/) of these. Or the address of shards or a .beton (s3://, gs://, https://, hf://). Without it: the embedded
    images."""
    val_data: str | None = resumable(None)
    """Labelled images for the online kNN, where --data holds no val/ or test/."""
    val_labels: str | None = resumable(None)
    """Labels of validation images that lie flat: a text, CSV or JSON file of file names and classes."""
    pipeline: str = resumable("native")
    """Engine that decodes and crops: native (any data), ffcv (.beton, FFCV), dali (shards, NVIDIA DALI), synthetic."""
    workers: int = resumable(0)
    """Decoding threads of this process; 0: one a core."""
    prefetch: int = resumable(3)
    """Batches decoded ahead; each takes batch x views x size x size x 3 bytes."""
    decoder: Literal["auto", "cpu", "mixed"] = resumable("auto")
    """Where dali decodes: cpu, mixed (on the GPU), or auto (mixed where --device is CUDA)."""
    hw_decoder_load: float = resumable(0.65)
    """Share of the images that dali's mixed decoder gives to the GPU's JPEG hardware, 0 to 1."""
    shuffle: Literal["full", "blocks"] = "full"
    """full: any order; blocks: reads stay local on slow disks."""
    image_size: int = 224
    """Side of the square views in pixels."""
    resolution: str = ""
    """Sides of the training views over the run, such as 128:192:224, each for an equal share of the epochs; evaluation
    stays at --image-size."""
    recipe: str = "official"
    """Augmentation: official (asymmetric, as the released code), paper (symmetric), small (no blur, 32 px images), moco
    (MoCo v2's and SimSiam's), simclr (strong colour jitter), solo-asymmetric, solo-weak, solo-wmse (solo-learn's for
    CIFAR); for methods that take more views multicrop (two large and six small ones, as SwAV), dino (two and eight) and
    vicregl (two and six)."""
    small_size: int = 0
    """Side of the small views of multicrop, dino and vicregl in pixels; 0: 96."""
    num_views: int = 0
    """Views of each image, 2 to 64: the recipe's own, then these again in turn; more than two for methods that take
    them, such as vicreg. 0: the recipe's."""
    image: str = ""
    """What holds the image where samples have several: a member of tar shards (jpg, input.png), a field of a .beton, a
    column of arrow files."""
    label: str = ""
    """What holds the class, where its name does not tell (cls; label, target, y, class ...): a member of tar shards
    (cls, txt, json:FIELD), a field of a .beton, a column of arrow files. Names get numbers in sorted order."""
    to_rgb: str = "range"
    """Images of more than 8 bits (16-bit, integer, float): range scales each from its own smallest value to its
    largest, LOW:HIGH from these two (0:65535), refuse counts them as faults."""
    stall_timeout: float = resumable(LIMIT)
    """Seconds without an image, an answer of another process or a step's end after which the run ends and says where it
    is stuck; 0: never."""
    remote_cache: float = resumable(50.0)
    """GB of a remote dataset's samples (s3://, gs://, https://, hf://) that stay in the cache folder; 0: none. The rest
    comes again in each epoch."""
    fault_count: int = resumable(10)
    """A run stops when an epoch has replaced more samples than this ..."""
    fault_share: float = resumable(0.01)
    """... and more than this share of those delivered."""

    def training_sizes(self) -> tuple[int, ...]:
        """--resolution's sides, or --image-size alone.

        ``UserError`` where one is no multiple of 32, the stride of a ResNet, or of 8 where --image-size is under 64:
        networks for small images have a smaller one.
        """
        if not self.resolution:
            return (self.image_size,)
        parts = self.resolution.split(":")
        step, example = (8, "16:24:32") if self.image_size < 64 else (32, "128:192:224")
        if not all(part.isdecimal() and int(part) and int(part) % step == 0 for part in parts):
            raise UserError(f"--resolution {self.resolution}: give multiples of {step}, such as {example}.")
        return tuple(map(int, parts))

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        at_least(
            {
                "--image-size": (self.image_size, 8),
                "--small-size": (self.small_size or 8, 8),
                "--num-views": (self.num_views or 2, 2),
                "--prefetch": (self.prefetch, 1),
                "--workers": (self.workers, 0),
                "--stall-timeout": (self.stall_timeout, 0.0),
                "--remote-cache": (self.remote_cache, 0.0),
                "--fault-count": (self.fault_count, 0),
                "--fault-share": (self.fault_share, 0.0),
            }
        )
        self.training_sizes()
        if (side := max(self.image_size, self.small_size)) > LARGEST:
            raise UserError(f"a view's side of {side} is larger than any JPEG: give {LARGEST} or less.")
        if not 0 <= self.hw_decoder_load <= 1:
            raise UserError(f"--hw-decoder-load {self.hw_decoder_load} is no share: give 0 to 1.")
        if self.decoder != "auto" and self.pipeline != "dali":
            raise UserError(f"--decoder {self.decoder} is the dali pipeline's: give --pipeline dali, or leave it out.")


@dataclass(frozen=True)
class OptimConfig:
    """How the weights move."""

    optimizer: Literal["lars", "sgd", "adam", "adamw"] = "lars"
    """LARS as the released code; sgd, adam (L2 in the gradient) and adamw decay no 1-D parameter either."""
    base_lr: float = 0.3
    """Peak learning rate at a total batch of 256; scaled linearly with the batch."""
    weight_decay: float = 1e-6
    """Weight decay of parameters with two or more dimensions."""
    weight_decay_end: float | None = None
    """Where given, weight decay goes from --weight-decay to this by half a cosine over the run (DINO: .04 to .4)."""
    clip: float = 0.0
    """Gradients are scaled down to this norm before the update where theirs is above (DINO: 3); 0: they are not."""
    clip_by: Literal["total", "parameter"] = "total"
    """Whose norm --clip limits: that of all gradients together, or each parameter's own as DINO's released code."""
    decay_1d: bool = False
    """sgd, adam, adamw: decay biases and norms too, as SimSiam's and MoCo's released code."""
    sgd_momentum: float = 0.9
    """Momentum of lars and sgd."""
    eta: float = 0.001
    """LARS trust coefficient."""
    lars_form: Literal["official", "clipped", "tensorflow", "larc"] = "official"
    """official: as VICReg's, BYOL's and Barlow Twins' code; clipped: solo-learn's; tensorflow: SimCLR's; larc: apex's,
    which adapts 1-D parameters too (SwAV)."""
    warmup_epochs: float = 10.0
    """Linear warm-up, in epochs."""
    warmup_share: float = 0.0
    """Where above 0: warm-up as this share of all steps, in place of --warmup-epochs."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        at_least(
            {
                "--weight-decay": (self.weight_decay, 0.0),
                "--clip": (self.clip, 0.0),
                "--warmup-epochs": (self.warmup_epochs, 0.0),
                "--warmup-share": (self.warmup_share, 0.0),
            }
        )
        for name in ("weight_decay", "clip", "warmup_epochs"):
            if not math.isfinite(value := getattr(self, name)):
                raise UserError(f"--{name.replace('_', '-')} {value} cannot train: give a finite value.")
        if self.clip_by != "total" and not self.clip:
            raise UserError(
                f"--clip-by {self.clip_by} has nothing to clip: give --clip a norm above 0, or --clip-by total."
            )
        if self.weight_decay_end is not None:
            given = f"--weight-decay-end {self.weight_decay_end}"
            if not 0 <= self.weight_decay_end < math.inf:
                raise UserError(f"{given} cannot train: give a finite value, 0 or more.")
            if not self.weight_decay:
                raise UserError(f"{given} needs a decay to start from: give --weight-decay above 0.")
        if not 0 <= self.sgd_momentum < 1:
            raise UserError(f"--sgd-momentum {self.sgd_momentum} is no share: give 0 or more, below 1.")
        if self.lars_form != "official" and self.optimizer != "lars":
            raise UserError(f"--lars-form {self.lars_form} is not {self.optimizer}'s: give --lars-form official.")
        if self.decay_1d and self.optimizer == "lars":
            raise UserError("--decay-1d is not lars's: give --no-decay-1d (--lars-form larc decays such parameters).")
        for flag, value in (("--base-lr", self.base_lr), ("--eta", self.eta)):
            if not 0 < value < math.inf:
                raise UserError(f"{flag} {value} cannot train: give a finite value above 0.")
        if self.warmup_share >= 1:
            raise UserError(f"--warmup-share {self.warmup_share} leaves no step after the warm-up: give less than 1.")


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, and what is written."""

    epochs: int = 100
    """Passes over the data."""
    total_steps: int = 0
    """Train so many steps in place of --epochs: all schedules end with the last, in mid-epoch too. 0: --epochs."""
    batch_size: int = 2048
    """TOTAL batch, over all devices."""
    seed: int = 0
    """Fixes order, crops, augmentation and initial weights."""
    device: str = resumable("auto")
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    precision: Literal["auto", "off", "tf32", "bf16", "fp16"] = "auto"
    """bf16 or fp16: autocast; tf32: fp32 whose products are rounded on a GPU; off: fp32. auto is bf16 on CUDA and off
    on the CPU."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """bf16: several processes send each other gradients rounded to bf16, half as many bytes."""
    views: Literal["separate", "joint"] = resumable("joint")
    """joint: all views of one size through the networks as one batch, in which each has statistics of its own;
    separate: one view after another, the same but for rounding."""
    activations: Literal["auto", "keep", "recompute"] = resumable("auto")
    """recompute: outputs of batch norms are computed again in backward and not kept, for a larger batch on a device;
    as forward gave them, to the bit (keep takes torch's norms on a CPU, which round otherwise). auto: where a GPU's
    memory does not hold the batch otherwise, with --recompute-stages of as many stages as it takes."""
    recompute_stages: tuple[int, ...] = resumable(())
    """Stages of --arch, from 1, of which backward computes each block again, so that its input alone is kept: a larger
    batch on a device for about a third more time. The same to the bit on a CPU."""
    kernel: tuple[str, ...] = resumable(())
    """Implementations by part, such as loss=gram lars=reference augment=numba resample=torch."""
    log: tuple[str, ...] = resumable(())
    """Programs that get the metrics beside TensorBoard: wandb, mlflow."""
    log_every: int = resumable(10)
    """Steps between reads of the metrics from the device; every step is still recorded."""
    checkpoint_every: int = resumable(500)
    """Steps between checkpoints; one is also written at each epoch's end and at a stop."""
    keep: int = resumable(2)
    """Checkpoints kept, at least 2."""
    eval_every: int = resumable(1)
    """Epochs between online kNN evaluations; 0: none."""
    knn_bank: int = resumable(50_000)
    """Training images in the kNN bank, spread evenly over the data."""
    probe: Literal["none", "linear"] = "none"
    """linear: a classifier learns from the labels behind a stop-gradient while the run trains, without a forward pass
    of its own; its accuracy is logged, and nothing else changes."""
    probe_lr: float = 0.1
    """The probe's learning rate for a total batch of 256, along the run's schedule."""
    init: str | None = None
    """Begin with the encoder of this run's folder or file of weights (an export, or a checkpoint of VICReg, VICRegL,
    Barlow Twins, solo-learn, lightly, torchvision, timm ...); heads start fresh."""
    steps: int = resumable(0)
    """Stop after this many steps in all; 0: run all epochs."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        names_of(self.log)
        if not 0 < self.probe_lr < float("inf"):
            raise UserError(f"--probe-lr {self.probe_lr} cannot train: give a finite value above 0.")
        at_least(
            {
                "--epochs": (self.epochs, 1),
                "--batch-size": (self.batch_size, 2),
                "--log-every": (self.log_every, 1),
                "--checkpoint-every": (self.checkpoint_every, 1),
                "--keep": (self.keep, 2),
                "--eval-every": (self.eval_every, 0),
                "--knn-bank": (self.knn_bank, 1),
                "--steps": (self.steps, 0),
                "--total-steps": (self.total_steps, 0),
                "--seed": (self.seed, 0),
            }
        )


@dataclass(frozen=True)
class TrainConfig:
    """All of a run's settings."""

    data: DataConfig = field(default_factory=DataConfig)
    pair: PairConfig = field(default_factory=PairConfig)
    encoder: EncoderConfig = field(default_factory=ResNetConfig)
    method: MethodConfig = field(default_factory=VICRegConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    step: StepConfig = field(default_factory=EagerConfig)

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        kernel_choices(self)
        for section in (self.run, self.data, self.pair, self.optim, self.encoder, self.method, self.step):
            section.check()
        check_agreement(self)


def kernel_choices(config: TrainConfig) -> dict[str, str]:
    """``--kernel part=impl ...`` as a mapping; parts not named are "auto"."""
    return parse_choices(config.run.kernel)
