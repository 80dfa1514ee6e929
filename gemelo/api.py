"""`Model`: what a user of the library holds.

It joins a loaded checkpoint, an engine and one session, so that a chat in a loop reuses its
prefix without the caller doing anything. A prompt is text, a list of messages, or token ids.
Messages may hold pictures, recordings and videos, if the model has eyes and ears. They need a chat
template, which an instruction-tuned model carries; a base model says that it has none.

Threads may share a model: `generate` waits until another thread's is done. A stream has its session
until it ends, so what begins meanwhile is given a new one, and later turns go on with that.

    model = gemelo.load("gemma-3-1b-it")
    for piece in model.stream([{"role": "user", "content": "Hi"}], temperature=0.7):
        print(piece.text, end="")

T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemelo.checkpoints.load import Checkpoint, WeightFormat, assemble, load_checkpoint
from gemelo.checkpoints.locate import expanded, resolve
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.subset import cut, without_padding, without_towers
from gemelo.config import ModelConfig, Submodel
from gemelo.engine.completion import Completion, join
from gemelo.engine.continuation import Piece
from gemelo.engine.elastic.policy import Policy
from gemelo.engine.elastic.speculative import Draft
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVFormat
from gemelo.engine.media.audio_stream import AudioStream
from gemelo.engine.media.encoders import Perception
from gemelo.engine.memory.per_layer_table import Where, as_packed, is_mapped, place_table
from gemelo.engine.memory.repack import repacked
from gemelo.engine.native_program import NativeProgram, is_native
from gemelo.engine.sampler import Sampling
from gemelo.engine.session import Progress, RepairMode, Session, check
from gemelo.engine.step import Decoder
from gemelo.engine.timings import Stats, Timings
from gemelo.engine.tokens import Soft
from gemelo.engine.turns import Line
from gemelo.errors import InputError
from gemelo.inputs.media.image import PictureSource, read_image
from gemelo.inputs.prompt import chat, placeholders
from gemelo.inputs.prompt.chat import Prompt
from gemelo.inputs.prompt.media_loader import Album, Viewing, samples_of, side_of
from gemelo.inputs.tokenizer.token_ids import token_ids
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import cpu

Message = Mapping[str, Any]
PromptLike = str | Sequence[Message] | Sequence[int] | Prompt


class Model:
    """A loaded model. `load` makes one."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        load_s: float = 0.0,
        part: Submodel | None = None,
    ) -> None:
        """part is the sub-model that `engine` runs, where it is not the whole checkpoint."""
        self.checkpoint, self.engine, self.part = checkpoint, engine, part
        self.load_s = load_s
        self.perception = Perception(checkpoint.tree, checkpoint.config)
        self._session, self._line = engine.session(), Line()

    @property
    def config(self) -> ModelConfig:
        return self.engine.decoder.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizer

    @property
    def timings(self) -> Timings:
        """Of the last turn of this model's own session."""
        return self._session.timings

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that this model's own session holds."""
        return self._session.cache.nbytes

    @property
    def stats(self) -> Stats:
        """Tokens by sub-model, switches and repairs of this model's own session."""
        return self._session.stats

    def session(self) -> Session:
        """A timeline of its own, with its own cache."""
        return self.engine.session()

    def submodel(self, choice: str | Submodel) -> Model:
        """A sub-model as a model: a name, a file or a `Submodel`. It shares every weight of this
        one and allocates none."""
        part = self.engine.sizes.named(choice)
        view = self.engine.sizes.view(part)
        old = self.engine
        engine = Engine(
            view, old.tokenizer, old.context, old.chunk, old.kv_format, part.name or "custom"
        )
        made = Model(self.checkpoint, engine, self.load_s, part)
        made.perception = self.perception  # and what was seen lately
        return made

    def use(self, choice: str | Submodel, repair: RepairMode = "off") -> None:
        """Change the size that this model's own session runs, from the next token on."""
        self._session.use(choice, repair)

    @property
    def active(self) -> Submodel | None:
        """The size that this model's own session runs; None where there is only one."""
        return self._session.active

    @property
    def repair_mode(self) -> RepairMode:
        """What this model's own session does with positions that another size wrote."""
        return self._session.repair_mode

    @repair_mode.setter
    def repair_mode(self, mode: RepairMode) -> None:
        self._session.repair_mode = mode

    @property
    def policy(self) -> Policy | None:
        """Who chooses the size of this model's own session before every token; None for nobody."""
        return self._session.policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        self._session.policy = policy

    @property
    def draft(self) -> Draft | None:
        """The draft of this model's own session, and what has been learnt about it."""
        return self._session.draft

    def speculate(
        self,
        choice: str | Submodel,
        gamma: int | None = None,
        format: WeightFormat | None = None,
    ) -> Draft:
        """Draft with a sub-model on this model's own session; returns what is learnt about it.

        gamma None adapts the number of guesses to what is measured, down to none. format gives the
        draft its own copy of the weights, "q4_0" a small one; None shares the model's.
        """
        part = self.engine.sizes.named(choice)
        drafting = self.engine.sizes.view(part) if format is None else self._copy(part, format)
        self._session.draft = draft = Draft(drafting, gamma)
        return draft

    def _copy(self, part: Submodel, format: WeightFormat) -> Decoder:
        """A sub-model with weights of its own, read again from the file, activations as here."""
        whole = without_towers(open_source(self.checkpoint.path))
        source = cut(without_padding(whole), part)
        here = self.engine.decoder
        tree = assemble(source, format, here.embed_tokens.dtype, here.norm.weight.device)
        return tree.language_model

    def prompt(self, prompt: PromptLike, viewing: Viewing | None = None) -> Prompt:
        """A prompt ready to be read: text gets `<bos>`, messages the chat template, ids stay.

        The media in messages are opened; viewing says how they are looked at, or else the model's
        own files do. Raises
        UnsupportedError for media that this model has no sense for, InputError for broken ones.
        """
        if isinstance(prompt, Prompt):
            return prompt.checked()
        if isinstance(prompt, str):
            return Prompt(tuple(self.tokenizer.encode(prompt)))
        if isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping):
            album = self.album(viewing)
            made = chat.render(prompt, self.tokenizer, album=album)  # type: ignore[arg-type]
            if made.pictures or made.recordings:  # what is too long is told with what fills it
                placeholders.check_room(made.ids, album.senses, self.engine.context)
            return made
        try:
            ids = token_ids(prompt)
        except InputError as error:
            raise InputError(
                f"a prompt is text, a list of messages or a list of token ids: {error}"
            ) from None
        if not ids:
            raise InputError("the prompt is empty; give text, messages or token ids")
        return Prompt(tuple(ids))

    def prompt_ids(self, prompt: PromptLike) -> list[int]:
        """Token ids of a prompt."""
        return list(self.prompt(prompt).ids)

    # ---- eyes and ears ---------------------------------------------------------------------------

    @property
    def viewing(self) -> Viewing:
        """How media are looked at if nobody says otherwise, as the model's own files have it."""
        return self.checkpoint.preprocessor.viewing

    def album(self, viewing: Viewing | None = None) -> Album:
        """What opens the media of one prompt, as this model takes them."""
        return Album(self.checkpoint.config, self.viewing if viewing is None else viewing)

    def encode_image(self, picture: PictureSource, side: int | None = None) -> Tensor:
        """Soft tokens (J, D) of a picture: a path, bytes, an open file or a PIL image.

        side is 256, 512 or 768 pixels for Gemma 3n.
        """
        asked = self.viewing.side if side is None else side
        return self.perception.see(read_image(picture), side_of(self.checkpoint.config, asked))

    def encode_audio(self, samples: Any) -> Tensor:
        """Soft tokens (J, D) of a recording, one for 160 ms: a file, or samples at 16 kHz.

        Raises InputError for one under 33 ms, which makes none.
        """
        return self.perception.hear(samples_of(samples))

    def audio_stream(self) -> AudioStream:
        """An ear for a sound that is still going on: push samples, get soft tokens."""
        return self.perception.stream()

    def stream(
        self, prompt: PromptLike, progress: Progress | None = None, **sampling: Any
    ) -> Generator[Piece]:
        """Continue a prompt piece by piece. Keyword arguments are `Sampling`'s fields.

        `progress` gets prompt tokens read and in all. The model's session keeps what was written,
        so that a longer prompt with the same beginning only reads the rest.
        """
        settings = Sampling.of(sampling)
        ready = self.prompt(prompt)
        check(ready.ids, self.config, self.engine.context)
        return self._pieces(ready, settings, self.perception.of(ready), progress)

    def generate(self, prompt: PromptLike, **sampling: Any) -> Completion:
        """Continue a prompt to its end. Keyword arguments are `Sampling`'s fields."""
        settings = Sampling.of(sampling)
        ready = self.prompt(prompt)
        check(ready.ids, self.config, self.engine.context)
        soft = self.perception.of(ready)
        with self._line.lock:
            pieces = list(self._pieces(ready, settings, soft))
            return self.completion(ready.ids, pieces, settings.n)

    def _pieces(
        self,
        ready: Prompt,
        sampling: Sampling,
        soft: Sequence[Soft],
        progress: Progress | None = None,
    ) -> Generator[Piece]:
        """A turn of this model's own session; while a stream has that, of a new one in its place,
        so that the stream goes on as it would have."""
        session = self._session
        while (turn := session.turns.claim()) is None:
            session = self._session = session.another()
        yield from session.answer(turn, ready.ids, sampling, progress, soft)

    def chat(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a conversation: messages of role system, user or assistant, with content."""
        return self.generate(messages, **sampling)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Scores of the next token after every position, (T, V) float32: the scoring path."""
        return self.engine.score(ids)

    def completion(self, ids: Sequence[int], pieces: Sequence[Piece], n: int = 1) -> Completion:
        """Pieces of a stream, whole or cut short, as one result."""
        choices = tuple(join([p for p in pieces if p.index == index]) for index in range(n))
        timings = self.timings
        timings.load_s, self.load_s = self.load_s, 0.0
        return Completion(choices, tuple(ids), timings, self._session.seed)


def load(
    model: str | Path | None = None,
    *,
    submodel: str | Submodel | None = None,
    format: WeightFormat = "native",
    device: str = "auto",
    threads: int | None = None,
    context: int | None = None,
    kv_format: KVFormat | None = None,
    ple: Where | None = None,
    mmproj: str | Path | None = None,
    repack: bool = True,
    progress: Progress | None = None,
) -> Model:
    """Load a model from a path, a hub id, or the embedded default.

    submodel runs a part of a Gemma 3n: a published name, a file, or a `Submodel`. format "native"
    keeps weights as the file has them; "bf16" and "f32" widen them at load, "q8_0" and "q4_0"
    quantise them. device "auto" is CUDA where there is one. threads is for the whole process, as
    torch's are. context limits the tokens a session may hold; kv_format "plain" keeps their keys
    and values in the model's dtype, "bf16" and "int8" in 16 and 8 bits, and None is "bf16" where
    the native kernels run, else "plain". ple is where Gemma 3n's per-layer embeddings lie: the
    file, RAM, the device. mmproj is the eye and ear of a GGUF, if they do not lie beside it. repack
    moves quantised weights out of the file's pages into an order that the native kernels read
    faster, where memory has room for it; without it they stay mapped. Raises `GemeloError` for what
    cannot be loaded, with the cure.
    """
    started = time.perf_counter()
    if threads is not None:
        if not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise InputError(f"threads = {threads}; expected 1 to 1024")
        torch.set_num_threads(threads)
        cpu.set_threads(threads)
    path = resolve(None if model is None else str(model))
    eye = None if mmproj is None else expanded(str(mmproj))

    def finish(decoder: Decoder) -> None:
        if decoder.config.hidden_size_per_layer_input:
            prepare(decoder, ple, place(device))
        if is_native(decoder):
            decoder.native_program = NativeProgram(decoder, repacked(decoder) if repack else None)

    checkpoint = load_checkpoint(path, format, place(device), progress, eye, finish)
    engine = Engine(checkpoint.decoder, checkpoint.tokenizer, context, kv_format=kv_format)
    loaded = Model(checkpoint, engine, time.perf_counter() - started)
    return loaded if submodel is None else loaded.submodel(submodel)


def prepare(decoder: Decoder, ple: Where | None, device: torch.device) -> None:
    """Put the per-layer table where it was asked for, and sparse layers' columns together.

    Not asked, the table stays where it lies: in the file, if that could be mapped.
    """
    if ple is not None or is_mapped(as_packed(decoder.embed_tokens_per_layer).blocks):
        place_table(decoder, ple or "disk", device)
    decoder.transpose_down_proj()


def place(device: str) -> torch.device:
    """A torch device from its name; "auto" is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: this torch finds no CUDA device; use --device cpu")
    return chosen
