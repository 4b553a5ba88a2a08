"""What is evaluated: the settings of ``fastvicreg eval`` that its protocols share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastvicreg.errors import UserError, at_least
from fastvicreg.stalls import LIMIT


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Which run or which features, on which images, computed where."""

    run: str | None = None
    """The run's folder, or a file of weights."""
    data: str | None = None
    """Folder with train/ and val/ (or test/); default: the data the run was trained on."""
    val_data: str | None = None
    """Labelled images to classify, where they do not lie in --data as val/ or test/."""
    val_labels: str | None = None
    """Labels of validation images that lie flat, as for train; default: as the run was trained, on its own data."""
    image: str | None = None
    """What holds the image, as for train; default: as the run was trained."""
    label: str | None = None
    """What holds the class (cls, txt, json:FIELD of tar shards; a field of a .beton); default: as in training."""
    robustness: tuple[str, ...] = ()
    """More labelled images for the same classifier, one folder or several: class folders, as ImageNet-R and -A, or
    corruption/severity/class folders, as ImageNet-C."""
    features: str | None = None
    """In place of a run: a .npz or .safetensors of train_features, train_labels, val_features and val_labels."""
    checkpoint: str | None = None
    """Number of steps (500), name (step-00000500) or folder of the checkpoint; default: the newest whole one."""
    encoder: str = "a"
    """a, b or target."""
    arch: str | None = None
    """Architecture that a file of weights must have; default: the one that its shapes tell."""
    stem: str | None = None
    """What a 3x3 stem in a file of weights was, where its layout does not tell: 3x3, 3x3s2 or 3x3p2."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = 0
    """Decoding threads; 0: one a core."""
    fault_count: int | None = None
    """The command ends when more images than this cannot be read, each being replaced by a neighbour ..."""
    fault_share: float | None = None
    """... and more than this share of a split; default of both: as the run was trained."""
    stall_timeout: float = LIMIT
    """Seconds without a batch of images after which the command ends and says where it is stuck; 0: never."""
    cache: bool = True
    """Keep features of frozen encoders on disk, and take them from there."""

    def check(self, protocol: str) -> None:
        """``UserError`` for a value that says nothing, and where there is not one subject to evaluate."""
        if self.workers < 0:
            raise UserError(f"--workers {self.workers}: give 0 for one a core, or more.")
        at_least({"--fault-count": (self.fault_count or 0, 0), "--fault-share": (self.fault_share or 0.0, 0.0)})
        if (self.run is None) == (self.features is None):
            raise UserError(f"give either a run, as fastvicreg eval {protocol} RUN, or --features FILE.")
