"""The data that a config names: what is trained on and by which plan, and labelled images for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from xxhash import xxh3_64

from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.contracts import Plan, Source
from fastvicreg.demo import embedded
from fastvicreg.encoders import varied, vocabulary_of
from fastvicreg.errors import UserError
from fastvicreg.methods.settings import branch_of
from fastvicreg.pipelines.decode import JPEG, DecodeError, read_image_header
from fastvicreg.pipelines.fetch import is_remote
from fastvicreg.pipelines.fetch.placed import placed
from fastvicreg.pipelines.pairs.plan import PairPlan
from fastvicreg.pipelines.pairs.source import captions_of, open_pairs, pair_splits
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.pipelines.pairs.vocabulary import Vocabulary
from fastvicreg.pipelines.passed import left_out, notes_of
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.reading import Reading
from fastvicreg.pipelines.recipes import Recipe, named_recipe
from fastvicreg.pipelines.sources import classes_in_words, open_source, require_readable, splits_of
from fastvicreg.pipelines.sources.labelled import label_by_file
from fastvicreg.pipelines.to_rgb import COLOUR
from fastvicreg.show.progress import WalkProgress

LOOKED_AT = 8
"""Samples whose headers are read to tell of images of more than 8 bits."""


@dataclass(frozen=True)
class Datasets:
    """What is trained on, and labelled images for the online kNN where there are some.

    Nothing is added to either while these are in use: ``close`` ends that, as does the last use.
    """

    train: Source
    validation: Source | None
    where: str
    validation_where: str = ""
    notes: tuple[str, ...] = ()  # what was found and taken, a line each, for a person
    embedded: str = ""  # path of the embedded training images, which ``where`` describes
    vocabulary: Vocabulary | None = None  # of a pair with captions
    reading: Reading = field(default_factory=Reading, repr=False, compare=False)  # since before they were opened

    @property
    def train_path(self) -> str:
        """Path or pattern of what is trained on."""
        return self.embedded or self.where

    def close(self) -> None:
        """Let others add to the data."""
        self.reading.close()


def names_digest(source: Source) -> str:
    """XXH3-64 of the samples' names in their order, which is what a run's order of them is of."""
    whole = xxh3_64()
    for index in range(len(source)):
        whole.update(f"{source.name(index)}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def recipe_of(data: DataConfig) -> Recipe:
    """The views that the settings ask for; ``UserError`` where they name no recipe, or one that they do not fit."""
    return named_recipe(data.recipe, small_size=data.small_size, num_views=data.num_views)


def training_plan(config: TrainConfig, samples: int) -> Plan:
    """The run's order, crops and augmentation of ``samples`` images; ``UserError`` where ``config`` names no recipe."""
    data = config.data
    plan = train_plan(
        samples,
        seed=config.run.seed,
        recipe=recipe_of(data),
        image_size=data.training_sizes(),
        epochs=config.run.epochs,
        shuffle=data.shuffle,
    )
    if config.pair.pair:
        return PairPlan(plan, images=any(side.modality == "image" for side in config.pair.parsed()))
    return plan


def open_data(config: TrainConfig, *, vocabulary: Vocabulary | None = None) -> Datasets:
    """The sources that ``config`` names, or the embedded images; ``UserError`` where there is nothing to read.

    ``vocabulary`` is a run's; without one that of a pair with text is made from the training captions. Converted data
    are held against additions from before their manifests are read (``Datasets.reading``).
    """
    reading = Reading()
    try:
        return _open_pairs(config, vocabulary, reading) if config.pair.pair else _open_images(config, reading)
    except BaseException:
        reading.close()
        raise


def _open_images(config: TrainConfig, reading: Reading) -> Datasets:
    data = config.data
    if data.data is None:
        for flag, value in (("--val-data", data.val_data), ("--val-labels", data.val_labels)):
            if value is not None:
                raise UserError(f"{flag} {value} goes with --data: the embedded images have their own.")
        write = {"ffcv": embedded.write_beton_once, "dali": embedded.write_shards_once}
        folder = write.get(data.pipeline, embedded.write_once)()
        names = ("train.beton", "test.beton") if data.pipeline == "ffcv" else ("train", "test")
        reading.hold(*(folder / name for name in names))
        train, validation = (open_source(folder / name) for name in names)
        return Datasets(
            train,
            validation,
            f"the embedded images ({folder})",
            str(folder / names[1]),
            embedded=str(folder / names[0]),
            reading=reading,
        )
    path, where_from = _here(data.data, data)
    splits = splits_of(path)
    notes = [*where_from, *splits.notes]
    root, val_path = splits.train, splits.validation
    reading.hold(root)
    train = open_source(root, to_rgb=data.to_rgb, image=data.image, label=data.label)
    require_readable(train, str(root))
    if data.val_data:
        path, where_from = _here(data.val_data, data)
        given = splits_of(path)
        notes += [*where_from, *given.notes]
        val_path = given.validation or given.train
    validation = None
    if val_path:
        reading.hold(val_path)
        validation = open_source(val_path, to_rgb=data.to_rgb, image=data.image, label=data.label)
    if data.val_labels:
        if validation is None:
            raise UserError(f"--val-labels {data.val_labels}: there are no validation images; give --val-data too.")
        validation = label_by_file(validation, data.val_labels, train.classes)
    where = str(val_path) if val_path else ""
    for source in (train, validation):
        notes += [*notes_of(source), *left_out(source)]
    notes += [taken(train, validation), *_deep(train, data.to_rgb)]
    return Datasets(train, validation, str(root), where, tuple(notes), reading=reading)


def _open_pairs(config: TrainConfig, vocabulary: Vocabulary | None, reading: Reading) -> Datasets:
    """Both splits as sources of pairs, whose captions' words have the same numbers."""
    data, pair = config.data, config.pair
    assert data.data is not None
    here, notes = _here(data.data, data)
    train_path, val_path = pair_splits(here)
    if data.val_data:
        here, more = _here(data.val_data, data)
        given, below = pair_splits(here)
        val_path, notes = below or given, (*notes, *more)
    reading.hold(train_path)
    train = open_pairs(train_path, pair, to_rgb=data.to_rgb, label=data.label)
    if train.images is not None:
        require_readable(train.images, str(train_path))
    notes = [*notes, *notes_of(train), *left_out(train)]
    texts = [member.modality for member in train.members if isinstance(member.modality, Text)]
    if texts:
        if vocabulary is None:
            branch = varied(config.encoder, words) if (words := branch_of(config.method)) else config.encoder
            sizes = [vocabulary_of(one) for one in (config.encoder, branch)]
            vocabulary = Vocabulary.of(captions_of(train), min(size for size in sizes if size))
            if not vocabulary.words:
                raise UserError(f"no word in any caption of {train_path}: give captions as UTF-8 text, one a line.")
            notes.append(f"{len(vocabulary.words):,} words in the training captions are told apart")
        for text in texts:
            text.vocabulary = vocabulary
    validation = None
    if val_path:
        modalities = [member.modality for member in train.members]
        reading.hold(val_path)
        validation = open_pairs(val_path, pair, to_rgb=data.to_rgb, label=data.label, modalities=modalities)
        notes += [*notes_of(validation), *left_out(validation)]
    where = str(val_path) if val_path else ""
    noun = " and ".join(side.modality for side in pair.parsed())
    told = [
        f"{name}: {len(one):,} pairs of {noun}, {classes_in_words(len(one.classes))}"
        for name, one in (("train", train), ("val", validation))
        if one is not None
    ]
    notes = (*notes, "; ".join(told))
    return Datasets(train, validation, str(train_path), where, notes, vocabulary=vocabulary, reading=reading)


def _here(path: str, data: DataConfig) -> tuple[str | Path, tuple[str, ...]]:
    """(``path``, or what to open of the remote files that it names; a line on these)."""
    if not is_remote(path):
        return path, ()
    with WalkProgress(f"looking at {path}:", "", unit="files") as progress:
        found = placed(
            path,
            whole=data.pipeline == "ffcv",  # FFCV maps the file itself
            cache_gb=data.remote_cache,
            patience=0.8 * data.stall_timeout,  # it names what does not come before the wait for a batch ends
            told=lambda done, total, size: progress.update(done, total, size, 0),
        )
    return found.path, (found.note,)


def _deep(source: Source, rule: str) -> tuple[str, ...]:
    """A word on images of more than 8 bits, where some of a few samples have them."""
    for index in range(0, len(source), max(1, len(source) // LOOKED_AT)):
        try:
            encoded = source.encoded(index)
            kind = "" if bytes(encoded[:2]) == JPEG else read_image_header(encoded).deep
        except (DecodeError, OSError):
            continue
        if kind == COLOUR:
            return (f"{source.name(index)} has {kind} bits",)
        if kind:
            how = "each from its own smallest value to its largest" if rule == "range" else f"from {rule}"
            return (f"{source.name(index)} is {kind}: such images are scaled to 8 bits, {how} (--to-rgb)",)
    return ()


def taken(train: Source, validation: Source | None) -> str:
    """ "train: 1,281,167 images, 1,000 classes; val: 50,000 images, 1,000 classes"."""
    parts = [f"train: {counted(train)}"] + ([f"val: {counted(validation)}"] if validation is not None else [])
    return "; ".join(parts)


def counted(source: Source) -> str:
    """A source's images and classes in words."""
    return f"{len(source):,} images, {classes_in_words(len(source.classes))}"
