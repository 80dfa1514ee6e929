"""Python API: `load` a checkpoint; generate, stream, chat, scores and embeddings with a `Model`.

`Model` is what a user holds: a loaded checkpoint and an engine. What belongs to one conversation is
a `Session`'s. A prompt is text, a list of messages, or token ids. Messages may hold pictures,
recordings and videos, if the model has towers for them. They need a chat template, which an
instruction-tuned model carries; a base model says that it has none.

Threads may share a model: what they ask meanwhile is computed together, and every text is what it
would have been alone. A stream has its session until it ends.

Text on a CPU takes no PyTorch; what gives tensors does: `logits`, `forward`, embeddings of media.

    model = gemelo.load("gemma-3-1b-it")
    print(model.chat([{"role": "user", "content": "Hello!"}]).text)

J embeddings of a picture or a recording, D width, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

from numpy.typing import NDArray

from gemelo.api.cut_decoder import cut_decoder
from gemelo.checkpoints.load import Checkpoint
from gemelo.config import ModelConfig, Submodel
from gemelo.config.absent_arguments import FORWARDING, GENERATING, refusing
from gemelo.config.options import WeightFormat
from gemelo.config.sampling import Sampling, SamplingSettings
from gemelo.engine.completion import Completion
from gemelo.engine.continuation import Piece
from gemelo.engine.elastic.speculative import Draft
from gemelo.engine.engine import Engine
from gemelo.engine.media.encoders import MediaEncoders
from gemelo.engine.memory.residency import release_tail, used_bytes
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.request import Request
from gemelo.engine.session import Progress, Session
from gemelo.engine.together import complete_all, stream_all
from gemelo.engine.tokens import Tokens, checked
from gemelo.engine.unpicklable import Unpicklable
from gemelo.errors import InputError
from gemelo.extras import require
from gemelo.inputs.media.image import PictureSource, read_image
from gemelo.inputs.prompt.any_prompt import parse_prompt
from gemelo.inputs.prompt.chat import Prompt
from gemelo.inputs.prompt.media_loader import MediaLoader, VisionOptions, image_size_of, samples_of
from gemelo.inputs.prompt.messages import are_messages, batch_of
from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer
from gemelo.kernels.quants import Floats

if TYPE_CHECKING:
    from torch import Tensor

    from gemelo.engine.media.audio_stream import AudioStream
    from gemelo.engine.modules.decoder import ModuleDecoder
    from gemelo.models.multimodal import Towers
    from gemelo.models.outputs import CausalLMOutput

Message = Mapping[str, Any]
PromptLike = str | Sequence[Message] | Sequence[int] | NDArray[Any] | Prompt | Tokens


class Model(Unpicklable):
    """A loaded model. `load` makes one; what belongs to one conversation is a `Session`'s."""

    def __init__(self, checkpoint: Checkpoint, engine: Engine, load_s: float = 0.0) -> None:
        """load_s: seconds that loading took, which the first turn's timings count."""
        self.checkpoint, self.engine, self.load_s = checkpoint, engine, load_s
        self.encoders = MediaEncoders(self._towers, checkpoint.config)
        engine.load_s_due = load_s
        self._cuts: tuple[Submodel, ...] = ()  # that make this model of the checkpoint's

    @property
    def config(self) -> ModelConfig:
        """The decoder's: of a sub-model, that of the part that runs."""
        return self.engine.decoder.config

    @property
    def tokenizer(self) -> PreTrainedTokenizer:
        """The checkpoint's; its chat template is None for a base model."""
        return self.checkpoint.tokenizer

    @property
    def device(self) -> str:
        """Where it computes: "cpu", or a CUDA device."""
        return self.engine.decoder.device_name

    @property
    def context(self) -> int:
        """The most tokens that a session holds."""
        return self.engine.context

    def session(self) -> Session:
        """A new conversation: a session with a KV cache of its own."""
        return self.engine.session()

    def submodel(self, choice: str | Submodel) -> Model:
        """A sub-model as a model: a name, a file or a `Submodel`. It shares every weight of this
        one and allocates none."""
        part = self.engine.views.parse(choice)
        view = self.engine.views.view(part)
        old = self.engine
        engine = Engine(
            view,
            old.tokenizer,
            old.context,
            old.chunk,
            old.kv_format,
            part.name or "custom",
            old.loop,
            old.kv_limit_bytes,
        )
        nested = Model(self.checkpoint, engine, self.load_s)
        nested.encoders = self.encoders  # and what they encoded lately
        nested._cuts = (*self._cuts, part)
        return nested

    def release(self, choice: str | Submodel) -> int:
        """Let go the mapped pages of weights that a sub-model does not run; returns their bytes.

        For `memory_policy`. They are read from the file again where they are needed. A model that
        was loaded with repack=False has such pages.
        """
        return release_tail(self.engine.decoder, self.engine.views.parse(choice))

    def draft(
        self,
        choice: str | Submodel,
        gamma: int | None = None,
        format: WeightFormat | None = None,
    ) -> Draft:
        """A sub-model that drafts for a session: `session.draft = model.draft("E2B")`.

        gamma None adapts the number of guesses to what is measured, down to none. format gives the
        draft its own copy of the weights, "q4_0" a small one; None shares the model's.
        """
        part = self.engine.views.parse(choice)
        if format is None:
            decoder = self.engine.views.view(part)
        else:
            decoder = cut_decoder(self.checkpoint.path, (*self._cuts, part), format, self.device)
        own = "" if format is None else f" ({format})"
        return Draft(decoder, gamma, name=f"{part.name or 'custom'}{own}")

    def prompt(self, prompt: PromptLike, vision_options: VisionOptions | None = None) -> Prompt:
        """A prompt ready to be read: text gets `<bos>`, messages the chat template, ids stay.

        The media in messages are opened; vision_options says how they are looked at, or else the
        model's own files do. Raises UnsupportedError for media that this model has no tower for,
        InputError for broken ones.
        """
        return parse_prompt(
            prompt, self.tokenizer, self.context, lambda: self.media_loader(vision_options)
        )

    def tokens(self, prompt: PromptLike, vision_options: VisionOptions | None = None) -> Tokens:
        """A prompt as `Session.stream` takes it: ids, and the embeddings of its media, which go
        through their towers here. Raises InputError for one that cannot be run."""
        if isinstance(prompt, Tokens):
            return checked(prompt, self.config, self.context)
        rendered = self.prompt(prompt, vision_options)
        checked(Tokens(rendered.ids), self.config, self.context)
        return self.encoders.tokens(rendered)

    # ---- media ----------------------------------------------------------------------------------

    @property
    def vision_options(self) -> VisionOptions:
        """How media are looked at if nobody says otherwise, as the model's own files have it."""
        return self.checkpoint.preprocessor.vision_options

    def media_loader(self, vision_options: VisionOptions | None = None) -> MediaLoader:
        """What opens the media of one prompt, as this model takes them."""
        return MediaLoader(
            self.checkpoint.config,
            self.vision_options if vision_options is None else vision_options,
        )

    def encode_image(self, picture: PictureSource, image_size: int | None = None) -> Tensor:
        """Embeddings (J, D) of a picture: a path, bytes, an open file or a PIL image.

        image_size is 256, 512 or 768 pixels for Gemma 3n.
        """
        size = self.vision_options.image_size if image_size is None else image_size
        size = image_size_of(self.checkpoint.config, size)
        return self.encoders.encode_image(read_image(picture), size).clone()  # ours stays

    def encode_audio(self, samples: Any) -> Tensor:
        """Embeddings (J, D) of a recording, one for 160 ms: a file, or samples at 16 kHz.

        Raises InputError for one under 33 ms, which makes none.
        """
        return self.encoders.encode_audio(samples_of(samples))

    def audio_stream(self) -> AudioStream:
        """The audio encoder for a sound that is still going on: push samples, get embeddings."""
        return self.encoders.audio_stream()

    # ---- text ------------------------------------------------------------------------------------

    @refusing(GENERATING)
    def stream(
        self,
        prompt: PromptLike,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Generator[Piece]:
        """Continue a prompt piece by piece, as `sampling` says or its fields given as keywords.

        The prompt is checked and its media are encoded at once, and read when the first piece is
        asked for; close the stream, or stop, at any time. `progress` gets prompt tokens read and in
        all. Of a prompt that begins as an earlier one did only the rest is read.
        """
        chosen = Sampling.of(settings, sampling)
        return self._stream(self.tokens(prompt), chosen, progress)

    @overload
    def generate(
        self,
        prompt: PromptLike,
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> list[Completion]: ...

    @refusing(GENERATING)
    def generate(
        self,
        prompt: PromptLike | list[str] | tuple[str, ...],
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Completion | list[Completion]:
        """Continue a prompt to its end, as `sampling` says or its fields given as keywords.

        A list of texts is as many prompts: a list of completions, computed together, and the same
        texts as a loop over them gives. Threads may call it: theirs are computed together too.
        """
        chosen = Sampling.of(settings, sampling)
        if texts := batch_of(prompt):
            every = [self.tokens(text) for text in texts]  # what is wrong with one is said first
            return complete_all(self.engine.requests, [Request(ids, chosen) for ids in every])
        return self._generate(self.tokens(cast(PromptLike, prompt)), chosen)

    def _generate(self, tokens: Tokens, chosen: Sampling) -> Completion:
        """Here, if nobody else asks anything now; else together with the others."""
        request = Request(tokens, chosen)
        if self.engine.loop.is_shared:
            return complete_all(self.engine.requests, [request])[0]
        with self.engine.requests.alone(request) as (session, turn):
            pieces = list(session.answer(turn, tokens, chosen))
        return Completion.of(tokens.ids, pieces, session.timings, session.seed, chosen.n)

    def stream_many(
        self,
        prompts: Sequence[PromptLike],
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Generator[tuple[int, Piece]]:
        """Continue prompts together: pieces as they come, each with the index of its prompt.

        An error of one ends all; so does closing the stream, or leaving it.
        """
        chosen = Sampling.of(settings, sampling)
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
            raise InputError(
                f'stream_many takes a list of prompts: ["Hello", ...], not {prompts!r:.80}; '
                "Model.stream takes one"
            )
        requests = [Request(self.tokens(prompt), chosen) for prompt in prompts]
        return stream_all(self.engine.requests, requests)

    def request(
        self,
        prompt: PromptLike,
        sampling: Sampling | None = None,
        *,
        submodel: str | Submodel | None = None,
        speculate: str | Submodel | None = None,
        salt: str = "",
        deadline_s: float | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Request:
        """A prompt as `AsyncEngine.submit` takes it, its media encoded. submodel is the size that
        answers; speculate drafts for it. salt keeps callers apart who must not find each other's
        prompts held. It fails with UnavailableError when deadline_s have passed."""
        chosen = Sampling.of(settings, sampling)
        part = None if submodel is None else self.engine.views.parse(submodel)
        draft = None if speculate is None else self.draft(speculate)
        return Request(self.tokens(prompt), chosen, part, draft, salt, deadline_s)

    def _stream(
        self, tokens: Tokens, sampling: Sampling, progress: Progress | None
    ) -> Generator[Piece]:
        with self.engine.requests.alone(Request(tokens, sampling)) as (session, turn):
            yield from session.answer(turn, tokens, sampling, progress)

    def close(self) -> None:
        """End what is under way with `ModelClosedError`, and let go of every KV cache of requests.

        Also at the end of a `with` block. Its sub-models are closed with it; a sub-model that is
        closed lets go of its own KV caches alone."""
        if self.engine.owns_loop:
            self.engine.loop.close()
        self.engine.requests.clear()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @refusing(GENERATING)
    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Completion:
        """Answer a conversation: messages of role system, user or assistant, with content."""
        chosen = Sampling.of(settings, sampling)
        if not are_messages(messages):
            raise InputError(
                'chat takes a list of messages: [{"role": "user", "content": "Hello"}]; generate '
                f"takes a text: {messages!r:.80}"
            )
        return self._generate(self.tokens(messages), chosen)

    def __repr__(self) -> str:
        file, config, part = self.checkpoint, self.config, self.engine.views.name
        kinds = file.config.modalities
        towers = [name for name in ("image", "audio") if getattr(kinds, name) is not None]
        taken = f"takes {' and '.join(towers)}, " if towers else ""
        decoder, whole = self.engine.decoder, self.engine.views.whole
        size_bytes = used_bytes(decoder, whole) if part and whole else file.weights.nbytes
        return (
            f"Model({part and f'{part} of '}{file.path.name}: {config.model_type}, "
            f"{config.num_hidden_layers} layers, {size_bytes / 1e6:.0f} MB of weights in "
            f"{', '.join(file.weights.formats)}, {taken}context {self.context})"
        )

    @refusing(FORWARDING)
    def forward(
        self,
        prompt: PromptLike,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CausalLMOutput:
        """One forward of a whole prompt, with hidden states and attention probabilities on demand.

        It has no cache and runs module by module in PyTorch, slower than `scores`. Attentions take
        4 bytes * layers * heads * T * T. Nothing has a gradient; tensors are the caller's own.
        """
        modules = self._modules
        from gemelo.engine.modules.forward import forward

        return forward(modules, self.tokens(prompt), output_hidden_states, output_attentions)

    @cached_property
    def _modules(self) -> ModuleDecoder:
        """The decoder as modules, over the same weights."""
        require("torch", "torch", what="Model.forward and Model.logits")
        from gemelo.engine.modules.decoder import ModuleDecoder

        decoder = self.engine.decoder
        if isinstance(decoder, NativeDecoder):
            return ModuleDecoder.of(decoder)
        return cast(ModuleDecoder, decoder)

    def _towers(self) -> Towers:
        """The vision tower and the audio encoder, loaded now."""
        from gemelo.checkpoints.modules import tower_modules

        return tower_modules(self.checkpoint.source, self.checkpoint.format, self.device)

    def scores(self, prompt: PromptLike) -> Floats:
        """Scores of the next token after every position of a prompt, (T, V) float32; 1 MB a token.

        A text gets `<bos>` before it. Raises UnavailableError where memory has no room for them.
        """
        return self.engine.score(self.tokens(prompt))

    def logits(self, prompt: PromptLike) -> Tensor:
        """What `scores` gives, as a tensor over the same memory. Needs PyTorch."""
        require("torch", "torch", what="Model.forward and Model.logits")
        import torch

        return torch.from_numpy(self.scores(prompt))
