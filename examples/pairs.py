"""Two modalities of one sample: pictures with captions, and sounds, made here so that the commands can be tried.

    python examples/pairs.py captions DATA      coloured shapes, each with five captions, and what trains on them
    python examples/pairs.py sounds DATA        tones, chirps, clicks and noises in class folders, likewise

The layouts are those that --pair reads of anyone's data: files of one name beside each other, in class folders or flat,
or the members of tar shards. ESC-50 becomes the second one by ``esc50`` below.
"""

from __future__ import annotations

import csv
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 210), "yellow": (220, 200, 40)}
SHAPES = ("circle", "square", "triangle")
GROUNDS = {"dark": (30, 30, 34), "light": (225, 225, 220), "brown": (120, 80, 50)}
PLACES = {"top": 0.3, "middle": 0.5, "bottom": 0.7}  # not left and right, which a flipped picture exchanges
CAPTIONS = (
    "a {colour} {shape} on a {ground} ground",
    "one {shape}, {colour}, at the {place}",
    "the {shape} at the {place} is {colour}",
    "{ground} picture of a {colour} {shape}",
    "there is a {colour} {shape} at the {place} of a {ground} picture",
)
RATE = 8000
SOUNDS = ("tone", "chirp", "clicks", "noise", "trill", "bells")


def picture(generator: np.random.Generator, side: int = 64) -> tuple[Image.Image, list[str]]:
    """A shape of any colour, place and size on noise, and its captions."""
    colour, shape, ground, place = (str(generator.choice(list(names))) for names in (COLOURS, SHAPES, GROUNDS, PLACES))
    x, y = side / 2 + generator.normal(0, 6), PLACES[place] * side + generator.normal(0, 2)
    r = generator.uniform(0.16, 0.26) * side
    image = Image.new("RGB", (side, side), GROUNDS[ground])
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), COLOURS[colour])
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), COLOURS[colour])
    else:
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], COLOURS[colour])
    noisy = np.asarray(image, np.float32) + generator.normal(0, 12, (side, side, 3))
    words = {"colour": colour, "shape": shape, "ground": ground, "place": place}
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), [caption.format(**words) for caption in CAPTIONS]


def sound(kind: str, generator: np.random.Generator, seconds: float = 1.5) -> np.ndarray:
    """int16 (T,): a sound of this kind, of any pitch, loudness and time."""
    time_T = np.arange(round(seconds * RATE)) / RATE
    pitch, rate = generator.uniform(300, 1200), generator.uniform(3, 9)
    beat_T = (time_T * rate) % 1
    if kind == "tone":
        wave_T = np.sin(2 * np.pi * pitch * time_T)
    elif kind == "chirp":
        wave_T = np.sin(2 * np.pi * pitch * (time_T + time_T**2))
    elif kind == "clicks":
        wave_T = (beat_T < 0.02) * generator.normal(0, 3, len(time_T))
    elif kind == "noise":
        wave_T = generator.normal(0, 1, len(time_T))
    elif kind == "trill":
        wave_T = np.sin(2 * np.pi * pitch * (1 + 0.3 * (beat_T > 0.5)) * time_T)
    else:
        wave_T = sum(np.sin(2 * np.pi * pitch * n * time_T) / n for n in (1, 2.76, 5.4)) * np.exp(-4 * beat_T)
    wave_T = wave_T / max(1e-6, float(np.abs(wave_T).max())) + generator.normal(0, 0.03, len(time_T))
    return (generator.uniform(0.2, 0.8) * wave_T.clip(-1, 1) * 32767).astype(np.int16)


def write_captions(folder: Path, train: int = 2000, val: int = 300) -> None:
    """FOLDER/train and FOLDER/val with 000000.jpg beside 000000.txt, a caption a line."""
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(seed)
        for number in range(count):
            image, captions = picture(generator)
            image.save(folder / split / f"{number:06d}.jpg", quality=90)
            (folder / split / f"{number:06d}.txt").write_text("\n".join(captions) + "\n")


def write_sounds(folder: Path, train: int = 100, val: int = 20) -> None:
    """FOLDER/train/CLASS and FOLDER/val/CLASS with that many sounds of each class."""
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        for kind in SOUNDS:
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            generator = np.random.default_rng([seed, SOUNDS.index(kind)])
            for number in range(count):
                with wave.open(str(folder / split / kind / f"{number:04d}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(RATE)
                    file.writeframes(sound(kind, generator).tobytes())


def esc50(downloaded: Path, folder: Path, fold: int = 5) -> None:
    """ESC-50 (audio/ and meta/esc50.csv) as class folders: ``fold`` is val, the other four train (1600 and 400)."""
    with (downloaded / "meta" / "esc50.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            place = folder / ("val" if int(row["fold"]) == fold else "train") / row["category"]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(downloaded / "audio" / row["filename"], place)


COMMANDS = {
    "captions": (
        "fastvicreg train --data {folder} --pair image text --arch resnet18 --width 16 --stem 3x3s2 --image-size 64"
        " --branch-b gru width=128 embedding=64 --expander 256 256 256 --recipe small --optimizer adamw --base-lr 4e-3"
        " --weight-decay 1e-4 --warmup-share .1 --batch-size 128 --epochs 20 --out {folder}/run\n"
        "fastvicreg eval retrieval {folder}/run"
    ),
    "sounds": (
        "fastvicreg train --data {folder} --pair waveform spectrogram --arch resnet18_1d --width 16"
        " --branch-b resnet18 width=16 stem=3x3s2 --sample-rate 8000 --clip-seconds 1 --mels 64"
        " --expander 256 256 256 --optimizer adamw --base-lr 4e-3 --weight-decay 1e-4 --warmup-share .1"
        " --batch-size 64 --epochs 20 --out {folder}/run\n"
        "fastvicreg eval knn {folder}/run --encoder b\n"
        "fastvicreg eval retrieval {folder}/run"
    ),
}


def main() -> None:
    kind, folder = [*sys.argv[1:], "", ""][:2]
    if kind not in COMMANDS or not folder:
        raise SystemExit(__doc__)
    (write_captions if kind == "captions" else write_sounds)(Path(folder))
    print(f"written: {folder}. Next:\n{COMMANDS[kind].format(folder=folder)}")


if __name__ == "__main__":
    main()
