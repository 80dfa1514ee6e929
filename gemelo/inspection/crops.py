"""Pan & Scan crops of an image: the views a model is given, and the tokens they cost.

The boxes come from the function that cuts them for the model, so these are the very views.

    shown = show_crops("panorama.jpg")
    print(shown.text())
    save_crops("panorama.jpg", Path("crops"))    # panorama-original.png, panorama-crop1.png, ...
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemelo.errors import InputError
from gemelo.inputs.media.image import PictureSource, read_image, views
from gemelo.inputs.media.panscan import DEFAULT, Box, PanScan, crops, no_crops_reason
from gemelo.inputs.media.parts import name_of
from gemelo.weights.files import replaced

TOKENS_PER_VIEW = 256  # both families', at every size of picture
STEM_CHARS = 80


@dataclass(frozen=True)
class View:
    """One image for the model; box: (left, top, right, bottom) in the picture, in pixels."""

    name: str
    box: Box

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, before it is squeezed into the tower's square."""
        left, top, right, bottom = self.box
        return right - left, bottom - top


@dataclass(frozen=True)
class Crops:
    """A picture's views in the order the model is given them, the original first."""

    name: str
    views: tuple[View, ...]
    tokens_per_view: int
    notices: tuple[str, ...]
    no_crops_reason: str = ""  # why the original is the only view; "" where there are crops

    @property
    def num_tokens(self) -> int:
        """Image tokens of all views together; the words around them are some twenty more."""
        return len(self.views) * self.tokens_per_view

    def text(self) -> str:
        """A few lines for a terminal."""
        width, height = self.views[0].size
        lines = [f"{self.name}: {width} x {height}, {self.num_tokens} image tokens"]
        for view in self.views:
            left, top, right, bottom = view.box
            size = f"{view.size[0]} x {view.size[1]}"
            lines.append(
                f"  {view.name:<8}  {size:>13}  from ({left}, {top}) to ({right}, {bottom})"
            )
        if len(self.views) == 1:
            lines.append(f"  no crops: {self.no_crops_reason}")
        return "\n".join([*lines, *(f"  note: {notice}" for notice in self.notices)])

    def to_json(self) -> dict[str, Any]:
        """One object: the picture, then its views in order."""
        return {
            "picture": self.name,
            "soft_tokens": self.num_tokens,
            "views": [{"name": view.name, "box": list(view.box)} for view in self.views],
            "notices": list(self.notices),
            "no_crops_reason": self.no_crops_reason or None,
        }


def show_crops(
    source: PictureSource, options: PanScan = DEFAULT, *, tokens_per_view: int = TOKENS_PER_VIEW
) -> Crops:
    """The views of a picture under Pan & Scan. Raises as `read_image` does."""
    picture = read_image(source)
    boxes = [(0, 0, *picture.size), *crops(picture.size, options)]
    shown = tuple(View(_view_name(index), box) for index, box in enumerate(boxes))
    reason = no_crops_reason(picture.size, options)
    return Crops(name_of(source, "image"), shown, tokens_per_view, picture.notices, reason)


def save_crops(
    source: PictureSource, directory: Path, options: PanScan = DEFAULT, *, overwrite: bool = False
) -> list[Path]:
    """Write every view as a PNG into a directory, which is made if need be; the paths written.

    A view is saved as it is cut, before it is squeezed into a square. Raises InputError, before
    anything is written, where a file is in the way and overwrite is not given.
    """
    picture = read_image(source)
    images = views(picture, crops(picture.size, options))
    paths = [directory / f"{_stem(source)}-{_view_name(index)}.png" for index in range(len(images))]
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[0]} exists already; choose another folder, or overwrite=True")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {directory}: {error.strerror}") from None
    for path, view in zip(paths, images, strict=True):
        with replaced(path) as file:
            view.image.save(file, format="PNG")
    return paths


def _view_name(index: int) -> str:
    return f"crop{index}" if index else "original"


def _stem(source: PictureSource) -> str:
    """The picture's own name, as far as it does for a file's."""
    if not isinstance(source, str | Path) or str(source).startswith("data:"):
        return "picture"
    return re.sub(r"[^\w.-]+", "-", Path(source).stem)[:STEM_CHARS] or "picture"
