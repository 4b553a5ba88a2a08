"""A finished run's encoder, or features that another program computed, evaluated by one of the protocols."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastvicreg.config import TrainConfig
from fastvicreg.datasets import Datasets, open_data
from fastvicreg.encoders import takes
from fastvicreg.errors import UserError
from fastvicreg.evaluate import scores
from fastvicreg.evaluate.eval_settings import EvalSettings
from fastvicreg.evaluate.features_file import read_features
from fastvicreg.evaluate.labels import obstacle
from fastvicreg.evaluate.matching import labelled
from fastvicreg.evaluate.paired_subject import PairSubject, compares_pairs, open_paired
from fastvicreg.evaluate.protocols import ClassifyingProtocol, MeasuringProtocol, OwnData
from fastvicreg.evaluate.published import published
from fastvicreg.evaluate.robustness import evaluate_sets, open_sets
from fastvicreg.evaluate.subject import Classifier, FeatureSubject, ImageSubject, Ranked, Subject
from fastvicreg.pipelines.formats.keys import ANY, Keys
from fastvicreg.pipelines.passed import notes_of
from fastvicreg.pretrained import TrainedEncoder, load_trained
from fastvicreg.train.device import evaluation_device

Told = Callable[[str], None]


@dataclass(frozen=True)
class Evaluated:
    """Figures of one protocol."""

    rows: list[dict[str, Any]]
    """One a setting, in percent."""
    facts: dict[str, Any]
    """What was evaluated: run, checkpoint, sizes."""
    by_class: list[dict[str, Any]] = field(default_factory=list)
    """Of the row at ``chosen``, which is empty where there are no accuracies."""
    count_CC: Tensor | None = None
    chosen: int = 0
    classes: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    robustness: list[dict[str, Any]] = field(default_factory=list)
    """One a further set of images, by the chosen setting."""


@dataclass(frozen=True)
class Opened:
    """What one protocol or several after another evaluate: its features are computed once."""

    subject: Subject
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
    config: TrainConfig | None = None
    """Of a run."""
    of_protocol: bool = False
    """Whether the data have a layout that the protocol alone reads."""


def open_subject(
    asked: EvalSettings, name: str, protocol: Any, told: Told = lambda _: None, before: Opened | None = None
) -> Opened:
    """What ``asked`` names, or ``before``, opened for another protocol, where this one evaluates the same.

    ``UserError`` where there is nothing of the kind, or its labels give no figure that means something.
    """
    asked.check(name)
    same = before is not None and compares_pairs(protocol, before.config) == isinstance(before.subject, PairSubject)
    if before is not None and same and not before.of_protocol and _own_data(protocol, before.config) is None:
        return before
    return _features_subject(asked) if asked.features is not None else _run_subject(asked, protocol, told)


def evaluate_run(
    asked: EvalSettings, name: str, protocol: Any, told: Told = lambda _: None, opened: Opened | None = None
) -> Evaluated:
    """The figures of ``protocol`` on the validation split, with the training split as the bank; ``told`` shows lines.

    ``opened`` is what ``open_subject`` gave; without it that is called. ``UserError`` as there, and where a setting
    cannot be served.
    """
    opened = opened or open_subject(asked, name, protocol, told)
    subject, notes, config = opened.subject, opened.notes, opened.config
    protocol.check(subject)
    sizes = {"bank": len(subject.bank), "queries": len(subject.queries), "classes": len(subject.classes)}
    facts = opened.facts | sizes
    beside: tuple[str, ...] = ()
    if config is not None:
        found = published(config, name, settings_of(protocol), len(subject.classes))
        beside = tuple(figure.told() for figure in found)
    if isinstance(protocol, MeasuringProtocol):
        if asked.robustness:
            raise UserError(f"--robustness {asked.robustness[0]}: eval {name} classifies nothing; leave it out.")
        rows = protocol.measure(subject, told)
        facts["faults"] = subject.faults
        return Evaluated(rows, facts, published=beside, notes=notes)
    assert isinstance(protocol, ClassifyingProtocol)
    keys = Keys(config.data.image, config.data.label) if config is not None else ANY
    folders = [
        open_sets(folder, subject.classes, to_rgb=_rule(subject, name), keys=keys) for folder in asked.robustness
    ]
    ranked = _ranked(subject, protocol.fit(subject, told))
    evaluated = _scored(subject, [one for _, one in ranked], facts, beside, notes)
    further: list[dict[str, Any]] = []
    if folders:
        classifier, one = ranked[evaluated.chosen]
        further = evaluate_sets(subject.images(name), classifier, one.setting, folders, told)
    facts["faults"] = subject.faults
    return replace(evaluated, robustness=further)


def _rule(subject: Subject, name: str) -> str:
    """How images of more than 8 bits are read; ``UserError`` where there are features alone."""
    return subject.images(f"{name} --robustness").to_rgb


def settings_of(protocol: Any) -> dict[str, Any]:
    """A protocol's settings as they are used, where it says so; else as they were given."""
    return getattr(protocol, "described", None) or dataclasses.asdict(protocol)


def _ranked(subject: Subject, classifiers: list[Classifier]) -> list[tuple[Classifier, Ranked]]:
    found: list[tuple[Classifier, Ranked]] = []
    for classifier in classifiers:
        if classifier.encoder is None:
            features = subject.query_features()
        else:
            images = subject.images("")
            features = images.extracted(classifier.encoder, images.queries)
        found += [(classifier, one) for one in classifier.rank(features.features_NF, subject.allowed_A)]
    return found


def _scored(
    subject: Subject, ranked: list[Ranked], facts: dict[str, Any], beside: tuple[str, ...], notes: tuple[str, ...]
) -> Evaluated:
    answers_M = subject.query_features().labels_N.cpu()  # of the neighbour where one stands for an image
    classes = len(subject.classes)
    choice = classes if subject.allowed_A is None else len(subject.allowed_A)
    tops = [one.top_MK.cpu() for one in ranked]
    rows = [
        {**one.setting, **scores.accuracies(top_MK, answers_M, choice)}
        for one, top_MK in zip(ranked, tops, strict=True)
    ]
    best = max(range(len(rows)), key=lambda place: rows[place]["accuracy"])
    chosen = next((place for place, one in enumerate(ranked) if one.chosen), best)
    count_CC = scores.confusion(tops[chosen][:, 0], answers_M, classes)
    by_class = scores.by_class(count_CC, subject.classes)
    return Evaluated(rows, facts, by_class, count_CC, chosen, subject.classes, beside, notes)


def _features_subject(asked: EvalSettings) -> Opened:
    assert asked.features is not None
    of_runs: dict[str, object] = {"--data": asked.data, "--val-data": asked.val_data, "--checkpoint": asked.checkpoint}
    of_runs |= {"--val-labels": asked.val_labels, "--fault-count": asked.fault_count}
    of_runs["--fault-share"] = asked.fault_share
    of_runs["--encoder"] = None if asked.encoder == "a" else asked.encoder
    for flag, value in {**of_runs, "--arch": asked.arch, "--stem": asked.stem}.items():
        if value is not None:
            raise UserError(f"{flag} {value} goes with a run: --features needs none of it; leave it out.")
    bank, queries = read_features(asked.features)
    where = f"--features {asked.features}"
    if reason := obstacle(bank, queries, bank_where=f"{where}: train", queries_where=f"{where}: val"):
        raise UserError(f"no accuracy: {reason}")
    subject = FeatureSubject(bank, queries, device=evaluation_device(asked.device))
    return Opened(subject, {"features": asked.features})


def _run_subject(asked: EvalSettings, protocol: Any, told: Told) -> Opened:
    assert asked.run is not None
    trained = load_trained(asked.run, asked.checkpoint, encoder=asked.encoder, arch=asked.arch, stem=asked.stem)
    if trained.run is None and asked.data is None:
        raise UserError(f"{trained.checkpoint} does not say which images it was trained on: give --data FOLDER.")
    config = trained.config
    if asked.data is not None:
        config = replace(config, data=replace(config.data, data=asked.data, val_data=None, val_labels=None))
    if asked.val_data is not None:
        config = replace(config, data=replace(config.data, val_data=asked.val_data, val_labels=None))
    if asked.val_labels is not None:
        config = replace(config, data=replace(config.data, val_labels=asked.val_labels))
    given = {name: getattr(asked, name) for name in ("image", "label", "fault_count", "fault_share")}
    given = {name: value for name, value in given.items() if value is not None}
    config = replace(config, data=replace(config.data, **given))
    if config.pair.pair or takes(config.encoder) != "images":
        if asked.robustness:
            raise UserError(f"--robustness {asked.robustness[0]}: {asked.run} is of pairs; leave it out.")
        if asked.val_labels:
            raise UserError(f"--val-labels {asked.val_labels}: {asked.run} is of pairs; leave it out.")
        subject, data = open_paired(trained, config, asked, protocol, told)
        return Opened(subject, _facts(asked, trained, data), _passed_over(trained), config)
    own = _own_data(protocol, config)
    if own is not None and asked.val_labels:
        raise UserError(f"--val-labels {asked.val_labels}: this protocol's layout has labels of its own; leave it out.")
    found = open_data(config) if own is None else own
    data, allowed_A = (own, None) if own is not None else labelled(found)
    for line in trained.notes:
        told(line)  # what was recognised in a file, before it is worked with
    notes = _passed_over(trained)
    if config.data.val_labels and own is None:
        notes += notes_of(found.validation)  # above all, which labels the file replaces
    if allowed_A is not None:
        notes += (
            f"{data.validation_where} has {len(allowed_A):,} of the {len(data.train.classes):,} classes: only these "
            "come into question",
        )
    subject = ImageSubject.of_run(trained, data, config, allowed_A, asked, told)
    return Opened(subject, _facts(asked, trained, data), notes, config, of_protocol=own is not None)


def _passed_over(trained: TrainedEncoder) -> tuple[str, ...]:
    return (f"{trained.passed_over}: what was evaluated is older.",) if trained.passed_over else ()


def _facts(asked: EvalSettings, trained: TrainedEncoder, data: Datasets) -> dict[str, Any]:
    facts = {"run": asked.run, "checkpoint": str(trained.checkpoint), "data": data.where, "val": data.validation_where}
    facts |= {"val_labels": asked.val_labels} if asked.val_labels else {}
    return facts | ({"encoder": asked.encoder} if asked.encoder != "a" else {})


def _own_data(protocol: Any, config: TrainConfig | None) -> Datasets | None:
    """Both splits in a layout that the protocol alone reads; None where a run's data have none, or there is no run."""
    if config is None or config.data.data is None or not isinstance(protocol, OwnData):
        return None
    return protocol.open_data(config.data.data)
