"""Image folders: what is found, in which order, and what a user's mistake says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from images import encoded, photo

from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.pipelines.formats.listing import image_extensions
from fastvicreg.pipelines.sources import require_readable
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


def test_a_spread_keeps_each_class_share(make_folder) -> None:
    source = open_source(make_folder(train=30, val=0, classes=3))
    part = spread(source, 6)
    assert [part.label(i) for i in range(len(part))] == [0, 0, 1, 1, 2, 2]
    assert spread(source, 30) is source


def test_links_that_loop_or_lead_nowhere_are_passed_over_and_named(make_folder) -> None:
    root = make_folder(train=6, val=0, classes=2)
    (root / "class0/again").symlink_to(root)
    (root / "class1/inner").mkdir()
    (root / "class1/inner/up").symlink_to("../../class1")
    (root / "class1/self.jpg").symlink_to("self.jpg")
    (root / "class1/gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "whole").symlink_to(root)
    source = open_source(root)
    assert isinstance(source, FolderSource)
    assert (len(source), source.classes) == (6, ("class0", "class1"))
    assert source.passed.lines() == [
        "3 x link that leads back to a folder it lies in (class0/again)",
        "2 x link that leads nowhere (class1/gone.jpg)",
    ]


def test_links_to_the_same_folder_from_two_classes_are_both_read(make_folder) -> None:
    root = make_folder(train=6, val=0, classes=2)
    (root / "linked").symlink_to("class0")
    source = open_source(root)
    assert (len(source), source.classes) == (9, ("class0", "class1", "linked"))


def test_what_is_no_image_is_counted_by_kind(make_folder) -> None:
    root = make_folder(train=4, val=0, classes=1)
    for name in ("a.heic", "b.HEIC", "notes", ".DS_Store", "list.txt"):
        (root / "class0" / name).write_bytes(b"")
    (root / "__MACOSX").mkdir()
    source = open_source(root)
    assert isinstance(source, FolderSource)
    assert source.classes == ("class0",)
    assert source.passed.counts == {
        ".heic": 2, ".txt": 1, "no ending": 1, "hidden file": 1, "hidden or left by a program": 1
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["train", "train/ant", "train/ant/deep"])
def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, closed: str) -> None:
    for name in ("train/ant/deep", "train/bee"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(encoded(photo(0, 9, 9), "PNG"))
    code = (
        "import sys\nfrom fastvicreg.errors import UserError\nfrom fastvicreg.pipelines.sources import *\n"
        "for run in (open_source, splits_of):\n    try: print(run(sys.argv[1]))\n"
        "    except UserError as error: print(error)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "train")]
    if os.geteuid() == 0:  # root may list everything: a process without that right is needed
        if shutil.which("setpriv") is None:
            pytest.skip("root without setpriv")
        run = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *run]
    (tmp_path / closed).chmod(0)
    try:
        ran = subprocess.run(run, capture_output=True, text=True, timeout=60)
    finally:
        (tmp_path / closed).chmod(0o755)
    assert ran.stderr == ""
    assert f"cannot list the folder {tmp_path / closed}: Permission denied" in ran.stdout.splitlines()[0]
