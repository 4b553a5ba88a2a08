"""Semi-supervised: all weights trained on a few per cent of the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.evaluate.subject import Classifier, ImageSubject, Subject

RATES = {1: (0.03, 0.08), 10: (0.01, 0.1)}
"""(encoder, classifier) learning rates by per cent of the labels: facebookresearch/vicreg README."""
NEAR = 2.0
"""How far the share of a --split may be from one of ``RATES`` to take its learning rates, as a factor."""


@dataclass(frozen=True)
class Semi:
    """By the encoder, trained together with a linear classifier on 1 % or 10 % of the training images, as the paper."""

    percent: float = 1.0
    """Share of every class's images that is trained on, drawn by --draw."""
    split: str | None = None
    """In place of --percent: a text file of image files, one a line, as SimCLR's imagenet_subsets/1percent.txt."""
    draw: int = 0
    """Seed of the images that are drawn."""
    lr_backbone: float | None = None
    """The encoder's learning rate, whatever --batch-size; not given: the paper's, .03 at 1 % and .01 at 10 %."""
    lr_head: float | None = None
    """The classifier's; not given: .08 at 1 % and .1 at 10 %."""
    epochs: int = 20
    """Passes over the images that are trained on."""
    batch_size: int = 256
    """Images a step."""
    weight_decay: float = 0.0
    """Weight decay of all weights."""

    @property
    def label(self) -> str:
        """What its reports are called."""
        return "semi-split" if self.split else f"semi-{self.percent:g}"

    @property
    def described(self) -> dict[str, Any]:
        """The settings as they are used: a --split has the share that its name says, as SimCLR's 1percent.txt."""
        named = {"1percent": 1.0, "10percent": 10.0}
        percent = self.percent if self.split is None else named.get(Path(self.split).stem)
        return {**asdict(self), "percent": percent}

    def check(self, subject: Subject) -> None:
        """``UserError`` for the first setting that cannot be served."""
        from fastvicreg.evaluate.protocols.common import check_training

        images = subject.images("semi")
        if not 0 < self.percent <= 100:
            raise UserError(f"--percent {self.percent:g}: give more than 0, up to 100.")
        if self.draw < 0:
            raise UserError(f"--draw {self.draw}: give 0 or more.")
        lr_backbone, lr_head = self.rates(self.share(images, self.indices(images)))
        check_training(
            epochs=self.epochs, batch_size=self.batch_size, lr=(lr_head,), weight_decay=self.weight_decay,
            flag="--lr-head",
        )  # fmt: skip
        check_training(epochs=1, batch_size=2, lr=(lr_backbone,), flag="--lr-backbone")

    def indices(self, images: ImageSubject) -> list[int]:
        """The training images, by number; ``UserError`` where a class would have none."""
        from fastvicreg.evaluate.shares import drawn_share, named_in

        if self.split is not None:
            return named_in(self.split, images.bank)
        return drawn_share(images.bank, self.percent, seed=self.draw)

    def share(self, images: ImageSubject, indices: list[int]) -> float:
        """Of all training images, as it was asked for or as a --split turns out."""
        return self.percent / 100 if self.split is None else len(indices) / len(images.bank)

    def rates(self, share: float) -> tuple[float, float]:
        """(encoder, classifier) for that share of the images; ``UserError`` where nobody says one."""
        paper = next((RATES[p] for p in RATES if 1 / NEAR <= 100 * share / p <= NEAR), None)
        given = self.lr_backbone, self.lr_head
        if paper is None and None in given:
            raise UserError(
                f"{100 * share:.3g} % of the labels: the paper has learning rates for 1 % and 10 % alone; give "
                "--lr-backbone and --lr-head."
            )
        backbone, head = (
            mine if mine is not None else own for mine, own in zip(given, paper or (0.0, 0.0), strict=True)
        )
        return backbone, head

    def fit(self, subject: Subject, told: Callable[[str], None]) -> list[Classifier]:
        """See ``evaluate.finetuning.finetune``."""
        from fastvicreg.evaluate.finetuning import finetune
        from fastvicreg.evaluate.supervised import Training

        images = subject.images("semi")
        indices = self.indices(images)
        lr_backbone, lr_head = self.rates(self.share(images, indices))
        told(
            f"{len(indices):,} of {len(images.bank):,} images, learning rates {lr_backbone:g} (encoder) and "
            f"{lr_head:g} (classifier)"
        )
        training = Training(
            epochs=self.epochs,
            head_lrs=(lr_head,),
            body_lr=lr_backbone,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            seed=subject.seed,
        )
        return finetune(images, training, told, indices)
