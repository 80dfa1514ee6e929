"""Log-mel spectrogram: the audio encoder's input features, 128 mel bins every 10 ms.

The reference's front end, in the form of a stream: windows of 32 ms, HTK pre-emphasis within each,
a transform of twice the needed length, triangles equally spaced in mel, and the natural logarithm.
A frame comes out as soon as its samples are there; the end of a sound is padded with zeros to a
multiple of 128 samples, as the reference pads a clip. Any cutting into pieces gives the same
frames. Where we differ: the reference cuts a clip at 30 s and says nothing, and pads the clips of
a batch to the longest; here nothing is cut, and a clip is always as if it were alone.

    mel = LogMel();  frames = mel.push(samples);  rest = mel.finish()      # (T, 128) each

N samples, T frames.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError
from gemelo.inputs.media.audio import SAMPLING_RATE
from gemelo.inputs.media.audio_channels import Floats, to_mono

NUM_MELS = 128
FRAME_LENGTH = 512  # samples in a window
HOP_LENGTH = 160
MIN_SAMPLES = FRAME_LENGTH + 1  # of a frame: the reference waits for one more
PAD = 128  # a clip's length becomes a multiple of this
FFT_LENGTH = 1024  # twice the window, which is what its authors call overdrive
PREEMPHASIS = 0.97
MIN_FREQUENCY, MAX_FREQUENCY = 125.0, 7600.0
MEL_FLOOR = 1e-5  # silence is its logarithm, -11.5
BLOCK = 512  # frames transformed at a time: bounds memory, changes nothing


def log_mel(samples: Any) -> Floats:
    """A whole clip (N,) at 16 kHz -> frames (T, 128) float32; T is 0 below 513 samples, 32 ms."""
    mel = LogMel()
    return np.concatenate([mel.push(samples), mel.finish()])


def num_frames(num_samples: int) -> int:
    """Frames of a whole clip of so many samples."""
    padded = num_samples + -num_samples % PAD
    return max(0, (padded - MIN_SAMPLES) // HOP_LENGTH + 1)


def check_min_samples(num_samples: int, name: str = "the recording") -> None:
    """Raises InputError for a sound too short for a frame, and so for an audio token."""
    if num_samples < MIN_SAMPLES:
        raise InputError(
            f"{name} lasts {num_samples / SAMPLING_RATE:.4f} s, too short for an audio token: "
            f"give one of {MIN_SAMPLES / SAMPLING_RATE:.4f} s or more"
        )


class LogMel:
    """A sound that is still going on. It keeps at most 512 samples, however long that takes."""

    def __init__(self) -> None:
        self.held: Floats = np.zeros(0, np.float32)
        self.num_samples = 0

    @property
    def nbytes(self) -> int:
        """What is kept between two pieces."""
        return self.held.nbytes

    def push(self, samples: Any) -> Floats:
        """Samples (N,) at 16 kHz -> every frame (T, 128) that they complete, T perhaps 0.

        A tensor, an array or a list; floats within +-1, or whole numbers of their type's range.
        Raises InputError for a sample that is no number, and then none of them counts.
        """
        new = to_mono(samples)
        self.num_samples += len(new)
        return self.advance(np.concatenate([self.held, new]))

    def finish(self) -> Floats:
        """The frames (T, 128) that only the padding of the end completes; ready for a new sound."""
        frames = self.advance(np.pad(self.held, (0, -self.num_samples % PAD)))
        self.held, self.num_samples = self.held[:0], 0
        return frames

    def advance(self, samples: Floats) -> Floats:
        """Every whole frame of samples; keeps those that the next ones need."""
        count = max(0, (len(samples) - MIN_SAMPLES) // HOP_LENGTH + 1)
        self.held = samples[count * HOP_LENGTH :].copy()
        starts = range(0, count, BLOCK)
        blocks = [frames_at(samples[s * HOP_LENGTH :], min(BLOCK, count - s)) for s in starts]
        return np.concatenate([np.zeros((0, NUM_MELS), np.float32), *blocks])


def frames_at(samples: Floats, count: int) -> Floats:
    """The first `count` frames of samples: (count, 128)."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, FRAME_LENGTH)[::HOP_LENGTH][:count]
    first = windows[:, :1] * (1.0 - PREEMPHASIS)
    rest = windows[:, 1:] - PREEMPHASIS * windows[:, :-1]
    shaped = np.concatenate([first, rest], axis=1) * hann_window()  # (count, 512)
    magnitudes = np.abs(np.fft.rfft(shaped, n=FFT_LENGTH))  # (count, 513)
    return np.log(np.maximum(mel_energies(magnitudes), MEL_FLOOR)).astype(np.float32)


def mel_energies(magnitudes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The product of magnitudes (T, 513) and the filters, (T, 128), in float64.

    Without its zeros, which are 98 in 100: faster than a product of matrices, whose threads would
    be in the way of others', and the same whatever T is.
    """
    bins, weights, firsts = mel_weights()
    terms = magnitudes.take(bins, axis=1).astype(np.float64)
    terms *= weights
    return np.add.reduceat(terms, firsts, axis=1)


@cache
def mel_weights() -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
    """The filters' N weights above zero, filter after filter: the bin (N,) and the size (N,) of
    each, and where each filter's begin (128,); none is without."""
    bank = mel_filters().T
    filters, bins = np.nonzero(bank)
    return bins, bank[filters, bins], np.searchsorted(filters, np.arange(NUM_MELS))


@cache
def hann_window() -> Floats:
    """The periodic Hann window, (512,), rounded as the reference rounds it.

    `torch.hann_window` differs in the last bit, which shows beside a loud tone, where bands are
    next to silent.
    """
    angles = 2 * np.pi * np.arange(FRAME_LENGTH, dtype=np.float32) / FRAME_LENGTH
    return (0.5 * (1 - np.cos(angles))).astype(np.float32)


@cache
def mel_filters() -> NDArray[np.float64]:
    """128 triangles over the bins of the transform, (513, 128), none normalised by its area.

    Corners are equally spaced in HTK's mel, 2595 log10(1 + f / 700); sides are straight in Hz.
    """
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (MIN_FREQUENCY, MAX_FREQUENCY))
    corners = 700 * (10 ** (np.linspace(lowest, highest, NUM_MELS + 2) / 2595) - 1)
    bins = np.arange(FFT_LENGTH // 2 + 1)[:, None] * (SAMPLING_RATE / FFT_LENGTH)
    widths = np.diff(corners)
    rising = (bins - corners[:-2]) / widths[:-1]
    falling = (corners[2:] - bins) / widths[1:]
    bank: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return bank
