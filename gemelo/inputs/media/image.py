"""Image preprocessing: load, transpose by EXIF, convert to RGB, resize, rescale and normalise.

A picture is decoded inside bounds (`image_decoding`), made RGB (`image_colours`: transparent parts
are laid on white, deep greys read by their range) and turned as its EXIF says; of an animation the
first frame is used. What a person should know about it is said in `notices`; nothing is printed.
Only the bytes given are read.

    picture = read_image("cat.jpg")
    pixel_values(picture.resized(896), mean=0.5, std=0.5)    # Gemma 3: (3, 896, 896) in [-1, 1]
    pixel_values(picture.resized(768), mean=0.0, std=1.0)    # Gemma 3n: (3, 768, 768) in [0, 1]

Shapes: H and W are the height and width of a picture, S the image size of a vision tower.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import GemeloError, InputError
from gemelo.inputs.media.image_colours import to_rgb
from gemelo.inputs.media.image_decoding import MAX_PIXELS, check_size, decode
from gemelo.inputs.media.panscan import Box
from gemelo.inputs.media.parts import Source, name_of, open_media, require_readers

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112  # EXIF's tag
WARNINGS = 4  # of a decoder, that become notices
WIDE_BYTES = 64_000_000  # of rows resized in width, before they are resized in height

PictureSource: TypeAlias = "Source | Image.Image | Picture | NDArray[Any]"

# Python's warning filters and loggers belong to the whole process: one reader at a time.
_WARNINGS = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in RGB; notices: sentences on what was done to it."""

    image: Image.Image = field(repr=False)
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) in pixels."""
        return self.image.size

    def crop(self, box: Box) -> Picture:
        """What is inside a box, without notices."""
        return Picture(self.image.crop(box))

    def resized(self, image_size: int) -> Picture:
        """The picture in a square of S pixels, whatever its shape; itself if it has that size."""
        from PIL import Image

        if self.size == (image_size, image_size):
            return self
        image, bilinear = self.image, Image.Resampling.BILINEAR
        if 4 * image_size * image.height > WIDE_BYTES:  # a tower of pixels, as high as it is thin
            image = image.resize((image.width, image_size), bilinear)
        image = image.resize((image_size, image_size), bilinear)
        return replace(self, image=image)


def read_image(source: PictureSource) -> Picture:
    """Decode a picture from a path, a data: URL, bytes, an open file, a PIL image or an array of
    (H, W) or (H, W, 3).

    Raises InputError for what is missing, broken or larger than MAX_PIXELS, UnsupportedError for a
    remote URL; MissingExtraError without Pillow.
    """
    if isinstance(source, Picture):
        return source
    require_readers("image")
    from PIL import Image

    name = name_of(source, "image")
    with _as_input_errors(name), _collected_warnings() as warned:
        if isinstance(source, np.ndarray):
            source = Image.fromarray(source)
        if isinstance(source, Image.Image):
            check_size(name, source.size)
            picture = _upright(*to_rgb(source), *_exif_transpose(source))
        else:
            with open_media(source, "image") as file:
                image, decode_notices = decode(name, file)
            rgb, notices = to_rgb(image)
            turn = _exif_transpose(image)
            image.close()  # it may be large, and turning makes another
            picture = _upright(rgb, (*decode_notices, *notices), *turn)
    return replace(picture, notices=(*picture.notices, *warned))


def views(picture: Picture, boxes: Iterable[Box]) -> list[Picture]:
    """The picture itself, then what is in each box: what Pan & Scan shows a model."""
    return [picture, *(picture.crop(box) for box in boxes)]


def pixel_values(
    picture: Picture, mean: float | Sequence[float], std: float | Sequence[float]
) -> NDArray[np.float32]:
    """The array (3, H, W) float32 of a picture: scaled to [0, 1], then (x - mean) / std.

    mean, std: one number, or one for each of red, green and blue.
    """
    pixels = np.asarray(picture.image).transpose(2, 0, 1)  # (3, H, W)
    shift, scale = (
        np.asarray(value, np.float32).reshape(-1, 1, 1) * np.float32(255) for value in (mean, std)
    )
    planes = pixels.astype(np.float32, order="C")
    planes -= shift
    planes /= scale
    return planes


# ---- decoding ------------------------------------------------------------------------------------


@contextmanager
def _as_input_errors(name: str) -> Iterator[None]:
    """One clear line for whatever a decoder makes of hostile bytes."""
    from PIL import Image

    try:
        yield
    except GemeloError:
        raise
    except MemoryError:
        raise InputError(f"{name} needs more memory than there is: make it smaller") from None
    except Image.DecompressionBombError:  # Pillow's own limit, above ours
        raise InputError(
            f"{name} is larger than {MAX_PIXELS:,} pixels, which is the limit; make it smaller"
        ) from None
    except Exception as error:  # decoders raise all kinds, from struct.error to IndexError
        reason = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in reason:
            reason = "its format is none of those that are read; save it as PNG or JPEG"
        raise InputError(f"{name} cannot be read as a picture: {reason:.200}") from None


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """What Pillow warns of or logs, as sentences, once the block has ended."""
    notices: list[str] = []
    listener = _Listener()
    log = logging.getLogger("PIL")
    with _WARNINGS, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log.addHandler(listener)
        try:
            yield notices
        finally:
            log.removeHandler(listener)
    messages = dict.fromkeys((*(str(warning.message) for warning in caught), *listener.heard))
    texts = [text for text in messages if "decompression bomb" not in text]  # ours was kept
    notices += [f"the decoder warns: {' '.join(text.split()):.200}" for text in texts[:WARNINGS]]
    if len(texts) > WARNINGS:
        notices.append(f"the decoder has {len(texts) - WARNINGS:,} more warnings")


class _Listener(logging.Handler):
    """Keeps what is logged, instead of letting it reach the terminal."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


def _exif_transpose(image: Image.Image) -> tuple[Image.Transpose | None, tuple[str, ...]]:
    """How the EXIF says it was held, and what there is to say about that."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(ORIENTATION, 1)), ()
    except Exception:  # a parser of a camera's tags, on whatever a file holds
        return None, ("its EXIF is broken: it may lie on a side",)


def _upright(
    image: Image.Image,
    notices: tuple[str, ...],
    turn: Image.Transpose | None,
    more: tuple[str, ...],
) -> Picture:
    return Picture(image if turn is None else image.transpose(turn), (*notices, *more))
