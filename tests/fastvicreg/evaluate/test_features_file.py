"""Anybody's features from a file, by any protocol that trains on none; a fault of the file is one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fastvicreg.evaluate.features import Features
from fastvicreg.evaluate.features_file import LabelledFeatures
from fastvicreg.evaluate.subject import FeatureSubject

Answer = Callable[..., tuple[int, str]]


def saved(path: Path, arrays: Mapping[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        names = arrays.get("classes")
        metadata = {} if names is None else {"classes": json.dumps([str(name) for name in names])}
        save_file({key: np.ascontiguousarray(x) for key, x in arrays.items() if key != "classes"}, path, metadata)
    return path


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("protocol", [("knn",), ("linear", "--frozen-features"), ("retrieval",)])
def test_features_are_evaluated_without_a_run(
    ending: str, protocol: tuple[str, ...], arrays: dict[str, np.ndarray], tmp_path: Path, answer: Answer
) -> None:
    arrays["classes"] = np.array(["ant", "<bee>", "cat$x$"])
    file = saved(tmp_path / f"features.{ending}", arrays)
    out = tmp_path / "figures.json"
    code, text = answer(*protocol, "--features", file, "--json", out, "--report", tmp_path / "report")
    assert code == 0, text
    row = json.loads(out.read_text())["rows"][0]
    assert (row["bank"], row["queries"], row["classes"]) == (30, 12, 3)
    assert row.get("accuracy", row.get("recall@1")) == 100  # the classes lie far apart
    page = next(iter((tmp_path / "report").glob("*.html"))).read_text()
    if protocol != ("retrieval",):
        assert "cat$x$" in page
        assert "<bee>" not in page
        assert "&lt;bee&gt;" in page


def test_no_report_is_written_where_none_was_asked_for(
    arrays: dict[str, np.ndarray], tmp_path: Path, answer: Answer
) -> None:
    file = saved(tmp_path / "features.npz", arrays)
    assert "report:" not in answer("knn", "--features", file)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


def test_numbers_of_classes_may_have_gaps(arrays: dict[str, np.ndarray], tmp_path: Path, answer: Answer) -> None:
    for split in ("train_labels", "val_labels"):
        arrays[split] = arrays[split] * 1_000_000_000
    out = tmp_path / "figures.json"
    assert answer("knn", "--features", saved(tmp_path / "f.npz", arrays), "--k", "5", "--json", out)[0] == 0
    row = json.loads(out.read_text())["rows"][0]
    assert (row["classes"], row["accuracy"]) == (3, 100)
    assert "top5" not in row


def test_a_text_is_no_npz(tmp_path: Path, answer: Answer) -> None:
    (tmp_path / "text.npz").write_text("hello")
    code, line = answer("knn", "--features", tmp_path / "text.npz")
    assert (code, "write it by numpy.savez" in line) == (2, True), line


def test_a_damaged_byte_of_a_packed_npz_is_one_line(
    arrays: dict[str, np.ndarray], tmp_path: Path, answer: Answer
) -> None:
    file = tmp_path / "features.npz"
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    whole = bytearray(file.read_bytes())
    start = 30 + len(next(iter(arrays))) + len(".npy") + 20  # its header's extra field is 20 bytes long
    for where in range(start, start + 20):
        file.write_bytes(whole[:where] + bytes([whole[where] ^ 0xFF]) + whole[where + 1 :])
        code, text = answer("knn", "--features", file)
        assert (code, "\n" in text) == (2, False), text
        assert str(file) in text


def damaged(arrays: dict[str, np.ndarray], **changed: Any) -> dict[str, Any]:
    return {key: value for key, value in {**arrays, **changed}.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: {"train_labels": None}, "has no 'train_labels'"),
        (lambda a: {"val_features": None}, "has no 'val_features'"),
        (lambda a: {"val_features": a["val_features"][:, :5]}, "train_features are 8 wide and val_features 5"),
        (lambda a: {"train_labels": a["train_labels"][:-1]}, "train_features has 30 rows and train_labels 29"),
        (lambda a: {"train_features": np.where(a["train_features"] > 5, np.nan, a["train_features"])}, "not finite"),
        (lambda a: {"train_features": a["train_features"][0]}, "of shape (8,)"),
        (lambda a: {"train_features": a["train_features"].astype(int)}, "give floats"),
        (lambda a: {"val_labels": a["val_labels"] / 2}, "one whole number a sample"),
        (lambda a: {"val_labels": a["val_labels"] - 1}, "val_labels: 4 of 12 are below 0"),
        (lambda a: {"train_features": a["train_features"].astype(float) * 1e300}, "not finite"),
        (lambda a: {"train_features": a["train_features"] * np.float32(1e30)}, "scale them to 1e+15 at most"),
        (lambda a: {"val_features": np.ones_like(a["val_features"])}, "val_features are all equal"),
        (lambda a: {"classes": np.array(["a", "b", "a"])}, "'classes' has 'a' twice"),
        (lambda a: {"classes": np.array(["a", "b", "c"], dtype=object)}, "numpy.array(names, dtype=str)"),
        (lambda a: {"train_labels": 0 * a["train_labels"], "val_labels": 0 * a["val_labels"]}, "of one class"),
        (lambda a: {"train_labels": a["train_labels"] % 2}, "has no image of '2'"),
        (lambda a: {"classes": np.array(["a", "b"])}, "has 2 names, and the labels go up to 2"),
        (lambda a: {"train_features": np.array([[object()]])}, "cannot be read"),
    ],
)
def test_a_file_that_gives_no_figure_is_one_line(
    change: Callable[[Any], Any], says: str, arrays: dict[str, np.ndarray], tmp_path: Path, answer: Answer
) -> None:
    path = tmp_path / "features.npz"
    np.savez(path, **damaged(arrays, **change(arrays)))
    code, line = answer("knn", "--features", path)
    assert (code, line.count("\n")) == (2, 0), line
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("knn", "--features", "FILE", "--k", "31"), "--k 31: give between 1 and the bank's 30"),
        (("knn", "--features", "FILE", "--k", "10", "0"), "--k 0: give between 1"),
        (("knn", "--features", "FILE", "--temperature", "0"), "--temperature 0"),
        (("knn", "RUN", "--features", "FILE"), "give either a run"),
        (("knn",), "give either a run"),
        (("knn", "--features", "FILE", "--data", "x"), "--data x goes with a run"),
        (("knn", "--features", "FILE", "--arch", "resnet50"), "--arch resnet50 goes with a run"),
        (
            ("linear", "--features", "FILE", "--frozen-features", "--solver", "sgd", "--epochs", "0"),
            "--epochs 0: give 1",
        ),
        (("knn", "--features", "missing.npz"), "missing.npz does not exist"),
        (("knn", "--features", "features.txt"), "give a .npz or a .safetensors file"),
        (("linear", "--features", "FILE"), "--features holds features alone"),
        (("semi", "--features", "FILE"), "semi needs images"),
        (("finetune", "--features", "FILE"), "finetune needs images"),
        (("linear", "--features", "FILE", "--labels-per-class", "11"), "class '0' has 10 training images"),
        (("linear", "--features", "FILE", "--frozen-features", "--lr", ".1"), "give --solver sgd"),
        (
            ("linear", "--features", "FILE", "--frozen-features", "--weight-decay", "0", "--batch-size", "7"),
            "--batch-size, --weight-decay: logistic regression to convergence has no such setting",
        ),
        (("linear", "--features", "FILE", "--frozen-features", "--preset", "places205"), "--preset: logistic"),
        (("linear", "--features", "FILE", "--frozen-features", "--solver", "sgd", "--lr", "-1"), "--lr -1"),
        (("retrieval", "--features", "FILE", "--recall", "31"), "--recall 31"),
    ],
)
def test_what_a_file_cannot_serve_is_one_line(
    arguments: tuple[str, ...], says: str, arrays: dict[str, np.ndarray], tmp_path: Path, answer: Answer
) -> None:
    file = saved(tmp_path / "features.npz", arrays)
    code, line = answer(*(str(file) if argument == "FILE" else argument for argument in arguments))
    assert (code, line.count("\n")) == (2, 0), line
    assert says in line


def test_of_the_default_neighbours_those_beyond_the_bank_are_left_out(
    arrays: dict[str, np.ndarray], tmp_path: Path, answer: Answer
) -> None:
    code, text = answer("knn", "--features", saved(tmp_path / "features.npz", arrays))
    assert code == 0
    assert "k 100, 200: left out, the bank has 30 images" in text


def test_several_protocols_are_asked_at_once(
    arrays: dict[str, np.ndarray], answer: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Each takes the options that it knows, and gives the figures that it gives alone."""
    np.savez(tmp_path / "features.npz", allow_pickle=False, **arrays)
    common = ("--features", tmp_path / "features.npz", "--report", tmp_path / "report", "--json", tmp_path / "all.json")
    code, shown = answer("knn,linear,retrieval", *common, "--k", "3", "--recall", "1", "2", "--frozen-features")
    assert code == 0, shown
    assert {path.name for path in (tmp_path / "report").glob("*.html")} == {
        "knn.html",
        "linear-frozen.html",
        "retrieval.html",
    }
    written = json.loads((tmp_path / "all.json").read_text())
    assert written["command"] == "eval knn,linear,retrieval"
    by_protocol = {row["protocol"]: row for row in written["rows"]}
    assert list(by_protocol) == ["knn", "linear", "retrieval"]
    assert by_protocol["knn"]["k"] == 3
    alone = tmp_path / "alone.json"
    assert answer("knn", "--features", tmp_path / "features.npz", "--k", "3", "--json", alone)[0] == 0
    assert json.loads(alone.read_text())["rows"] == [by_protocol["knn"]]


def test_several_protocols_with_a_slip_are_refused_before_any(answer: Callable[..., tuple[int, str]]) -> None:
    assert answer("knn,knn", "RUN") == (2, "fastvicreg: eval knn,knn names knn twice: once is enough.")
    code, shown = answer("knn,retrievl", "RUN")
    assert code == 2
    assert "unknown protocol 'retrievl'; did you mean 'retrieval'?" in shown
    code, shown = answer("knn,retrieval", "RUN", "--devise", "cpu")
    assert code == 2
    assert "unknown option --devise; did you mean --device?" in shown
    assert answer("knn,retrieval", "--help")[0] == 2


def test_features_are_copied_to_a_device_once_and_a_split_alone() -> None:
    """ImageNet's training split is 10 GB, which is not sent again for every figure of the validation split."""
    queries = LabelledFeatures(Features(torch.randn(4, 3), torch.tensor([0, 1, 0, 1])), ("a", "b"))
    subject = FeatureSubject(None, queries, device="meta")  # type: ignore[arg-type]
    assert subject.query_features() is subject.query_features()
    assert {tensor.device.type for tensor in subject.query_features()[:2]} == {"meta"}
