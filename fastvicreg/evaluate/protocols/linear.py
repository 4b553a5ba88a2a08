"""A linear classifier of a frozen encoder: the paper's protocol, or minutes on features that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fastvicreg.errors import UserError
from fastvicreg.evaluate.labels import too_few

if TYPE_CHECKING:
    from torch import Tensor

    from fastvicreg.evaluate.features import Features
    from fastvicreg.evaluate.subject import Classifier, Ranked, Subject
    from fastvicreg.evaluate.supervised import Trained, Training


class Published(NamedTuple):
    """How a data set's linear classifiers are trained in the paper."""

    lr: float
    weight_decay: float
    epochs: int
    milestones: tuple[int, ...]
    head: Literal["linear", "bn-linear"]


PRESETS = {
    "imagenet": Published(0.02, 1e-6, 100, (), "linear"),  # section 5, official evaluate.py and README
    "places205": Published(0.003, 1e-4, 28, (4, 8, 12), "bn-linear"),  # appendix C.3; the head is vissl's
    "inat18": Published(0.005, 1e-4, 84, (24, 48, 72), "bn-linear"),
}
AT_ONCE = (0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
"""Learning rates of --solver sgd."""
OF_SGD = ("preset", "lr", "epochs", "batch_size", "weight_decay", "head")
"""Settings that --solver lbfgs has no use for."""


@dataclass(frozen=True)
class Linear:
    """By a linear classifier of the frozen encoder: SGD on augmented crops as the paper, or --frozen-features."""

    preset: Literal["imagenet", "places205", "inat18"] = "imagenet"
    """Whose published settings the options below take where they are not given."""
    frozen_features: bool = False
    """On features of centre crops, computed once: a quick comparison, not the paper's protocol."""
    solver: Literal["lbfgs", "sgd"] | None = None
    """With --frozen-features: lbfgs (the default), logistic regression to convergence; sgd, the paper's SGD without
    augmentation."""
    labels_per_class: int = 0
    """Labels a class that it may see, with --frozen-features, which this implies; 0: all."""
    lr: tuple[float, ...] = ()
    """Learning rates, whatever --batch-size; several train at once, a classifier each, in one pass over the data."""
    epochs: int | None = None
    """Passes over the training images; not given: the preset's."""
    batch_size: int = 256
    """Images a step."""
    weight_decay: float | None = None
    """Weight decay; not given: the preset's."""
    head: Literal["linear", "bn-linear"] | None = None
    """bn-linear: a batch norm before the classifier, as vissl's, which the paper has for Places205 and iNat18."""

    @property
    def frozen(self) -> bool:
        """Whether features are computed once."""
        return self.frozen_features or self.labels_per_class > 0

    @property
    def label(self) -> str:
        """What its reports are called."""
        frozen = "linear-frozen" if self.by_lbfgs else "linear-frozen-sgd"
        frozen += f"-{self.labels_per_class}-a-class" if self.labels_per_class else ""
        return frozen if self.frozen else "linear"

    @property
    def by_lbfgs(self) -> bool:
        """Whether logistic regression is fitted to convergence."""
        return self.frozen and self.solver != "sgd"

    @property
    def described(self) -> dict[str, Any]:
        """The settings as they are used, the preset's included."""
        common = {"preset": self.preset, "frozen_features": self.frozen, "labels_per_class": self.labels_per_class}
        if self.by_lbfgs:
            return {**common, "solver": "lbfgs"}
        used = self.training(0)
        return {
            **common,
            "solver": "sgd",
            "epochs": used.epochs,
            "batch_size": used.batch_size,
            "weight_decay": used.weight_decay,
            "milestones": used.milestones,
            "head": used.head,
        }

    def check(self, subject: Subject) -> None:
        """``UserError`` for the first setting that the bank cannot serve."""
        from fastvicreg.evaluate.protocols.common import check_training

        if self.labels_per_class < 0:
            raise UserError(f"--labels-per-class {self.labels_per_class}: give 0 for all, or more.")
        if self.labels_per_class and (reason := too_few(subject.bank, self.labels_per_class)):
            raise UserError(f"--labels-per-class {self.labels_per_class}: {reason}")
        if not self.frozen:
            if self.solver is not None:
                raise UserError("--solver goes with --frozen-features: on images SGD is the only one; leave it out.")
            subject.images("linear")
        elif self.by_lbfgs and (given := [f"--{name.replace('_', '-')}" for name in OF_SGD if self._changed(name)]):
            raise UserError(
                f"{', '.join(given)}: logistic regression to convergence has no such setting; give --solver sgd, or "
                "leave out --frozen-features."
            )
        check_training(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=self.weight_decay)

    def _changed(self, name: str) -> bool:
        return getattr(self, name) != getattr(Linear, name)

    def training(self, seed: int) -> Training:
        """The settings, with the preset's where they are not given."""
        from fastvicreg.evaluate.supervised import Training

        base = PRESETS[self.preset]
        epochs = self.epochs or base.epochs
        return Training(
            epochs=epochs,
            head_lrs=self.lr or (AT_ONCE if self.frozen else (base.lr,)),
            weight_decay=base.weight_decay if self.weight_decay is None else self.weight_decay,
            batch_size=self.batch_size,
            milestones=tuple(-(-at * epochs // base.epochs) for at in base.milestones),  # up: none is at the start
            head=self.head or base.head,
            seed=seed,
        )

    def fit(self, subject: Subject, told: Callable[[str], None]) -> list[Classifier]:
        """Train on the bank; the best epoch is chosen by the queries, as the official code does."""
        from fastvicreg.evaluate.linear import few_labels

        bank, queries = subject.features() if self.frozen else (None, subject.query_features())
        if bank is not None and self.labels_per_class:
            chosen = few_labels(bank.labels_N, self.labels_per_class, seed=subject.seed)
            bank = bank._replace(features_NF=bank.features_NF[chosen], labels_N=bank.labels_N[chosen])
        if bank is not None and self.by_lbfgs:
            return _by_lbfgs(bank)
        return _by_sgd(subject, bank, queries, self.training(subject.seed), told)


def _by_lbfgs(bank: Features) -> list[Classifier]:
    from fastvicreg.evaluate.heads import best_classes
    from fastvicreg.evaluate.linear import fit_linear
    from fastvicreg.evaluate.subject import Classifier, Ranked

    fitted = fit_linear(bank.features_NF, bank.labels_N)

    def rank(query_MD: Tensor, allowed_A: Tensor | None) -> list[Ranked]:
        return [Ranked({"solver": "lbfgs"}, best_classes(fitted.scores(query_MD), allowed_A))]

    return [Classifier(rank)]


def _by_sgd(
    subject: Subject, bank: Features | None, queries: Features, training: Training, told: Callable[[str], None]
) -> list[Classifier]:
    """On the features of ``bank``, or without on the subject's images."""
    from torch import nn

    from fastvicreg.evaluate.protocols.common import epoch_line
    from fastvicreg.evaluate.supervised import ImageBatches, feature_batches, train_heads

    common = {
        "queries": lambda: queries.features_NF,
        "answers_M": queries.labels_N,
        "training": training,
        "features": queries.features_NF.shape[1],
        "classes": len(subject.classes),
        "told": lambda report: told(epoch_line(report, training)),
    }
    if bank is not None:
        trained = train_heads(nn.Identity(), feature_batches(bank.features_NF, bank.labels_N, training), **common)
    else:
        images = subject.images("linear")
        told("crops are resized bicubically, as in training; the official evaluation code resizes bilinearly")
        with ImageBatches(images.bank, training, **images.reading) as batches:
            trained = train_heads(images.encoder, batches, **common)
            batches.tell_faults(told)
    return [_classifier(trained, training)]


def _classifier(trained: Trained, training: Training) -> Classifier:
    """Best and last epoch of every learning rate."""
    from fastvicreg.evaluate.subject import Classifier, Ranked

    def rank(query_MD: Tensor, allowed_A: Tensor | None) -> list[Ranked]:
        ranked = []
        for lr, (epoch, head), last_MK in zip(
            training.head_lrs, trained.best, trained.last.rank(query_MD, allowed_A), strict=True
        ):
            ranked.append(Ranked({"lr": lr, "epoch": epoch, "which": "best"}, head.rank(query_MD, allowed_A)[0]))
            ranked.append(Ranked({"lr": lr, "epoch": training.epochs, "which": "last"}, last_MK))
        return ranked

    return Classifier(rank)
