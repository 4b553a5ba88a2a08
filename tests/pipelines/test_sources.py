"""Image folders: what is found, in which order, and what a user's mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest
from images import encoded, photo

from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.sources import find_splits, require_readable
from fastvicreg.pipelines.sources.folder import image_extensions
from fastvicreg.pipelines.sources.subset import spread


def test_class_folders_are_labelled_in_sorted_order_and_files_read_back(tmp_path: Path) -> None:
    content = {}
    for number, name in enumerate(("zebra/b.jpg", "ant/deep/er/a.png", "ant/c.JPEG", "zebra/a.webp")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rsplit(".", 1)[1].lower()]
        content[name] = encoded(photo(number, 20 + number, 30), kind)
        path.write_bytes(content[name])
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "ant" / "._c.jpg").write_bytes(b"resource fork")
    (tmp_path / ".hidden").mkdir()
    source = open_source(tmp_path)
    assert source.classes == ("ant", "zebra")
    names = [source.name(i) for i in range(len(source))]
    assert names == ["ant/c.JPEG", "ant/deep/er/a.png", "zebra/a.webp", "zebra/b.jpg"]
    assert [source.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert [bytes(source.encoded(i)) for i in range(4)] == [content[name] for name in names]
    assert source.size(3) == (20, 30)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(photo(number, 9, 9), "PNG"))
    source = open_source(tmp_path)
    assert source.classes == ()
    assert [source.label(i) for i in range(3)] == [-1, -1, -1]


def test_images_beside_class_folders_are_refused_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    for name in ("stray.png", "ant/a.png"):
        (tmp_path / name).write_bytes(encoded(photo(0, 9, 9), "PNG"))
    with pytest.raises(UserError, match=r"1 images \(such as stray\.png\) .* ant/a\.png"):
        open_source(tmp_path)


def test_every_image_type_that_pillow_reads_counts_as_an_image() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".jp2", ".ppm"} <= image_extensions()
    assert not {".txt", ".pdf", ".mpg"} & image_extensions()


@pytest.mark.parametrize(
    ("make", "says"), [("missing", "does not exist"), ("file", "is a file"), ("empty", "no image")]
)
def test_a_folder_that_holds_nothing_is_one_line(tmp_path: Path, make: str, says: str) -> None:
    path = tmp_path / "there"
    if make == "file":
        path.write_text("x")
    elif make == "empty":
        path.mkdir()
    with pytest.raises(UserError, match=says) as caught:
        open_source(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xff not really")
    with pytest.raises(UserError, match=r"no readable image among the first 3 .*0\.jpg"):
        require_readable(open_source(tmp_path), "there")
    (tmp_path / "9.png").write_bytes(encoded(photo(0, 5, 5), "PNG"))
    require_readable(open_source(tmp_path), "there")


def test_splits_are_found_below_a_folder(tmp_path: Path) -> None:
    assert find_splits(tmp_path) == (tmp_path, None)
    (tmp_path / "train").mkdir()
    assert find_splits(tmp_path) == (tmp_path / "train", None)
    (tmp_path / "test").mkdir()
    assert find_splits(tmp_path) == (tmp_path / "train", tmp_path / "test")
    (tmp_path / "val").mkdir()
    assert find_splits(tmp_path) == (tmp_path / "train", tmp_path / "val")


def test_a_spread_keeps_each_class_share(make_folder) -> None:
    source = open_source(make_folder(train=30, val=0, classes=3))
    part = spread(source, 6)
    assert [part.label(i) for i in range(len(part))] == [0, 0, 1, 1, 2, 2]
    assert spread(source, 30) is source
