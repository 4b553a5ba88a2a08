"""What a protocol evaluates: labelled images through an encoder, or features that another program computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from torch import Tensor, nn

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.evaluate.cache import features_key, load_features, save_features
from fastvicreg.evaluate.features import Features, extract
from fastvicreg.evaluate.features_file import LabelledFeatures
from fastvicreg.evaluate.labels import Labelled
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.stalls import LIMIT, NEVER
from fastvicreg.train.device import evaluation_device

if TYPE_CHECKING:
    from fastvicreg.config import TrainConfig
    from fastvicreg.datasets import Datasets
    from fastvicreg.pretrained import TrainedEncoder


class Ranked(NamedTuple):
    """The classes of every query by one setting of a protocol."""

    setting: dict[str, object]
    """What sets it apart from the protocol's other settings: {"k": 20}."""
    top_MK: Tensor
    """int64, up to 5 classes, best first."""
    chosen: bool = False
    """Whether it is the one that is reported class by class; else the most accurate is."""


@dataclass(frozen=True)
class Classifier:
    """What a protocol learnt."""

    rank: Callable[[Tensor, Tensor | None], list[Ranked]]
    """(features of queries (M, D), classes that come into question or None: all) to one ranking a setting."""
    encoder: nn.Module | None = None
    """The encoder whose features it takes, where the protocol trained one."""


class Reading(Protocol):
    """What of a command's options says how samples are read."""

    @property
    def device(self) -> str: ...
    @property
    def encoder(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def cache(self) -> bool: ...
    @property
    def stall_timeout(self) -> float: ...


class Subject(Protocol):
    """An encoder's features of two labelled splits."""

    seed: int
    allowed_A: Tensor | None
    """The classes that come into question, where the queries have some of the bank's alone."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def bank(self) -> Labelled: ...
    @property
    def queries(self) -> Labelled: ...
    @property
    def faults(self) -> int:
        """Images that a neighbour stood for."""
        ...

    def features(self) -> tuple[Features, Features]:
        """Of bank and queries, on the device."""
        ...

    def query_features(self) -> Features:
        """Of the queries alone."""
        ...

    def images(self, protocol: str) -> ImageSubject:
        """The images and the encoder; ``UserError`` that names ``protocol`` where there are features alone."""
        ...


@dataclass
class FeatureSubject:
    """Features from a file."""

    bank: LabelledFeatures
    queries: LabelledFeatures
    allowed_A: Tensor | None = None
    device: str = "cpu"
    seed: int = 0
    _there: dict[int, Features] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bank.classes

    @property
    def faults(self) -> int:
        return 0

    def features(self) -> tuple[Features, Features]:
        return self._on_device(self.bank), self.query_features()

    def query_features(self) -> Features:
        return self._on_device(self.queries)

    def _on_device(self, split: LabelledFeatures) -> Features:
        """Copied once: ImageNet's are 10 GB, and several are asked for in one evaluation."""
        if id(split) not in self._there:
            held = split.features
            self._there[id(split)] = Features(held.features_NF.to(self.device), held.labels_N.to(self.device))
        return self._there[id(split)]

    def images(self, protocol: str) -> ImageSubject:
        ways = "give a run, or --frozen-features" if protocol == "linear" else "give a run in its place"
        raise UserError(f"{protocol} needs images, and --features holds features alone: {ways}.")


@dataclass
class ImageSubject:
    """Images through a frozen encoder; features are computed once, and kept on disk where ``cached``."""

    encoder: nn.Module
    bank: Source
    queries: Source
    bank_where: str
    queries_where: str
    image_size: int
    allowed_A: Tensor | None = None
    device: str = "cpu"
    workers: int = 0
    to_rgb: str = "range"
    image: str = ""
    """What holds the image where samples have several; "" where none was named."""
    seed: int = 0
    cached: bool = True
    stall: float = LIMIT
    """Seconds that a batch of images is waited for."""
    budget: FaultBudget = field(default_factory=FaultBudget)
    """Images that may be replaced by a neighbour."""
    told: Callable[[str], None] = lambda _: None
    _features: dict[int, Features] = field(default_factory=dict)

    @classmethod
    def of_run(
        cls,
        trained: TrainedEncoder,
        data: Datasets,
        config: TrainConfig,
        allowed_A: Tensor | None,
        asked: Reading,
        told: Callable[[str], None],
    ) -> Self:
        """A run's encoder, on both splits of ``data``."""
        assert data.validation is not None
        device = evaluation_device(asked.device)
        return cls(
            trained.encoder.to(device),
            data.train,
            data.validation,
            data.train_path,
            data.validation_where,
            config.data.image_size,
            allowed_A,
            device,
            asked.workers,
            config.data.to_rgb,
            config.data.image,
            config.run.seed,
            asked.cache,
            asked.stall_timeout or NEVER,
            FaultBudget(config.data.fault_count, config.data.fault_share),
            told,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bank.classes

    @property
    def faults(self) -> int:
        return sum(found.faults for found in self._features.values())

    def features(self) -> tuple[Features, Features]:
        return self.features_of(self.bank, self.bank_where), self.query_features()

    def query_features(self) -> Features:
        return self.features_of(self.queries, self.queries_where)

    def features_of(self, source: Source, where: str) -> Features:
        """By the frozen encoder, of images that lie at ``where``."""
        if id(source) not in self._features:
            self._features[id(source)] = self._load(source, where)
        return self._features[id(source)]

    def extracted(self, encoder: nn.Module, source: Source) -> Features:
        """By another encoder, which is not kept."""
        return extract(encoder, source, **self.reading)

    @property
    def reading(self) -> dict[str, Any]:
        """How images are read, for ``extract`` and ``ImageBatches``."""
        reading = {"image_size": self.image_size, "device": self.device, "workers": self.workers}
        return {**reading, "stall": self.stall, "budget": self.budget}

    def images(self, protocol: str) -> ImageSubject:
        return self

    def _load(self, source: Source, where: str) -> Features:
        if not self.cached:
            return self.extracted(self.encoder, source)
        key = features_key(
            self.encoder, source, where, image_size=self.image_size, device=self.device, image=self.image
        )
        found = load_features(key, self.device)
        if found is not None and len(found.labels_N) == len(source):
            self.told(f"features of {where}: {len(source):,} taken from the cache (--no-cache computes them again)")
            return found
        found = self.extracted(self.encoder, source)
        save_features(key, found)
        return found
