"""The real FFCV and we read each other's files: its Loader and decoders ours, BetonSource its DatasetWriter's.

FFCV runs in a process of its own: it compiles into it, forks from it, and threading layers are chosen once.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo
from PIL import Image

from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.decode import decode_rgb
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.verify import verify_dataset

WIDTH = HEIGHT = 48
COUNT = 20

READ = """
import sys
import numpy as np
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor

for path in sys.argv[1:]:
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]}
    loader = Loader(path, batch_size=5, num_workers=2, order=OrderOption.SEQUENTIAL, pipelines=pipelines)
    assert loader.reader.num_samples == 20, loader.reader.num_samples
    batches = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in loader]
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    np.savez(path + ".npz", images=images, labels=labels)
"""

WRITE = """
import sys
import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter

given = dict(np.load(sys.argv[1]))  # read now: the writer's processes would share the open file's position

class Dataset:
    def __len__(self):
        return len(given["images"])

    def __getitem__(self, i):
        i = int(i)
        text = np.frombuffer(b"text %d" % i, np.uint8)
        return i / 2, text, given["images"][i], {"i": i}, np.arange(5, dtype=np.int64) + i, int(given["labels"][i])

for mode in ("jpg", "raw", "proportion"):
    options = {"jpeg_quality": 90} | ({"compress_probability": 0.5} if mode == "proportion" else {})
    fields = {
        "weight": FloatField(), "text": BytesField(), "photo": RGBImageField(write_mode=mode, **options),
        "json": JSONField(), "vector": NDArrayField(np.dtype("int64"), (5,)), "label": IntField(),
    }
    DatasetWriter(f"{sys.argv[2]}/{mode}.beton", fields, page_size=1 << 21, num_workers=2).from_indexed_dataset(
        Dataset(), chunksize=3
    )
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed; `fastvicreg doctor` tells how"
)


def run_ffcv(code: str, *arguments: object) -> None:
    """Run ``code`` with FFCV; the OpenMP layer, because with TBB a process that forked never ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "NUMBA_THREADING_LAYER": "omp"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too: DatasetWriter waits forever for one that died
        _, said = process.communicate()
        pytest.fail(f"FFCV did not end: {said[-3000:]}")
    assert process.returncode == 0, said[-3000:]


@pytest.mark.slow
def test_ffcvs_loader_reads_what_we_wrote(tmp_path: Path) -> None:
    for number in range(COUNT):
        image = photo(number, WIDTH, HEIGHT)
        name, content = f"{number:02d}.jpg", encoded(image, quality=90)
        if number == 1:
            content = encoded(image.convert("L"))
        elif number == 2:
            content = encoded(image, progressive=True)
        elif number == 3:
            name, content = "03.png", encoded(image.convert("RGBA"), "PNG")
        path = tmp_path / "folder" / f"class{number % 3}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    base = Settings(page_size=1 << 21)
    files = {
        "jpg": base,
        "raw": replace(base, raw=True),
        "half": replace(base, proportion=0.5),
        "again": replace(base, max_size=40),  # 48 x 48 becomes 40 x 40: all are encoded again
    }
    for name, settings in files.items():
        convert_dataset(tmp_path / "folder", tmp_path / f"{name}.beton", settings)
    run_ffcv(READ, *(tmp_path / f"{name}.beton" for name in files))
    for name in files:
        source = BetonSource(tmp_path / f"{name}.beton")
        read = np.load(tmp_path / f"{name}.beton.npz")
        assert read["labels"].ravel().tolist() == [source.label(i) for i in range(COUNT)]
        raws = 0
        for i in range(COUNT):
            ours, theirs = decode_rgb(source.encoded(i)).astype(int), read["images"][i].astype(int)
            assert ours.shape == theirs.shape
            difference = np.abs(ours - theirs)
            raws += source.is_raw(i)
            if source.is_raw(i):
                assert not difference.any()
            else:  # FFCV asks libjpeg-turbo for its fast DCT and upsampling
                assert difference.mean() < 1.5, (name, i, difference.mean(), difference.max())
        assert raws == {"jpg": 0, "raw": COUNT, "again": 0}.get(name, raws)
        assert 0 < raws < COUNT or name != "half"


@pytest.mark.slow
def test_we_read_what_ffcvs_writer_wrote(tmp_path: Path) -> None:
    images = np.stack([np.asarray(photo(number, WIDTH, HEIGHT)) for number in range(COUNT)])
    labels = np.arange(COUNT) % 7
    np.savez(tmp_path / "given.npz", images=images, labels=labels)
    run_ffcv(WRITE, tmp_path / "given.npz", tmp_path)
    raws = {}
    for mode in ("jpg", "raw", "proportion"):
        source = BetonSource(tmp_path / f"{mode}.beton")
        assert len(source) == COUNT
        assert [source.label(i) for i in range(COUNT)] == labels.tolist()
        raws[mode] = sum(source.is_raw(i) for i in range(COUNT))
        for i in range(COUNT):
            assert source.size(i) == (WIDTH, HEIGHT)
            pixels = decode_rgb(source.encoded(i))
            if source.is_raw(i):
                assert np.array_equal(pixels, images[i])
            else:
                loss = np.abs(pixels.astype(int) - images[i]).mean()
                own = decode_rgb(encoded(Image.fromarray(images[i]), quality=90))
                assert loss < 1.1 * np.abs(own.astype(int) - images[i]).mean()
        assert verify_dataset(tmp_path / f"{mode}.beton", decode=True).findings == ()
    assert raws["jpg"] == 0
    assert raws["raw"] == COUNT
    assert 0 < raws["proportion"] < COUNT
