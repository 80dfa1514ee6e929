"""The log-mel front end against transformers' extractor, known numbers, and itself in pieces."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import Gemma3nAudioFeatureExtractor

from gemelo.errors import InputError
from gemelo.inputs.media.audio_channels import Floats
from gemelo.inputs.media.mel import (
    MEL_FLOOR,
    LogMel,
    hann_window,
    log_mel,
    mel_energies,
    mel_filters,
    num_frames,
)

LENGTHS = [513, 514, 600, 640, 641, 8000, 16000, 16001, 40000, 48319]


@pytest.fixture(scope="module")
def reference() -> Gemma3nAudioFeatureExtractor:
    return Gemma3nAudioFeatureExtractor()


def speech(num_samples: int, seed: int = 0) -> Floats:
    """A voice of sorts: harmonics that glide and fall silent, and a little noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(num_samples) / 16000
    pitch = 2 * np.pi * np.cumsum(120 + 40 * np.sin(3 * time_s)) / 16000
    voice = sum(np.sin(n * pitch) / n for n in range(1, 30))
    loudness = np.clip(np.sin(7 * time_s), 0, 1) * 0.2
    return (voice * loudness + 1e-3 * rng.standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_frames_equal_the_reference(
    reference: Gemma3nAudioFeatureExtractor, num_samples: int
) -> None:
    sound = speech(num_samples)
    wanted = reference([sound], return_tensors="np")["input_features"][0]
    ours = log_mel(sound)
    assert ours.shape == wanted.shape == (num_frames(num_samples), 128)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_thirty_seconds_and_more_are_not_cut(reference: Gemma3nAudioFeatureExtractor) -> None:
    sound = speech(31 * 16000)
    wanted = reference([sound], truncation=False, return_tensors="np")["input_features"][0]
    assert len(wanted) == 3097  # cut at 30 s it would be 2997
    np.testing.assert_allclose(log_mel(sound), wanted, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_any_pieces_give_the_same_frames(seed: int) -> None:
    sound = speech(20000 + 37 * seed)
    dice = random.Random(seed)
    mel, frames, start = LogMel(), [], 0
    while start < len(sound):
        size = dice.choice([0, 1, 7, 100, 160, 512, 513, 5120])
        frames.append(mel.push(sound[start : start + size]))
        assert mel.nbytes <= 512 * 4
        start += size
    frames.append(mel.finish())
    np.testing.assert_allclose(np.concatenate(frames), log_mel(sound), atol=1e-6)


def test_a_finished_sound_leaves_nothing_behind() -> None:
    mel = LogMel()
    mel.push(speech(3000))
    mel.finish()
    again = np.concatenate([mel.push(speech(900, seed=1)), mel.finish()])
    assert np.array_equal(again, log_mel(speech(900, seed=1)))


def test_large_sounds_are_transformed_in_blocks() -> None:
    sound = speech(16000 * 6)  # 597 frames, past one block
    parts = np.concatenate([log_mel(sound[:80640])[:500], log_mel(sound[80000:])])
    np.testing.assert_allclose(log_mel(sound), parts, atol=1e-6)


def test_energies_are_the_product_with_the_filters() -> None:
    magnitudes = np.abs(np.random.default_rng(0).standard_normal((37, 513))).astype(np.float32)
    energies = mel_energies(magnitudes)
    np.testing.assert_allclose(energies, magnitudes.astype(np.float64) @ mel_filters(), rtol=1e-13)
    assert all(
        np.array_equal(mel_energies(magnitudes[n : n + 1])[0], energies[n]) for n in range(37)
    )


def test_window_and_triangles() -> None:
    assert hann_window().sum() == pytest.approx(255.99998)
    bank = mel_filters()
    assert bank.shape == (513, 128) and bank.sum() == pytest.approx(473.2006092)
    assert np.flatnonzero(bank.any(1))[[0, -1]].tolist() == [9, 486] and bank.any(0).all()
    sums = [0.95202447, 0.97114891, 0.98961002, 2.97584284, 9.35966395]
    assert bank.sum(0)[[0, 1, 2, 63, 127]] == pytest.approx(sums)


def test_a_tone_and_a_click() -> None:
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)).astype(np.float32)
    frames = log_mel(tone)
    assert frames.shape == (97, 128) and frames[0].argmax() == 39
    assert frames.max() == pytest.approx(3.680955, abs=1e-4)
    assert frames.mean() == pytest.approx(-7.81452, abs=1e-4)
    around = [-3.0634081, -3.5769994, -4.016425, -4.4009266, -4.743077, -5.0242395, -5.2637653]
    assert frames[0, 45:52] == pytest.approx(around, abs=1e-4)
    click = np.zeros(16000, np.float32)
    click[100] = 1
    frames = log_mel(click)
    assert frames[0, :4] == pytest.approx([-4.028624, -3.9132473, -3.8050492, -3.703355], abs=1e-4)
    assert frames[0, 125:] == pytest.approx([1.7671331, 1.7887124, 1.8132105], abs=1e-4)
    assert (frames[1:] == np.float32(np.log(MEL_FLOOR))).all()


@pytest.mark.parametrize(("num_samples", "wanted"), [(0, 0), (1, 0), (512, 0), (513, 1), (640, 1)])
def test_what_is_shorter_than_a_window_has_no_frame(num_samples: int, wanted: int) -> None:
    assert len(log_mel(speech(num_samples))) == num_frames(num_samples) == wanted


def test_silence_is_the_floor() -> None:
    assert (log_mel(np.zeros(4000)) == np.float32(np.log(MEL_FLOOR))).all()


def test_tensors_and_whole_numbers_are_heard_alike() -> None:
    whole = np.round(speech(4000) * 32768).astype(np.int16)
    wanted = log_mel(whole / 32768)
    assert np.array_equal(log_mel(whole), wanted)
    assert np.array_equal(log_mel(torch.from_numpy(whole)), wanted)


def test_a_bad_sample_is_told_and_nothing_of_its_piece_is_heard() -> None:
    mel, sound = LogMel(), speech(2000)
    broken = sound.copy()
    broken[321] = np.nan
    first = mel.push(sound[:1000])
    with pytest.raises(InputError, match="sample nan at index 321"):
        mel.push(broken)
    rest = [mel.push(sound[1000:]), mel.finish()]
    assert np.array_equal(np.concatenate([first, *rest]), log_mel(sound))
