"""Video frames: presentation time, display matrix, and scaling to RGB.

A container may count from anywhere, count again from the beginning, or not at all; its matrix may
turn and mirror; its pixels need not be square. What comes out is what a player shows.

    clock = Clock(rate=25, begins_s=0.0)
    clock.time_s(frame)                     # seconds from where a player begins
    picture(frame, DisplayMatrix().matrix(frame), FrameScaler(image_size=768))
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from gemelo.inputs.media.image import Picture

if TYPE_CHECKING:
    from av import VideoFrame
    from PIL import Image

LEAD_S, MOST_LEAD_S = 0.1, 86_400.0  # a first picture is late by more than this, and by less
BACK_S = 1.0  # a time stamp that goes back further counts from elsewhere
WORK_PIXELS = 2_100_000  # of a frame before it is resized: 1080p fits
Matrix = tuple[int, int, int, int]

MOST_OBLONG = 8  # pixels are no longer than this times their other side
STRAIGHT = 0.02  # of a matrix's numbers, where a right angle has 0


@dataclass
class Clock:
    """Seconds from where a player begins, for frames as they come.

    That is begins_s, the container's earliest stamp, where it has sound before the first picture;
    else the first frame. num_restarts: how often the container began to count anew. first_s and
    end_s: when the first frame is shown, and when the last one so far is over.
    """

    rate: float
    begins_s: float | None = None
    first_s: float = 0.0
    num_restarts: int = 0
    end_s: float = 0.0
    _last_s: float | None = field(default=None, repr=False)
    _zero_s: float | None = field(default=None, repr=False)

    def time_s(self, frame: VideoFrame) -> float:
        """When a frame is shown; one without a time stamp follows the one before it."""
        stamp_s = None if frame.pts is None else frame.time
        next_s = 0.0 if self._last_s is None else self._last_s + 1 / self.rate
        if stamp_s is None:
            time_s = next_s
        else:
            self._zero_s = self._begun(stamp_s, next_s) if self._zero_s is None else self._zero_s
            time_s = stamp_s - self._zero_s
            if self._last_s is not None and time_s < self._last_s - BACK_S:
                self.num_restarts += 1
                self._zero_s, time_s = stamp_s - next_s, next_s
        self._last_s = max(time_s, self._last_s or 0.0)
        self.end_s = self._last_s + 1 / self.rate
        return max(0.0, time_s)

    def _begun(self, stamp_s: float, next_s: float) -> float:
        """The stamp at which a player begins, by the first one that a frame has."""
        lead_s = 0.0 if self.begins_s is None else stamp_s - next_s - self.begins_s
        if self._last_s is not None or not LEAD_S < lead_s <= MOST_LEAD_S:
            return stamp_s - next_s
        self.first_s = lead_s
        return stamp_s - lead_s


@dataclass(frozen=True)
class FrameScaler:
    """How frames become pictures: resized to a square of image_size, or in the shape that a player
    shows; most_pixels: above them a frame is shrunk as its colours are converted."""

    image_size: int | None = None
    most_pixels: int = WORK_PIXELS
    aspect: Fraction | None = None

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a frame as it is converted."""
        shape = float(self.aspect or 1)
        if self.image_size is None and 1 / MOST_OBLONG <= shape <= MOST_OBLONG:
            width = max(1, round(width * shape))
        scale = math.sqrt(self.most_pixels / (width * height))
        if scale >= 1:
            return width, height
        if self.image_size is not None:
            return min(width, self.image_size), min(height, self.image_size)
        width, height = max(1, int(width * scale)), max(1, int(height * scale))
        return min(width, self.most_pixels), min(height, self.most_pixels // width)


def picture(frame: VideoFrame, matrix: Matrix, scaler: FrameScaler) -> Picture:
    """A frame in RGB, turned and mirrored as its matrix says."""
    from PIL import Image

    width, height = scaler.size(frame.width, frame.height)
    if (width, height) != (frame.width, frame.height):
        finer = width < frame.width or height < frame.height
        frame = frame.reformat(width, height, "rgb24", interpolation="AREA" if finer else "BICUBIC")
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = _transpose(matrix)
    shown = Picture(image if turn is None else image.transpose(turn))
    return shown if scaler.image_size is None else shown.resized(scaler.image_size)


def is_askew(matrix: Matrix) -> bool:
    """Whether a frame is to be turned by something else than right angles."""
    a, b, c, d = (abs(number) for number in matrix)
    return min(a + d, b + c) > STRAIGHT * max(a + d, b + c)


class DisplayMatrix:
    """The display matrix: a, b, c, d of (x, y) -> (a x + c y, b x + d y), down being positive.

    The matrix is looked up anew when the angle changes. Looking at what comes beside a frame keeps
    the frame until the garbage is collected, and a frame may be large.
    """

    def __init__(self) -> None:
        self._angle: int | None = None
        self._matrix: Matrix = (1, 0, 0, 1)

    def matrix(self, frame: VideoFrame) -> Matrix:
        """The matrix of a frame."""
        if frame.rotation != self._angle:
            self._angle, self._matrix = frame.rotation, _matrix(frame)
        return self._matrix


def _matrix(frame: VideoFrame) -> Matrix:
    from av.sidedata.sidedata import Type

    # The side data are typed as if strings were their keys.
    side_data = cast(Any, frame.side_data).get(Type.DISPLAYMATRIX)
    if side_data is None or side_data.buffer_size != 36:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("9i", side_data)
    return a, b, c, d


def _transpose(matrix: Matrix) -> Image.Transpose | None:
    """The nearest of the eight ways up."""
    from PIL.Image import Transpose

    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return {
            (False, False): None,
            (True, False): Transpose.FLIP_LEFT_RIGHT,
            (False, True): Transpose.FLIP_TOP_BOTTOM,
            (True, True): Transpose.ROTATE_180,
        }[a < 0, d < 0]
    return {
        (False, False): Transpose.TRANSPOSE,
        (False, True): Transpose.ROTATE_270,
        (True, False): Transpose.ROTATE_90,
        (True, True): Transpose.TRANSVERSE,
    }[b < 0, c < 0]
