"""A method of your own: alignment and uniformity (Wang and Isola 2020, arXiv 2005.10242), trained by fastvicreg.

python examples/own_method.py FOLDER RUN          trains on a folder of images
python examples/own_method.py eval knn RUN        any of fastvicreg's commands, which here know the method
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg import cli
from fastvicreg.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from fastvicreg.contracts import (
    BuildContext,
    Column,
    Encoder,
    Horizon,
    ParamGroup,
    Schedule,
    Spread,
    Terms,
    by_dimension,
)
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.methods import METHODS
from fastvicreg.methods.embeddings import kept_sides
from fastvicreg.methods.heads import expander
from fastvicreg.methods.views import expect_two
from fastvicreg.show.display import Display
from fastvicreg.train.trainer import Trainer


@dataclass(frozen=True)
class AlignmentConfig:
    """Settings; on the command line --width-of-head and --uniformity."""

    name: ClassVar[str] = "alignment"
    width_of_head: int = 64
    uniformity: float = 1.0

    def check(self) -> None:
        """Nothing here can be wrong."""

    def build(self, context: BuildContext) -> Alignment:
        return Alignment(context.build_encoder(), self)


class Alignment(nn.Module):
    """Views of one image lie close together, images spread over the sphere."""

    columns = (Column("alignment", "align"), Column("uniformity", "uniform"))

    def __init__(self, encoder: Encoder, config: AlignmentConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.head = expander(encoder.features, (config.width_of_head, config.width_of_head))
        self.spread = Spread("embedding_std", config.width_of_head**-0.5, "")
        self.sides: dict[str, Tensor] = {}

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"encoder": self.get_submodule("encoder")}

    def schedules(self, horizon: Horizon) -> dict[str, Schedule]:
        return {}

    def embed(self, views: tuple[Tensor, ...]) -> list[Tensor]:
        expect_two(views, "alignment")
        return [F.normalize(self.head(self.encoder(view)), dim=1) for view in views]

    def target(self, views: tuple[Tensor, ...]) -> None:
        return None

    def loss(self, embeddings: Any, targets: None) -> Terms:
        za_BD, zb_BD = embeddings
        self.sides = kept_sides(a=za_BD, b=zb_BD)  # for the collapse watch
        alignment = (za_BD - zb_BD).square().sum(1).mean()
        uniformity = sum(torch.pdist(z_BD).square().mul(-2).exp().mean().log() for z_BD in embeddings) / 2
        parts = {"alignment": alignment, "uniformity": uniformity, "embedding_std": za_BD.std(0).mean()}
        return Terms(alignment + self.config.uniformity * uniformity, {name: p.detach() for name, p in parts.items()})

    def after_update(self, scalars: Any, finite: bool | Tensor) -> None:
        """There is no target network to move."""

    def param_groups(self) -> list[ParamGroup]:
        return [*self.encoder.param_groups(), *by_dimension(self.head)]


METHODS["alignment"] = f"{__name__}:AlignmentConfig"  # so that a saved run finds it again, where this file was imported


def main(arguments: Sequence[str]) -> Path:
    """Train on a folder of images; returns the run's folder."""
    folder, run = map(Path, arguments)
    config = TrainConfig(
        data=DataConfig(data=str(folder), image_size=32, recipe="small"),
        encoder=ResNetConfig(arch="resnet18", width=16, stem="3x3s2"),
        method=AlignmentConfig(),
        optim=OptimConfig(base_lr=2.0, warmup_share=0.1),
        run=RunConfig(epochs=2, batch_size=8, device="cpu"),
    )
    Trainer(config, run, resume=False, display=Display()).train()
    return run


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] in cli.COMMANDS:
        sys.exit(cli.main(sys.argv[1:]) if len(sys.argv) > 1 else __doc__)
    main(sys.argv[1:])
