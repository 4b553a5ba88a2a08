"""A run of pairs as a protocol gets it: one member of each with its labels, or both to be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fastvicreg import config_file
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Method
from fastvicreg.datasets import Datasets, open_data
from fastvicreg.encoders import takes
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import Features
from fastvicreg.evaluate.matching import labelled
from fastvicreg.evaluate.paired import embed_pairs, retrieval_rows
from fastvicreg.evaluate.subject import ImageSubject, Reading
from fastvicreg.evaluate.whole import whole_method
from fastvicreg.pipelines.pairs.modalities import modality_of
from fastvicreg.pipelines.pairs.source import MemberSource, PairedSource, member_of
from fastvicreg.pipelines.pairs.vocabulary import Vocabulary
from fastvicreg.pretrained import TrainedEncoder
from fastvicreg.stalls import LIMIT, NEVER
from fastvicreg.train.device import evaluation_device


@dataclass
class PairSubject:
    """A run's validation pairs and its whole network: what retrieval between modalities takes; it needs no labels."""

    method: Method
    source: PairedSource
    pair: tuple[str, str]
    image_size: int
    device: str
    workers: int = 0
    stall: float = LIMIT
    seed: int = 0
    allowed_A: Tensor | None = None
    faults: int = 0
    classes: tuple[str, ...] = ()

    @property
    def bank(self) -> MemberSource:
        return self.source.members[0]

    @property
    def queries(self) -> MemberSource:
        return self.source.members[1]

    def features(self) -> tuple[Features, Features]:
        raise NotImplementedError("pairs are compared by their embeddings")

    def query_features(self) -> Features:
        return self.features()[1]

    def images(self, protocol: str) -> ImageSubject:
        raise UserError(f"{protocol} takes images alone, and this run is of pairs: leave it out.")

    def retrieval(self, ranks: Sequence[int]) -> list[dict[str, Any]]:
        """See ``retrieval_rows``."""
        first, second = embed_pairs(
            self.method,
            self.source,
            image_size=self.image_size,
            device=self.device,
            workers=self.workers,
            stall=self.stall,
        )
        self.faults = first.faults + second.faults
        return retrieval_rows(self.pair, first, second, ranks)


class MemberSubject(ImageSubject):
    """One member of pairs that is no image, through its frozen encoder."""

    def images(self, protocol: str) -> ImageSubject:
        modality = modality_of(self.bank)
        assert modality is not None
        raise UserError(
            f"{protocol} cuts images anew, and this encoder takes a {modality.name}: give eval knn, svm, or linear "
            "--frozen-features, which take its features."
        )


def compares_pairs(protocol: Any, config: TrainConfig | None) -> bool:
    """Whether the protocol compares the two members of a run's pairs with each other."""
    return config is not None and bool(config.pair.pair) and getattr(protocol, "compares_pairs", False)


def open_paired(
    trained: TrainedEncoder,
    config: TrainConfig,
    asked: Reading,
    protocol: Any,
    told: Callable[[str], None],
) -> tuple[PairSubject | ImageSubject, Datasets]:
    """One member of a run's pairs as labelled samples, or both where the protocol compares them; and the data.

    ``UserError`` where there is no run, no validation split, or no labels that give an accuracy.
    """
    if trained.run is None:
        raise UserError(
            f"{trained.checkpoint} takes {takes(config.encoder)}: evaluate the run of pairs that it is from."
        )
    text = any(side.modality == "text" for side in config.pair.parsed())
    # The encoder of the branch asked for stands in ``config``; the data are the run's.
    own = replace(config_file.load(trained.run), data=config.data)
    data = open_data(own, vocabulary=Vocabulary.load(trained.run) if text else None)
    if compares_pairs(protocol, config):
        if asked.encoder != "a":
            raise UserError(f"--encoder {asked.encoder}: retrieval compares both encoders of a pair; leave it out.")
        if not isinstance(data.validation, PairedSource):
            raise UserError(f"{data.where} has no validation pairs beside it: give --val-data.")
        first, second = config.pair.parsed()
        device = evaluation_device(asked.device)
        method = whole_method(trained, device)
        sides = (first.modality, second.modality)
        stall = asked.stall_timeout or NEVER
        size = config.data.image_size
        return PairSubject(method, data.validation, sides, size, device, asked.workers, stall), data
    members = replace(
        data,
        train=member_of(data.train, asked.encoder),
        validation=data.validation and member_of(data.validation, asked.encoder),
    )
    found, allowed_A = labelled(members)
    kind = ImageSubject if modality_of(found.train) is None else MemberSubject
    return kind.of_run(trained, found, config, allowed_A, asked, told), data
