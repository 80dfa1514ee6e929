"""What is measured: the files, the forms of them that peers need, and the turns of a round.

    270m      the real Gemma 3 270M, Q4_K_M
    1b-q4_0   random weights in the real shapes: Gemma 3 1B in 4 bits, and so on

A peer that does not read GGUF gets the same weights in its own form: bfloat16 safetensors written
by `gemelo convert`, and from those OpenVINO's export. What is missing is made once and kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peers.engines import (
    ENGINES,
    GEMELO,
    LLAMA,
    OPENVINO_INT4,
    OPENVINO_INT8,
    TRANSFORMERS,
    export,
)
from random_weights import write_with_bar

from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.locate import demo
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.source import EMBEDDING, PER_LAYER_EMBEDDING
from gemelo.cli.terminal import Bar


def default_folder() -> Path:
    """Where models for benchmarks are kept."""
    given = os.environ.get("GEMELO_BENCH_FILES")
    return Path(given) if given else Path.home() / ".cache" / "gemelo" / "benchmarks"


@dataclass(frozen=True)
class Subject:
    """One GGUF file and the engines that have something to say to it."""

    name: str
    shape: str
    mixture: str  # "" is the embedded default's own
    engines: tuple[str, ...]

    def gguf(self, folder: Path) -> Path:
        """The file, written if it is not there yet."""
        if not self.mixture:
            return demo()
        path = folder / f"{self.name}.gguf"
        if not path.exists():
            write_with_bar(self.shape, self.mixture, path)
        return path

    def form(self, engine: str, folder: Path, python: str) -> Path:
        """What an engine loads, made if it is not there yet."""
        kind = ENGINES[engine].folder
        if not kind:
            return self.gguf(folder)
        target = folder / kind / self.name
        if not target.exists() and kind == "hf":
            with Bar(f"writing {target}") as bar:
                convert(self.gguf(folder), target, "bf16", progress=bar)
        elif not target.exists():
            tensors = self.form(TRANSFORMERS, folder, python)
            export(python, tensors, kind.removeprefix("openvino-"), target)
        return target


_OURS = (GEMELO, LLAMA)
_EIGHT, _FOUR = (
    (OPENVINO_INT8, f"{OPENVINO_INT8} f32"),
    (OPENVINO_INT4, f"{OPENVINO_INT4} f32"),
)
SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("270m", "270m", "", (*_OURS, *_EIGHT, TRANSFORMERS)),
        Subject("1b-q4_0", "1b", "q4_0", (*_OURS, *_FOUR)),
        Subject("1b-q8_0", "1b", "q8_0", (*_OURS, *_EIGHT, TRANSFORMERS)),
        Subject("4b-q4_0", "4b", "q4_0", _OURS),
        Subject("e2b-q4_0", "e2b", "q4_0", _OURS),
        Subject("e4b-q4_0", "e4b", "q4_0", _OURS),
    )
}


@dataclass(frozen=True)
class Turn:
    """A prompt read and tokens added, and the measures that come of it."""

    prompt: int
    new: int
    rows: int = 1
    prefill: str = ""
    decode: str = ""

    def measures(self, answer: dict[str, float]) -> dict[str, float]:
        """Tokens a second, by measure."""
        found = {}
        if self.prefill:
            found[self.prefill] = self.prompt / answer["prefill_s"]
        if self.decode:
            found[self.decode] = self.new * self.rows / answer["decode_s"]
        return found


def turns(new: int, wanted: Callable[[str], bool]) -> list[Turn]:
    """The turns of a round that give a wanted measure; they add `new` tokens, batches a quarter.

    wanted: of "prefill", "decode" or "batch".
    """
    reading, adding = wanted("prefill"), wanted("decode")
    few = max(1, new // 4)
    found = [
        Turn(
            prompt,
            new if adding and prompt != 512 else 0,
            prefill=f"prefill_{prompt}" if reading else "",
            decode=f"decode_{prompt}" if adding and prompt != 512 else "",
        )
        for prompt in (32, 512, 2048)
    ]
    if wanted("batch"):
        found += [Turn(32, few, rows, decode=f"batch_{rows}") for rows in (4, 8)]
    return [turn for turn in found if turn.prefill or turn.decode]


@dataclass(frozen=True)
class Work:
    """What one token costs: bytes of weights read to add it, operations to read it.

    Operations are two for each element of a layer's matrix; attention's own are left out, and so
    is the head, which reads one token of a prompt. All layers count, also those that an engine may
    skip for all but the last token.
    """

    bytes_per_token: int
    operations_per_token: int


def work(subject: Subject, engine: str, folder: Path, form: Path) -> Work:
    """The work of a token: bytes as this engine's form holds them, operations as the model has."""
    source = open_source(subject.gguf(folder))
    matrices = [
        n for n, shape in source.shapes.items() if len(shape) == 2 and n != PER_LAYER_EMBEDDING
    ]
    elements = sum(
        source.shapes[name][0] * source.shapes[name][1] for name in matrices if name != EMBEDDING
    )
    if form.is_dir():
        files = [*form.glob("*.safetensors"), *form.glob("openvino_model.bin")]
        return Work(sum(file.stat().st_size for file in files), 2 * elements)
    held = [source.tensor(name) for name in source.shapes if name != PER_LAYER_EMBEDDING]
    return Work(sum(weight.nbytes for weight in held), 2 * elements)
