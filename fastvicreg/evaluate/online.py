"""What the encoder is worth while it trains: kNN accuracy, and how many dimensions its features use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Method, Source
from fastvicreg.evaluate.diagnostics import rank_me
from fastvicreg.evaluate.features import Features, extract
from fastvicreg.evaluate.knn import accuracy, knn_predict
from fastvicreg.evaluate.labels import obstacle
from fastvicreg.evaluate.paired import embed_pairs, recalls
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.pairs.source import PairedSource, member_of
from fastvicreg.pipelines.sources.labelled import numbered_as
from fastvicreg.pipelines.sources.subset import SubsetSource, spread
from fastvicreg.train.distributed import Processes, gather, gather_rows, together

if TYPE_CHECKING:
    from fastvicreg.train.assemble import Run
    from fastvicreg.train.online_probe import OnlineProbe

NEIGHBOURS = 20
RANK_SAMPLES = 4096
"""Images that RankMe is taken over: twice the features of a ResNet-50."""


@dataclass(frozen=True)
class OnlineEvaluation:
    """Bank and queries are fixed when the run starts; where labels give no accuracy there is no bank, and no kNN."""

    bank: Source | None
    no_knn: str | None
    """Why there is no kNN."""
    queries: Source
    image_size: int
    device: str
    workers: int
    budget: FaultBudget
    processes: Processes
    method: Method | None = None
    pairs: PairedSource | None = None
    """Of two modalities, between which retrieval is evaluated."""
    precision: str = "off"
    """Of the forward passes: the run's own, since what an epoch's end takes is the run's time."""

    @classmethod
    def build(cls, run: Run, config: TrainConfig) -> OnlineEvaluation:
        """Queries are the validation split, or a spread of the training data where there is none."""
        pairs = run.data.validation if isinstance(run.data.validation, PairedSource) else None
        train, validation = member_of(run.data.train), run.data.validation
        if validation is not None:
            validation = numbered_as(member_of(validation), train.classes)
        bank = spread(train, config.run.knn_bank)
        where = run.data.where if bank is train else f"--knn-bank {len(bank)} of {run.data.where}"
        no_knn = obstacle(bank, validation, bank_where=where, queries_where=run.data.validation_where)
        if pairs is not None and no_knn and not any(train.label(at) >= 0 for at in range(len(train))):
            no_knn = "the pairs have no labels; retrieval between them is evaluated."
        queries = validation if validation is not None else spread(train, RANK_SAMPLES)
        # Imported here: it imports the trainer's parts, which import this file.
        from fastvicreg.train.assemble import fault_budget

        budget = fault_budget(config, run.processes)
        workers = config.data.workers or run.processes.cores
        return cls(
            None if no_knn else bank,
            no_knn,
            queries,
            config.data.image_size,
            run.device,
            workers,
            budget,
            run.processes,
            run.method,
            pairs,
            run.precision,
        )

    def __call__(self, encoder: nn.Module, probe: OnlineProbe | None = None) -> dict[str, float]:
        """``rankme`` of the queries' features and, with labels, ``knn`` in percent (20 neighbours, temperature .07).

        With labels and ``probe`` its accuracy on the queries too; of pairs ``recall_ab`` and ``recall_ba``, how often
        the nearest of the second modality is a sample's own, and the other way round. ``replaced`` counts the samples
        that a neighbour stood for, where there were any.

        ``UserError`` where more samples are faulty than the run's budget allows.
        """
        queries = self._features(encoder, self.queries)
        values, replaced = {}, queries.faults
        if self.bank is not None:
            bank = self._features(encoder, self.bank)
            replaced += bank.faults
            k = min(NEIGHBOURS, len(bank.features_NF))
            predicted_M = knn_predict(bank.features_NF, bank.labels_N, queries.features_NF, k=k)
            values["knn"] = accuracy(predicted_M, queries.labels_N)
            if probe is not None:
                values["probe"] = accuracy(probe.predict(queries.features_NF), queries.labels_N)
        if self.pairs is not None and self.method is not None:
            first, second = embed_pairs(
                self.method,
                self.pairs,
                image_size=self.image_size,
                device=self.device,
                workers=self.workers,
                first=queries,
                precision=self.precision,
            )
            replaced += second.faults
            values["recall_ab"] = recalls(first, second, (1,))["recall@1"]
            values["recall_ba"] = recalls(second, first, (1,))["recall@1"]
        values["rankme"] = rank_me(queries.features_NF[:RANK_SAMPLES])
        return values | ({"replaced": float(replaced)} if replaced else {})

    def _features(self, encoder: nn.Module, source: Source) -> Features:
        return shared_features(
            encoder,
            source,
            image_size=self.image_size,
            device=self.device,
            workers=self.workers,
            processes=self.processes,
            budget=self.budget,
            precision=self.precision,
        )


def shared_features(
    encoder: nn.Module,
    source: Source,
    *,
    image_size: int,
    device: str,
    workers: int,
    processes: Processes,
    budget: FaultBudget | None = None,
    precision: str = "off",
) -> Features:
    """Of every sample, in the source's order, in every process; each computes its share of them."""
    own, total = source, len(source)
    shared = total >= processes.world_size > 1
    if shared:
        own = SubsetSource(source, range(processes.rank, total, processes.world_size))
    reading: dict[str, Any] = {"device": device, "workers": workers, "budget": budget, "precision": precision}
    found = together(lambda: extract(encoder, own, image_size=image_size, **reading), processes)
    if not shared:
        return found
    return Features(
        gather_rows(found.features_NF, total, processes),
        gather_rows(found.labels_N, total, processes),
        sum(gather(found.faults, processes)),
    )
