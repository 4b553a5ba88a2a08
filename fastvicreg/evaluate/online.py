"""The kNN accuracy of the encoder while it trains, and how many dimensions its features use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Source
from fastvicreg.evaluate.features import extract
from fastvicreg.evaluate.knn import accuracy, knn_predict
from fastvicreg.metrics import rank_me
from fastvicreg.pipelines.sources.subset import spread

if TYPE_CHECKING:
    from fastvicreg.assemble import Run

NEIGHBOURS = 20


@dataclass(frozen=True)
class OnlineKNN:
    """Bank and queries are fixed when the run starts."""

    bank: Source
    queries: Source
    image_size: int
    device: str
    workers: int

    @classmethod
    def build(cls, run: Run, config: TrainConfig) -> OnlineKNN | None:
        """None where there is no validation split or no class to predict."""
        validation = run.data.validation
        if validation is None or len(run.data.train.classes) < 2:
            return None
        bank = spread(run.data.train, config.run.knn_bank)
        return cls(bank, validation, config.data.image_size, run.device, config.data.workers)

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """``knn`` in percent (20 neighbours, temperature .07) and ``rankme`` of the queries' features."""
        bank, queries = (
            extract(encoder, source, image_size=self.image_size, device=self.device, workers=self.workers)
            for source in (self.bank, self.queries)
        )
        k = min(NEIGHBOURS, len(bank.features_NF))
        predicted_M = knn_predict(bank.features_NF, bank.labels_N, queries.features_NF, k=k)
        return {"knn": accuracy(predicted_M, queries.labels_N), "rankme": rank_me(queries.features_NF)}
