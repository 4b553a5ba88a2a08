"""Which modalities a run pairs, and how each becomes a view. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fastvicreg.errors import UserError
from fastvicreg.registry import unknown

NAMES = ("image", "text", "waveform", "spectrogram")
"""Modalities that --pair knows."""
KINDS = {"image": "images", "spectrogram": "images", "waveform": "waveforms", "text": "text"}
"""What an encoder is given of each modality; a spectrogram is an image to it."""
FFT_SECONDS, HOP_SECONDS = 0.025, 0.010
"""Window and step of a spectrogram, as speech and audio classification have them (Kaldi, AST)."""
MOST_WORDS, MOST_RATE, MOST_SAMPLES = 4096, 384_000, 1 << 24
"""More than any caption, sound card or clip has: what is above is a slip that would take a machine's memory."""


class Side(NamedTuple):
    """One side of --pair: a modality, and what holds it; "" for the modality's usual endings."""

    modality: str
    member: str


@dataclass(frozen=True)
class PairConfig:
    """Two modalities of one sample as the two views: image and caption, sound and spectrum (paper Tables 3 and 6)."""

    pair: tuple[str, ...] = ()
    """Two of image, text, waveform and spectrogram, such as --pair image text; each may say what holds it:
    image=jpg text=caption.txt by their endings, in tar shards or beside each other, or image=photos text=captions by
    two folders of --data."""
    unpaired: Literal["refuse", "skip"] = "refuse"
    """What becomes of samples that lack one of the two: refuse ends the run before it starts, skip leaves them out."""
    words: int = 32
    """Numbers that a caption becomes: its first words, and its beginning and end."""
    sample_rate: int = 22050
    """Samples a second that sounds are brought to."""
    clip_seconds: float = 5.0
    """Length of a waveform's or spectrogram's view; longer sounds are cut anywhere, shorter ones end in silence."""
    mels: int = 128
    """Bands of a spectrogram."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        for flag, value, least in (
            ("--words", self.words, 3),
            ("--sample-rate", self.sample_rate, 1000),
            ("--clip-seconds", self.clip_seconds, 0.1),
            ("--mels", self.mels, 8),
        ):
            if not value >= least:
                raise UserError(f"{flag} {value} is too small: give {least} or more.")
        bands = self.fft_length // 2 + 1
        for flag, value, most in (
            ("--words", self.words, MOST_WORDS),
            ("--sample-rate", self.sample_rate, MOST_RATE),
            ("--clip-seconds", self.clip_seconds, MOST_SAMPLES / self.sample_rate),
            ("--mels", self.mels, bands),
        ):
            if not value <= most:
                raise UserError(f"{flag} {value} is too large: give {most:g} or less.")
        if self.pair:
            self.parsed()

    def check_unused(self) -> None:
        """``UserError`` for a setting of a modality that the pair lacks, which would change nothing."""
        modalities = {side.modality for side in self.parsed()} if self.pair else set()
        given = f"--pair {' '.join(self.pair)} has none" if self.pair else "there is no --pair"
        sounds = ("waveform", "spectrogram")
        for name, users in (
            ("words", ("text",)),
            ("sample_rate", sounds),
            ("clip_seconds", sounds),
            ("mels", ("spectrogram",)),
            ("unpaired", NAMES),
        ):
            if (value := getattr(self, name)) != getattr(PairConfig, name) and not modalities & set(users):
                of = "pairs" if users is NAMES else "sounds" if users is sounds else f"a {users[0]}"
                raise UserError(f"--{name.replace('_', '-')} {value} is of {of}, and {given}: leave it out.")

    def parsed(self) -> tuple[Side, Side]:
        """Both sides; ``UserError`` for what is no pair."""
        given = f"--pair {' '.join(self.pair)}"
        if len(self.pair) != 2:
            raise UserError(f"{given}: give two modalities, such as --pair image text.")
        first, second = (Side(*_split(word)) for word in self.pair)
        for word in (first, second):
            if word.modality not in NAMES:
                raise UserError(f"{given}: {unknown('modality', word.modality, NAMES)}")
        if second.modality == "image":
            both = first.modality == "image"
            way = "one image is enough" if both else f"give the image first, --pair {self.pair[1]} {self.pair[0]}"
            raise UserError(f"{given}: {way}; two images of a sample are not paired." if both else f"{given}: {way}.")
        if first == second:
            raise UserError(f"{given}: both views would be the same; name what holds each, such as text=en text=de.")
        return first, second

    @property
    def clip_samples(self) -> int:
        """Samples of a waveform's view."""
        return round(self.clip_seconds * self.sample_rate)

    @property
    def fft_length(self) -> int:
        """Of a spectrogram's windows, a power of two."""
        return 1 << (max(2, round(FFT_SECONDS * self.sample_rate)) - 1).bit_length()

    @property
    def frames(self) -> int:
        """Columns of a spectrogram's view: windows that lie whole in the clip."""
        window, hop = (round(seconds * self.sample_rate) for seconds in (FFT_SECONDS, HOP_SECONDS))
        return max(1, 1 + (self.clip_samples - window) // hop)

    def shape(self, modality: str) -> tuple[int, ...]:
        """Of one sample's view, as it is fed to an encoder; an image's depends on the run's size and is not here."""
        shapes = {"text": (self.words,), "waveform": (1, self.clip_samples), "spectrogram": (3, self.mels, self.frames)}
        return shapes[modality]


def _split(word: str) -> tuple[str, str]:
    modality, equals, member = word.partition("=")
    if equals and not member:
        raise UserError(f"--pair {word}: name what holds the {modality}, or leave the = out.")
    return modality, member
