"""Features on disk are found again where they are the same, and only there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from images import encoded, photo
from safetensors.torch import load_file

from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.evaluate import cache, subject
from fastvicreg.evaluate.cache import features_key, load_features, save_features
from fastvicreg.evaluate.features import Features
from fastvicreg.pipelines import open_source

Answer = Callable[..., tuple[int, str]]


def key(root: Path, encoder: torch.nn.Module, **changed: int) -> str:
    return features_key(encoder, open_source(root), str(root), **{"image_size": 16, "device": "cpu", **changed})  # type: ignore[arg-type]


def test_a_key_is_of_weights_structure_images_and_size(make_folder: Callable[..., Path]) -> None:
    root = make_folder() / "train"
    torch.manual_seed(0)
    encoder = resnet("resnet18", width=16, stem="3x3s2")
    first = key(root, encoder)
    assert first == key(root, encoder)
    found = {first, key(root, encoder, image_size=32)}
    other = resnet("resnet18", width=16, stem="3x3")  # the same tensors, another stride
    other.load_state_dict(encoder.state_dict())
    found.add(key(root, other))
    with torch.no_grad():
        encoder.get_parameter("layer4.1.bn2.bias")[3] += 1e-7
    found.add(key(root, encoder))
    image = sorted(root.rglob("*.jpg"))[0]
    image.write_bytes(encoded(photo(77, 41, 43)))
    found.add(key(root, encoder))
    os.utime(image, ns=(1, 1))
    found.add(key(root, encoder))
    image.rename(image.with_name("renamed.jpg"))
    found.add(key(root, encoder))
    assert len(found) == 7


@pytest.mark.parametrize("kind", ["beton", "shards"])
def test_a_container_s_key_follows_its_file(kind: str, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    from fastvicreg.cli import main

    path = tmp_path / ("x.beton" if kind == "beton" else "x")
    assert main(["convert", str(make_folder(val=0)), str(path), "--format", kind]) == 0
    encoder = resnet("resnet18", width=16, stem="3x3s2")
    before = key(path, encoder)
    assert key(path, encoder) == before
    changed = path if kind == "beton" else next(iter(path.glob("*.tar")))
    os.utime(changed, ns=(1, 1))
    assert key(path, encoder) != before


def test_features_come_back_as_they_were_and_damage_costs_a_recomputation(
    own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = Features(torch.randn(5, 3), torch.arange(5), 2)
    assert load_features("k") is None
    save_features("k", saved)
    found = load_features("k")
    assert found is not None
    assert torch.equal(found.features_NF, saved.features_NF)
    assert torch.equal(found.labels_N, saved.labels_N)
    assert found.faults == 2
    assert [path.name for path in own_cache.iterdir()] == ["k.safetensors"]
    (own_cache / "k.safetensors").write_bytes(b"short")
    assert load_features("k") is None
    assert "damaged" in caplog.text


def test_those_not_used_for_longest_make_room(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = Features(torch.zeros(100, 10), torch.zeros(100, dtype=torch.int64))
    monkeypatch.setattr(cache, "LIMIT", 12_000)
    for age, name in enumerate(("old", "older")):
        save_features(name, some)
        os.utime(own_cache / f"{name}.safetensors", (1000 - age, 1000 - age))
    assert load_features("older") is not None  # used, and so the younger
    save_features("new", some)
    assert {path.stem for path in own_cache.glob("*")} == {"older", "new"}


def test_features_too_large_for_the_disk_are_not_kept(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "LIMIT", 1000)
    save_features("k", Features(torch.zeros(100, 10), torch.zeros(100, dtype=torch.int64)))
    assert not list(own_cache.glob("*"))
    assert "not cached" in caplog.text


def test_the_second_protocol_takes_the_first_ones_features(
    uninterrupted: tuple[Path, Path], answer: Answer, own_cache: Path, tmp_path: Path
) -> None:
    _, run = uninterrupted
    quiet = ("--device", "cpu", "--workers", "1", "--report", tmp_path)
    code, first = answer("knn", run, "--k", "5", *quiet)
    assert code == 0
    assert "from the cache" not in first
    assert len(list(own_cache.glob("*.safetensors"))) == 2
    code, second = answer("linear", run, "--frozen-features", *quiet)
    assert code == 0
    assert second.count("taken from the cache (--no-cache computes them again)") == 2
    figure = next(line for line in first.splitlines() if line.startswith("knn:"))
    for again in ((), ("--no-cache",)):
        code, text = answer("knn", run, "--k", "5", *quiet, *again)
        assert figure in text.splitlines()
        assert ("from the cache" in text) == (not again)
    answer("knn", run, "--k", "5", *quiet, "--checkpoint", "8")
    assert len(list(own_cache.glob("*.safetensors"))) == 4


def test_protocols_of_one_command_share_features_that_are_not_kept(
    uninterrupted: tuple[Path, Path], answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def counted(*arguments: Any, **options: Any) -> Features:
        computed.append(len(arguments[1]))
        return extract(*arguments, **options)

    extract = subject.extract
    monkeypatch.setattr(subject, "extract", counted)
    quiet = ("--device", "cpu", "--workers", "1", "--report", tmp_path, "--no-cache")
    code, text = answer("knn,linear,svm", uninterrupted[1], "--k", "5", "--frozen-features", *quiet)
    assert code == 0, text
    assert len(computed) == 2  # both splits, once
    assert {"knn.json", "linear-frozen.json", "svm.json"} <= {path.name for path in tmp_path.iterdir()}


def test_the_image_that_was_named_is_told_from_another_of_the_same_samples(
    uninterrupted: tuple[Path, Path], answer: Answer, own_cache: Path, tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    import tables

    # Of an arrow table's two images the name, the label and the file are the same.
    for split, count in (("train", 12), ("val", 6)):
        photos, depths = ([tables.image(100 * which + number) for number in range(count)] for which in (0, 1))
        table = pa.table({"photo": photos, "depth": depths, "label": [number % 3 for number in range(count)]})
        tables.write_arrow(tmp_path / "data" / f"{split}-00000-of-00001.arrow", table)
    asked = ("knn", uninterrupted[1], "--data", tmp_path / "data", "--k", "3", "--device", "cpu", "--workers", "1")
    kept: list[Path] = []
    for image in ("photo", "depth"):
        code, text = answer(*asked, "--image", image, "--report", tmp_path / image)
        assert code == 0, text
        assert "from the cache" not in text
        kept += sorted(set(own_cache.glob("*.safetensors")) - set(kept))
    assert len(kept) == 4
    features = [load_file(path)["features"] for path in kept]
    assert not any(torch.equal(one, other) for one in features[:2] for other in features[2:])
    code, text = answer(*asked, "--image", "photo", "--report", tmp_path / "again")
    assert text.count("from the cache") == 2
