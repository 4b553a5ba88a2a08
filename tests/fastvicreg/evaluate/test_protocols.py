"""Every protocol on a run: figures, reports, and one line for what it cannot serve."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from images import encoded, photo

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.evaluate.shares import drawn_share, named_in
from fastvicreg.pipelines import open_source

Answer = Callable[..., tuple[int, str]]

QUIET = ("--device", "cpu", "--workers", "1")


@pytest.mark.parametrize(
    ("arguments", "label", "settings"),
    [
        (("knn", "--k", "3", "9"), "knn", [{"k": 3}, {"k": 9}]),
        (("linear", "--epochs", "2"), "linear", [{"solver": "sgd", "which": "best"}, {"lr": 0.02, "epoch": 2}]),
        (
            ("linear", "--preset", "inat18", "--epochs", "2", "--lr", ".1", "1"),
            "linear",
            [{"lr": rate, "head": "bn-linear", "weight_decay": 1e-4} for rate in (0.1, 0.1, 1.0, 1.0)],
        ),
        (("linear", "--frozen-features"), "linear-frozen", [{"solver": "lbfgs"}]),
        (
            ("linear", "--frozen-features", "--solver", "sgd", "--epochs", "2", "--lr", ".1", "--head", "bn-linear"),
            "linear-frozen-sgd",
            [{"lr": 0.1}] * 2,
        ),
        (("semi", "--percent", "10", "--epochs", "2"), "semi-10", [{"which": "best"}, {"which": "last", "epoch": 2}]),
        (("finetune", "--epochs", "1"), "finetune", [{"which": "best", "epoch": 1}, {"which": "last", "epoch": 1}]),
        (("retrieval", "--recall", "1", "3"), "retrieval", [{}]),
    ],
)
def test_a_protocol_leaves_its_figures_beside_the_run(
    arguments: tuple[str, ...],
    label: str,
    settings: list[dict[str, object]],
    uninterrupted: tuple[Path, Path],
    tmp_path: Path,
    answer: Answer,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[1], run)
    name, *rest = arguments
    code, text = answer(name, run, *rest, *QUIET, "--json", tmp_path / "own.json")
    assert code == 0, text
    written = json.loads((run / "eval" / f"{label}.json").read_text())
    assert json.loads((tmp_path / "own.json").read_text())["rows"] == written["rows"]
    assert len(written["rows"]) == len(settings)
    for row, expected in zip(written["rows"], settings, strict=True):
        assert row | expected == row
        assert (row["bank"], row["queries"], row["classes"]) == (26, 9, 3)
        if name != "retrieval":
            assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 100
    page = (run / "eval" / f"{label}.html").read_text()
    if name != "retrieval":
        assert sum(map(sum, written["confusion"])) == 9
        assert {row["class"] for row in written["classes"]} == {"class0", "class1", "class2"}
        assert page.count("<svg") == 2
    assert "<script" not in page
    assert not re.search(r"(src|href)=.https?:", page)  # nothing is fetched


def test_a_report_that_cannot_lie_beside_the_run_costs_no_figures(
    uninterrupted: tuple[Path, Path], tmp_path: Path, answer: Answer
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[1], run)
    (run / "eval").write_text("in the way")
    code, text = answer("knn", run, "--k", "3", *QUIET)
    assert code == 0
    assert "no report: cannot write" in text
    assert answer("knn", run, "--k", "3", *QUIET, "--report", run / "eval")[0] == 2


def test_figures_on_other_images_leave_those_on_the_runs_own(
    uninterrupted: tuple[Path, Path], tmp_path: Path, answer: Answer
) -> None:
    run, other = tmp_path / "run", tmp_path / "of others"
    shutil.copytree(uninterrupted[1], run)
    shutil.copytree(uninterrupted[0], other)
    asked = ("knn", run, "--k", "3", *QUIET)
    assert answer(*asked)[0] == 0
    own = (run / "eval" / "knn.json").read_bytes()
    for given in (("--data", other), ("--checkpoint", "8"), ("--data", other, "--checkpoint", "8")):
        code, text = answer(*asked, *given)
        assert code == 0, text
    assert answer("linear", run, "--labels-per-class", "2", *QUIET)[0] == 0
    assert (run / "eval" / "knn.json").read_bytes() == own
    assert {path.stem for path in (run / "eval").glob("*.json")} == {
        "knn",
        "knn-of_others",
        "knn-step-00000008",
        "knn-step-00000008-of_others",
        "linear-frozen-2-a-class",
    }


def test_a_folder_for_the_hub_gets_no_report(uninterrupted: tuple[Path, Path], tmp_path: Path, answer: Answer) -> None:
    data, run = uninterrupted
    folder = tmp_path / "encoder"
    assert main(["export", str(run), str(folder), "--to", "hf"]) == 0
    exported = sorted(path.name for path in folder.iterdir())
    code, text = answer("knn", folder, "--data", data, "--k", "3", *QUIET)
    assert code == 0, text
    assert "report" not in text
    assert main(["inspect", str(folder), "--data", str(data), "--views", "2", "--workers", "1"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == exported
    assert (tmp_path / "encoder.inspect.html").is_file()


def test_images_of_some_classes_are_matched_by_their_folders_names(
    uninterrupted: tuple[Path, Path], tmp_path: Path, answer: Answer
) -> None:
    data, run = uninterrupted
    some = tmp_path / "robust"
    for name in ("class0", "class2"):  # as a subset they are numbers 0 and 1, in the bank 0 and 2
        shutil.copytree(data / "val" / name, some / name)
    out = tmp_path / "figures.json"
    for protocol in (("knn", "--k", "3"), ("linear", "--frozen-features"), ("finetune", "--epochs", "1")):
        name, *rest = protocol
        code, text = answer(name, run, *rest, *QUIET, "--val-data", some, "--report", tmp_path / "out", "--json", out)
        assert code == 0, text
        assert "has 2 of the 3 classes: only these come into question" in text
        written = json.loads(next((tmp_path / "out").glob(f"{name}*-robust.json")).read_text())
        assert [row["class"] for row in written["classes"]] == ["class0", "class2"]
        assert not any(row[1] for row in written["confusion"])  # nothing is taken for class1


def test_other_images_are_classified_by_the_same_classifier(
    uninterrupted: tuple[Path, Path], tmp_path: Path, answer: Answer
) -> None:
    data, run = uninterrupted
    some, corrupted = tmp_path / "imagenet-r", tmp_path / "imagenet-c"
    for name in ("class0", "class2"):
        shutil.copytree(data / "val" / name, some / name)
    for name, severity in (("noise", "1"), ("noise", "2"), ("blur", "1")):
        shutil.copytree(data / "val", corrupted / name / severity)
    report = tmp_path / "out"
    for protocol in (("knn", "--k", "1", "3"), ("linear", "--epochs", "2"), ("finetune", "--epochs", "1")):
        name, *rest = protocol
        code, text = answer(
            name, run, *rest, *QUIET, "--robustness", some, "--robustness", corrupted, "--report", report
        )
        assert code == 0, text
        written = json.loads((report / f"{name}.json").read_text())
        chosen = max(written["rows"], key=lambda row: row["accuracy"])
        one, *several, mean = written["robustness"]
        assert (one["images_of"], one["classes"], one["images"]) == ("imagenet-r", 2, 6)
        assert [row["images_of"] for row in several] == [
            f"imagenet-c/{name}" for name in ("blur/1", "noise/1", "noise/2")
        ]
        assert {row["accuracy"] for row in several} == {chosen["accuracy"]}
        assert mean["accuracy"] == pytest.approx(chosen["accuracy"])
        assert "mean of 3 sets" in (report / f"{name}.html").read_text()
    shutil.copytree(some / "class2", tmp_path / "alone" / "class2")
    shutil.copytree(some / "class2", some / "zebra")
    for protocol, folder, says in (
        ("knn", some, "'zebra' is no class of the training data"),
        ("knn", some / "class2", "have no class folders"),
        ("knn", tmp_path / "missing", "is no folder"),
        ("knn", tmp_path / "alone", "all images are of one class, 'class2', and any guess is right"),
        ("retrieval", corrupted, "eval retrieval classifies nothing"),
    ):
        code, line = answer(protocol, run, "--k", "3", *QUIET, "--robustness", folder) if protocol == "knn" else answer(
            protocol, run, *QUIET, "--robustness", folder
        )  # fmt: skip
        assert code == 2
        assert says in line.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("semi", "--percent", "1"), "--percent 1 leaves the class 'class0' with none of its 9 images"),
        (("semi", "--percent", "0"), "--percent 0: give more than 0"),
        (("semi", "--percent", "40"), "the paper has learning rates for 1 % and 10 % alone"),
        (("semi", "--percent", "10", "--lr-head", "0"), "--lr-head 0"),
        (("semi", "--split", "missing.txt"), "cannot read --split missing.txt"),
        (("linear", "--epochs", "-1"), "--epochs -1"),
        (("linear", "--solver", "sgd"), "--solver goes with --frozen-features"),
        (("linear", "--batch-size", "0"), "--batch-size 0"),
        (("linear", "--weight-decay", "-1"), "--weight-decay -1"),
        (("finetune", "--lr-backbone", "nan"), "--lr-backbone nan"),
        (("linear", "--labels-per-class", "-1"), "--labels-per-class -1"),
        (("linear", "--lr", "1e38", "--epochs", "3"), "diverges"),
    ],
)
def test_what_a_protocol_cannot_serve_is_one_line(
    arguments: tuple[str, ...], says: str, uninterrupted: tuple[Path, Path], answer: Answer
) -> None:
    name, *rest = arguments
    code, text = answer(name, uninterrupted[1], *rest, *QUIET)
    assert code == 2
    assert says in text.splitlines()[-1]
    if "diverges" not in says:
        assert "\n" not in text


def labelled(root: Path, **images: int) -> Path:
    for name, count in images.items():
        for number in range(count):
            path = root / name / f"{name}_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(number, 24, 24)))
    return root


def test_a_drawn_share_is_the_same_share_of_every_class(tmp_path: Path) -> None:
    source = open_source(labelled(tmp_path / "data", ant=20, bee=10))
    chosen = drawn_share(source, 10, seed=0)
    assert sorted(source.label(index) for index in chosen) == [0, 0, 1]
    assert chosen == drawn_share(source, 10, seed=0)
    assert len({tuple(drawn_share(source, 10, seed=seed)) for seed in range(5)}) > 1
    with pytest.raises(
        UserError, match=r"--percent 1 leaves the class 'ant' with none of its 20 images: give 5 or more"
    ):
        drawn_share(source, 1, seed=0)


def test_a_list_of_files_is_a_share_and_says_what_it_lacks(tmp_path: Path) -> None:
    source = open_source(labelled(tmp_path / "data", ant=4, bee=4))
    file = tmp_path / "1percent.txt"
    file.write_text("ant_2.JPEG\nbee/bee_0.jpg\n\n")
    assert [source.name(index) for index in named_in(file, source)] == ["ant/ant_2.jpg", "bee/bee_0.jpg"]
    for text, says in (
        ("ant_2.JPEG\nfly_0.JPEG\n", "1 of its 2 images are not in the training data, such as fly_0.JPEG"),
        ("ant_2.JPEG\n", "names no image of the class 'bee'"),
        ("", "names no image of the class 'ant' and 1 more"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            named_in(file, source)


def test_names_that_several_images_have_need_their_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            (root / name / f"v1.{number}.png").write_bytes(encoded(photo(number, 16, 16), "PNG"))
    source, file = open_source(root), tmp_path / "1percent.txt"
    file.write_text("ant/v1.0.png\nbee/v1.1.png\n")
    assert [source.name(index) for index in named_in(file, source)] == ["ant/v1.0.png", "bee/v1.1.png"]
    file.write_text("v1.0.png\nbee/v1.1.png\n")
    with pytest.raises(UserError, match=r"v1.0.png could be any of 2 training images.*write the folder"):
        named_in(file, source)
