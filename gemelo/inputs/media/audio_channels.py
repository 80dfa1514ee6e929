"""Downmixing: samples of any type and number of channels to mono float32.

Whole numbers are scaled to +-1 and channels are averaged, as the reference does. A mean can lose
what was said: two channels of opposite phase cancel each other out. So whoever averages keeps
`Levels`, which say afterwards if nothing is left.

    levels = Levels()
    mono = downmix(full_scale(array), levels)           # (C, N) -> (N,)
    levels.notices()

N samples, C channels.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError

Floats = NDArray[np.float32]

LOUDEST = 100.0  # full scale is 1; far above it, somebody forgot to divide
FAINT = 1e-3  # of full scale, -60 dB: below the noise of a room
CANCELLED = 1e-3  # of the channels' power: 64 channels with one that speaks keep 16 times as much


class Levels:
    """How loud a sound is before its channels are averaged, and after."""

    def __init__(self) -> None:
        self.num_samples = 0
        self.loudest = self.loudest_channel = 0.0
        self.power = self.channel_power = 0.0  # sums of squares, the channels' divided by C

    def add(self, channels: Floats, mono: Floats) -> None:
        """Channels (C, N) and their mean (N,); `check_finite` finds what is no number."""
        if not mono.size:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            self.num_samples += len(mono)
            self.loudest = max(self.loudest, float(np.abs(mono).max()))
            self.power += float(np.dot(mono, mono))
            if len(channels) == 1:
                self.channel_power, self.loudest_channel = self.power, self.loudest
                return
            self.loudest_channel = max(self.loudest_channel, float(np.abs(channels).max()))
            self.channel_power += float(np.square(channels).sum()) / len(channels)

    def notices(self) -> tuple[str, ...]:
        """What there is to say after the last samples."""
        if not self.num_samples:
            return ()
        if self.loudest_channel >= FAINT and self.power <= CANCELLED * self.channel_power:
            return (
                "its channels cancel each other out when they are averaged (opposite phases): "
                "give one of them alone, as a recording of one channel",
            )
        if self.loudest == 0:
            return ("it is silent: every sample is 0",)
        if self.loudest < FAINT:
            return (
                f"it is nearly silent: its loudest sample is {self.loudest:.1g} of full scale; "
                "if there is speech in it, make it louder",
            )
        return ()


def to_mono(values: Any, levels: Levels | None = None) -> Floats:
    """One channel of finite float32 from samples of any kind; the shorter axis is the channels."""
    array = _as_array(values)
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise InputError(
            f"the recording is an array of {array.dtype} with {array.ndim} axes: "
            "give numbers, (samples,) or (samples, channels)"
        )
    scaled = full_scale(array)
    channels = scaled[None] if scaled.ndim == 1 else scaled
    if channels.size and channels.shape[0] > channels.shape[1]:
        channels = channels.T
    mono = downmix(channels, levels) if channels.size else np.zeros(0, np.float32)
    check_finite("the recording", mono, 0)
    return mono


def downmix(channels: Floats, levels: Levels | None = None) -> Floats:
    """The mean (N,) of channels (C, N), in float32."""
    if len(channels) == 1:
        mono: Floats = channels[0]
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # `check_finite` says it
            mono = channels.mean(0, dtype=np.float32)
    if levels is not None:
        levels.add(channels, mono)
    return mono


def full_scale(array: NDArray[Any]) -> Floats:
    """Whole numbers divided by the range of their type; floats as they are, in float32."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):  # `check_finite` says it
            return array.astype(np.float32, copy=False)
    half = np.float32(2.0 ** (8 * array.dtype.itemsize - 1))
    zero = half if array.dtype.kind == "u" else np.float32(0)
    return (array.astype(np.float32) - zero) / half


def check_finite(name: str, values: Floats, first: int) -> None:
    """Raise InputError where a sample is no number, or out of all proportion."""
    loud = ~(np.abs(values) <= LOUDEST)
    if loud.any():
        index = int(loud.argmax())
        raise InputError(
            f"{name} has the sample {values[index]} at index {first + index}: "
            f"give numbers within +-1 (whole numbers of 16 bits as int16)"
        )


def _as_array(values: Any) -> NDArray[Any]:
    if is_tensor(values):
        tensor = values.detach().cpu()
        array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return array
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError("the recording is a list of lists of different lengths") from None


def is_tensor(values: Any) -> bool:
    """Whether it is a tensor of torch's, which nothing here loads: whoever has one has done it."""
    return isinstance(values, getattr(sys.modules.get("torch"), "Tensor", ()))
