"""Whole models, broken, loaded and run: text, pictures and sound through every tower."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import gemelo
from fuzzing.mutations import (
    mutated_bytes,
    mutated_json,
)
from fuzzing.readers import Reader
from fuzzing.seeds import Seeds
from fuzzing.weights import broken_gguf, linked


def model_readers(seeds: Seeds) -> list[Reader]:
    picture, sound = seeds.pictures[0], seeds.sounds[0]

    def take_gguf(content: bytes, folder: Path) -> None:
        path = folder / "run.gguf"
        path.write_bytes(content)
        _run(path, [])

    def directory(origin: Path, media: list[dict[str, Any]]) -> Callable[[bytes, Path], None]:
        def take(case: tuple[bytes, bytes], folder: Path) -> None:
            home = folder / origin.name
            config, weights = case
            kept = {path.name for path in origin.iterdir()} - {"config.json"}
            linked(home, origin, kept)
            (home / "config.json").write_bytes(config)
            if weights:
                (home / "model.safetensors").unlink()
                (home / "model.safetensors").write_bytes(weights)
            try:
                _run(home, media)
            finally:
                if weights:
                    (home / "model.safetensors").unlink()

        return take

    def broken(origin: Path) -> Callable[[Random], tuple[bytes, bytes]]:
        config = json.loads((origin / "config.json").read_text())
        weights = (origin / "model.safetensors").read_bytes()

        def make(rng: Random) -> tuple[bytes, bytes]:
            if rng.random() < 0.6:
                return mutated_json(rng, config), b""
            return json.dumps(config).encode(), mutated_bytes(rng, weights, 3)

        return make

    sees = [{"type": "image", "image": picture}]
    # MobileNet-V5 sees 768 x 768 pixels in seconds; its weights are built and touched all the same.
    hears = [{"type": "audio", "audio": sound}]
    return [
        Reader("run-gguf", broken_gguf(seeds.gguf), take_gguf, True),
        Reader("run-gguf-3n", broken_gguf(seeds.gguf_3n), take_gguf, True),
        Reader("run-sees", broken(seeds.sees), directory(seeds.sees, sees), True),
        Reader("run-hears", broken(seeds.hears), directory(seeds.hears, hears), True),
    ]


def _run(path: Path, media: list[dict[str, Any]]) -> None:
    model = gemelo.load(path, threads=1)
    said = [{"role": "user", "content": [*media, {"type": "text", "text": "the llama"}]}]
    for prompt in ([2, 300, 301, 302], said):
        answer = model.generate(prompt, temperature=0.0, max_tokens=2)
        if not all(0 <= token < model.config.vocab_size for token in answer.token_ids):
            raise AssertionError(f"a token outside the vocabulary: {answer.token_ids}")
