"""What is shown of Pan & Scan is what is cut, and what is saved is what is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemelo.errors import InputError
from gemelo.inputs.media.panscan import PanScan
from gemelo.inspection.crops import save_crops, show_crops
from tests.multimodal import photograph


@pytest.fixture
def panorama(tmp_path: Path) -> Path:
    path = tmp_path / "the pan.orama.png"
    photograph(1000, 400).save(path)
    return path


def test_the_overview(panorama: Path) -> None:
    shown = show_crops(str(panorama))
    assert [view.name for view in shown.views] == ["original", "crop1", "crop2", "crop3"]
    assert [view.size for view in shown.views] == [(1000, 400), (334, 400), (334, 400), (332, 400)]
    assert shown.num_tokens == 4 * 256
    lines = shown.text().splitlines()
    assert lines[0].endswith(": 1000 x 400, 1024 image tokens")
    assert lines[-1].split() == "crop3 332 x 400 from (668, 0) to (1000, 400)".split()
    assert shown.to_json()["views"][1] == {"name": "crop1", "box": [0, 0, 334, 400]}


def test_thresholds_and_notices() -> None:
    shown = show_crops(photograph(1000, 400), PanScan(max_num_crops=2), tokens_per_view=10)
    assert len(shown.views) == 3 and shown.num_tokens == 30
    square = show_crops(Image.new("RGBA", (9, 9)))
    assert "no crops" in square.text() and "note: its transparent parts" in square.text()


@pytest.mark.parametrize(
    ("size", "options", "reason"),
    [
        ((300, 299), PanScan(), "its sides have a ratio of 1, under 1.2 (min_ratio_to_activate)"),
        ((1199, 1000), PanScan(), "its sides have a ratio of 1.19, under 1.2"),
        ((384, 191), PanScan(), "would have a side of 191 pixels, under 256 (min_crop_size)"),
        ((384, 191), PanScan(), "it is long enough, 2.01 to 1 (min_ratio_to_activate 1.2), but"),
        ((400, 300), PanScan(), "a side of 200 pixels"),
        ((400, 300), PanScan(min_crop_size=200), ""),
        ((1000, 400), PanScan(), ""),
        ((1000, 400), PanScan(min_ratio_to_activate=3), "a ratio of 2.5, under 3 (min_ratio"),
    ],
)
def test_the_verdict_says_which_limit_and_by_how_much(
    size: tuple[int, int], options: PanScan, reason: str
) -> None:
    shown = show_crops(photograph(*size), options)
    assert reason in shown.no_crops_reason
    assert (len(shown.views) > 1) == (not shown.no_crops_reason) == (reason == "")
    assert ("no crops: " in shown.text()) == bool(reason)
    assert shown.no_crops_reason in shown.text()
    assert shown.to_json()["no_crops_reason"] == (shown.no_crops_reason or None)


def test_saved_views(panorama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = save_crops(panorama, folder)
    assert [path.name for path in paths] == [
        f"the-pan.orama-{name}.png" for name in ("original", "crop1", "crop2", "crop3")
    ]
    assert sorted(folder.iterdir()) == sorted(paths)
    whole = np.asarray(photograph(1000, 400))
    for path, view in zip(paths, show_crops(panorama).views, strict=True):
        left, top, right, bottom = view.box
        with Image.open(path) as written:
            assert np.array_equal(np.asarray(written), whole[top:bottom, left:right])


def test_nothing_is_overwritten_unasked(panorama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    mine = folder / "the-pan.orama-crop2.png"
    mine.write_text("mine")
    with pytest.raises(InputError, match="crop2.png exists already"):
        save_crops(panorama, folder)
    assert list(folder.iterdir()) == [mine] and mine.read_text() == "mine"
    assert len(save_crops(panorama, folder, overwrite=True)) == 4
    with Image.open(mine) as written:
        assert written.size == (334, 400)


def test_no_place_to_write(panorama: Path) -> None:
    with pytest.raises(InputError, match="cannot make"):
        save_crops(panorama, panorama / "inside a file")
    assert save_crops(photograph(9, 9), panorama.parent)[0].name == "picture-original.png"
