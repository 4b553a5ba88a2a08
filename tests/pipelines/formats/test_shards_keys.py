"""Which members of a sample are its image and its class, as a person names them: the same for every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from images import encoded, photo
from tars import Member, write_shard, write_tar

from fastvicreg.cli import main
from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.datasets import open_data
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.shards import index as shard_index
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.manifest import manifest_path, read_manifest
from fastvicreg.pipelines.verify import verify_dataset

CLASSES = ("ash", "birch", "cedar")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "cache_folder", lambda: tmp_path / "cache")


def jpeg(number: int) -> bytes:
    return encoded(photo(number, 40 + number % 5, 30))


def described(numbers: range, **fields: object) -> list[Member]:
    """Samples of an image, its segmentation, a JSON text and a class name as text; sample n is of class n % 3."""
    entries: list[Member] = []
    for number in numbers:
        text = {"label": number % 3, "meta": {"tree": CLASSES[number % 3]}, "width": 40.0, "alt": None, **fields}
        entries += [
            (f"{number:03d}.seg.png", encoded(photo(number + 50, 16, 16), "PNG")),
            (f"{number:03d}.input.jpg", jpeg(number)),
            (f"{number:03d}.json", json.dumps(text).encode()),
            (f"{number:03d}.txt", f"{CLASSES[number % 3]}\n".encode()),
            (f"{number:03d}.target.txt", str(number % 3).encode()),
        ]
    return entries


@pytest.fixture(params=["indexed", "walked"])
def trees(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two tar files of ``described`` samples, six in all."""
    for at, numbers in enumerate((range(4), range(4, 6))):
        write_shard(tmp_path / "trees", f"x-{at}", described(numbers))
        if request.param == "walked":
            (tmp_path / "trees" / f"x-{at}.idx").unlink()
    return tmp_path / "trees"


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ("txt", CLASSES),
        ("target.txt", ("0", "1", "2")),
        ("json:label", ("0", "1", "2")),
        ("json:meta.tree", CLASSES),
        ("label", ("0", "1", "2")),  # no member is called so: a field of the JSON
        ("cls,txt", CLASSES),
        (".TXT", CLASSES),
    ],
)
def test_labels_are_taken_where_they_are_said_to_be(trees: Path, label: str, classes: tuple[str, ...]) -> None:
    source = open_source(trees, label=label, image="input.jpg")
    assert source.classes == classes
    assert [source.label(index) for index in range(6)] == [index % 3 for index in range(6)]
    assert [bytes(source.encoded(index)) for index in range(6)] == [jpeg(index) for index in range(6)]
    assert not verify_dataset(trees, label=label, image="input.jpg", decode=True).findings


def test_the_image_is_the_member_named(trees: Path) -> None:
    for image in ("seg.png", "png", "webp; png"):
        assert open_source(trees, image=image).size(0) == (16, 16)
    guessed = open_source(trees)
    assert isinstance(guessed, ShardSource)
    assert guessed.size(0) == (40, 30)
    assert guessed.notes == (
        f"{trees}: the images are the members .input.jpg, not .seg.png (--image names another)",
        f"{trees}: no labels among the members .json, .txt, .target.txt (--label KEY or --label json:FIELD names some)",
    )
    assert [guessed.label(index) for index in range(6)] == [-1] * 6
    fields = open_source(trees, label="label")
    assert isinstance(fields, ShardSource)
    assert f"{trees}: the labels are the field 'label' of each sample's .json" in fields.notes


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"image": "tif"}, r"--image tif: no sample in .*trees has such a member, only \.seg\.png, \.input\.jpg"),
        ({"label": "tag:label"}, r"--label tag:label: no sample in .*trees has such a member, only"),
        ({"label": "json"}, r"--label json: name a field of the JSON too, such as json:label\."),
        (
            {"label": "species"},
            r"no sample in .*trees has a label: x-0.tar/000.input.jpg .*whose \.json has no species",
        ),
        ({"label": "json:alt"}, r"whose \.json alt is empty"),
        ({"label": "json:meta"}, r"whose \.json meta is a dict, no class"),
    ],
)
def test_keys_that_name_nothing_are_refused(trees: Path, keys: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_source(trees, image=keys.get("image", ""), label=keys.get("label", ""))


def test_samples_without_the_named_parts_are_left_out_and_counted(tmp_path: Path) -> None:
    entries: list[Member] = []
    for number in range(9):
        label: object = {3: None, 4: [1], 5: -1, 6: True}.get(number, number % 2)
        text = b"{" if number == 7 else json.dumps({"label": label}).encode()
        entries += [] if number == 1 else [(f"{number}.jpg", jpeg(number))]
        entries += [(f"{number}.txt", b"x")] if number == 2 else [(f"{number}.json", text)]
    for name in ("indexed", "walked"):
        write_shard(tmp_path / name, "x", entries)
    (tmp_path / "walked/x.idx").unlink()
    for name in ("indexed", "walked"):
        source = open_source(tmp_path / name, label="json:label")
        assert isinstance(source, ShardSource)
        assert [source.name(index) for index in range(len(source))] == ["x.tar/0.jpg", "x.tar/8.jpg"]
        assert [bytes(source.encoded(index)) for index in range(2)] == [jpeg(0), jpeg(8)]
        assert [source.label(index) for index in range(2)] == [0, 0]
        assert source.passed.lines() == [
            "1 x sample whose .json is no JSON (x.tar/7.jpg)",
            "1 x sample whose .json label is a bool, no class (x.tar/6.jpg)",
            "1 x sample whose .json label is a list, no class (x.tar/4.jpg)",
            "1 x sample whose .json label is below 0 or above all bounds (x.tar/5.jpg)",
            "1 x sample whose .json label is empty (x.tar/3.jpg)",
            "1 x sample without an image, only .json (x.tar/1)",
            "1 x sample without the label .json, only .jpg, .txt (x.tar/2)",
        ]
        summary = convert_dataset(tmp_path / name, tmp_path / f"{name}.beton", Settings(label="json:label"))
        assert summary.images == 2
        assert any("sample without the label" in note for note in summary.notes)
        assert not verify_dataset(tmp_path / name, label="json:label").findings
    assert (tmp_path / "walked.beton").read_bytes() == (tmp_path / "indexed.beton").read_bytes()


def test_numbers_among_names_are_names(tmp_path: Path) -> None:
    entries: list[Member] = []
    for number, name in enumerate(("747", "a330", "747")):
        entries += [(f"{number}.jpg", jpeg(number)), (f"{number}.cls", name.encode())]
    write_shard(tmp_path / "s", "x", entries)
    source = open_source(tmp_path / "s", label="cls")
    assert (source.classes, [source.label(index) for index in range(3)]) == (("747", "a330"), [0, 1, 0])
    with pytest.raises(UserError, match="--label cls takes all of them as names"):
        open_source(tmp_path / "s")


def test_a_split_that_lacks_a_class_has_the_training_split_s_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "hub").mkdir()
    write_tar(tmp_path / "hub/trees-train-0.tar", described(range(9)))
    birchless = [entry for number in (0, 2, 3, 5) for entry in described(range(number, number + 1))]
    write_tar(tmp_path / "hub/trees-validation-0.tar", birchless)
    line = ["convert", str(tmp_path / "hub"), str(tmp_path / "out"), "--label", "txt", "--image", "input.jpg"]
    assert main(line) == 0
    manifests = [read_manifest(manifest_path(tmp_path / f"out/{split}.beton")) for split in ("train", "validation")]
    assert [manifest.classes for manifest in manifests] == [CLASSES, CLASSES]
    assert manifests[1].label_N.tolist() == [0, 2, 0, 2]
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "hub"), "--label", "txt"]) == 0
    assert "9 samples, 3 classes" in capsys.readouterr().out
    data = open_data(TrainConfig(data=DataConfig(data=str(tmp_path / "hub"), label="txt", image="input.jpg")))
    assert data.train.classes == CLASSES
    assert any("train: 9 images, 3 classes; val: 4 images, 2 classes" in note for note in data.notes)


def test_our_own_shards_and_folders_of_images_take_no_keys(trees: Path, tmp_path: Path) -> None:
    convert_dataset(trees, tmp_path / "ours", Settings(format="shards", label="txt"))
    assert open_source(tmp_path / "ours").classes == CLASSES
    with pytest.raises(UserError, match="written by convert, and its manifest names the labels: leave --label cls out"):
        open_source(tmp_path / "ours", label="cls")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.jpg").write_bytes(jpeg(0))
    with pytest.raises(UserError, match=r"--image jpg --label x names .* is a folder of images: leave it out"):
        open_source(tmp_path / "folder", image="jpg", label="x")


def test_settings_of_before_stay_what_they_were() -> None:
    assert "image" not in Settings().recorded()
    assert Settings(image="png").recorded()["image"] == "png"
