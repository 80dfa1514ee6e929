"""What prompts are made of needs no optional package until a picture or a sound is opened."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

import gemelo
from gemelo.errors import InputError, MissingExtraError
from gemelo.inputs.media.audio import read_audio, resample, stream_audio
from gemelo.inputs.media.audio_channels import is_tensor, to_mono
from gemelo.inputs.media.image import read_image
from gemelo.inputs.media.video import read_video
from tests.media import Pipe, film, recording, tone

SOUND, FILM = recording([tone(440, 16000)], 16000), film()
HEAVY = ("torch", "PIL", "av")
ROOT = Path(gemelo.__file__).parent
# Imports everything below a folder, without what is heavy.
PROGRAM = """
import sys
from importlib import import_module
for name in sys.argv[2].split():
    sys.modules[name] = None
for name in sys.argv[1].split():
    import_module(name)
import numpy as np
from gemelo.inputs.media.mel import log_mel
from gemelo.inputs.media.audio import resample
assert log_mel(resample(np.zeros(16000, np.float32), 16000).values).shape == (97, 128)
"""


def test_inputs_need_nothing_of_it() -> None:
    files = sorted((ROOT / "inputs").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in files]
    modules = " ".join(name.removesuffix(".__init__") for name in names)
    words = [sys.executable, "-c", PROGRAM, modules, " ".join(HEAVY)]
    ran = subprocess.run(words, cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(files) > 40


@pytest.mark.parametrize(
    ("read", "what", "packages"),
    [
        (lambda: read_image(np.zeros((4, 4, 3), np.uint8)), "pictures", ["PIL"]),
        (lambda: read_image(b"..."), "pictures", ["PIL"]),
        (lambda: read_audio(SOUND), "recordings", ["av"]),
        (lambda: [*stream_audio(Pipe(SOUND))], "recordings", ["av"]),
        (lambda: resample(tone(440, 8000), 8000), "recordings", ["av"]),
        (lambda: read_video(FILM), "videos", ["av", "PIL"]),
    ],
)
def test_what_is_opened_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[], object],
    what: str,
    packages: Iterable[str],
) -> None:
    """Also where the extra is installed by half."""
    for package in packages:
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtraError) as caught:
                read()
        name = {"PIL": "pillow"}.get(package, package)
        assert str(caught.value) == (
            f"{what} need the extra media ({name} is not installed): pip install 'gemelo[media]'"
        )


def test_a_tensor_is_one_without_torch_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    said = torch.tensor([0.5, -0.5], dtype=torch.bfloat16, requires_grad=True)
    assert is_tensor(said) and not is_tensor([0.5]) and not is_tensor(np.zeros(2))
    assert to_mono(said).tolist() == [0.5, -0.5]
    assert to_mono(torch.tensor([[16384], [0]], dtype=torch.int16)).tolist() == [0.5, 0.0]
    monkeypatch.delitem(sys.modules, "torch")
    assert not is_tensor(said)
    with pytest.raises(InputError):
        to_mono("a text")
