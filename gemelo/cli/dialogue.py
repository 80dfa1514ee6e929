"""Dialogue: a model, a conversation and the settings of its answers; asking, and asking again.

What the loop and the /commands work on. A question that got no answer is taken back, so that the
conversation always ends where both sides have spoken; what the session has read of it stays in the
KV cache, and the same question again costs only the rest.

    dialogue = Dialogue(model, session, conversation, Sampling(seed=1), quiet=False, verbose=False)
    dialogue.say("Hi");  dialogue.regenerate()
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemelo.checkpoints.locate import expanded
from gemelo.cli import elastic
from gemelo.cli.answer import answer, note_length_stop, note_timings
from gemelo.cli.conversation import TEXT_ONLY, Conversation, Snapshot
from gemelo.cli.lines import QUOTES
from gemelo.cli.media import check_extra
from gemelo.cli.paths import exists, media_in, typed_paths
from gemelo.cli.terminal import note, show
from gemelo.config.sampling import Sampling
from gemelo.errors import GemeloError, InputError
from gemelo.inputs.media.parts import NOUNS, READERS, REMOTE, MediaPart, Modality, open_media
from gemelo.inputs.prompt.placeholders import check_modalities

if TYPE_CHECKING:
    from gemelo.api import Model
    from gemelo.config import Submodel
    from gemelo.engine.completion import Completion
    from gemelo.engine.session import Session
    from gemelo.inputs.prompt.media_loader import VisionOptions


class Dialogue:
    """A model, a session, what was said, and how answers are made. `last` is the last answer."""

    def __init__(
        self,
        model: Model,
        session: Session,
        conversation: Conversation,
        sampling: Sampling,
        vision_options: VisionOptions | None = None,
        *,
        quiet: bool,
        verbose: bool,
    ) -> None:
        """vision_options: of what is attached; None as the model's files say."""
        self.model, self.session = model, session
        self.conversation, self.sampling = conversation, sampling
        self.vision_options = vision_options
        self.quiet, self.verbose = quiet, verbose
        self.last: Completion | None = None
        self.over = False
        self._made_with: tuple[Sampling, Submodel | None] | None = None  # the last answer

    @property
    def has_template(self) -> bool:
        """Whether the model can converse; without a chat template it continues text."""
        return self.model.tokenizer.chat_template is not None

    def say(self, text: str) -> None:
        """Ask, stream the answer, and keep both; an empty line says nothing."""
        if not text:
            return
        before = self.conversation.snapshot()
        self.conversation.ask(text)
        self._answer(before)

    def regenerate(self) -> None:
        """Answer the last question again. Raises `InputError` where none was answered."""
        before = self.conversation.snapshot()
        if not self.conversation.take_back("assistant"):
            raise InputError("there is no answer to take back")
        if self._will_repeat() and not self.quiet:
            note(self._why_the_same())
        self._answer(before)

    def _will_repeat(self) -> bool:
        """Whether the last answer was whole, and made just as the next one will be."""
        whole = self.last is not None and self.last.finish_reason != "cancelled"
        fixed = self.sampling.greedy or self.sampling.seed is not None
        return whole and fixed and self._made_with == (self.sampling, self.session.active)

    def _why_the_same(self) -> str:
        if self.sampling.temperature == 0:
            return "temperature 0 gives the same text again; /set temperature 1 draws another"
        if self.sampling.greedy:
            return "top_k 1 gives the same text again; /set top_k 64 draws another"
        seed = self.sampling.seed
        return f"seed {seed} gives the same text again; /set seed none draws a new seed each time"

    def _answer(self, before: Snapshot) -> None:
        """Stream the answer and keep it; without one, all is as it was `before`.

        After an error nothing is attached: a file that fails would fail every question.
        """
        text = ""
        try:
            prompt = self.model.prompt(self.conversation.prompt(), self.vision_options)
            made = answer(self.model, self.session, prompt, self.sampling, show, self.quiet)
            text = made.text
        except GemeloError:
            before[1].clear()
            raise
        finally:
            if text:
                self.conversation.answer(text)
            else:
                self.conversation.restore(before)
        show("\n")
        self._tell(made, len(prompt.ids))

    def _tell(self, made: Completion, num_prompt: int) -> None:
        """Why the answer ended, and what it cost, if it began at all."""
        if made.finish_reason == "cancelled":
            note(self._stopped(made, num_prompt))
            if not made.token_ids:
                return
        self.last, self._made_with = made, (self.sampling, self.session.active)
        if not self.quiet:
            limit, cure = self.sampling.max_tokens, "/set max_tokens N"
            note_length_stop(self.model, made.choices, limit, cure)
        if self.verbose:
            note_timings(made)
            for line in elastic.summary(self.session):
                note(line)

    def _stopped(self, made: Completion, num_prompt: int) -> str:
        num_read = len(self.session.ids)
        if made.token_ids or num_read >= num_prompt or self.quiet:
            return "(stopped)"
        return (
            f"(stopped; {num_read:,} of the prompt's {num_prompt:,} tokens are kept: the same "
            "question again reads only the rest)"
        )

    # ---- pictures and sound ----------------------------------------------------------------------

    def attach(self, kind: Modality, names: Sequence[str]) -> None:
        """Files for what is said next: all of them, or none if one cannot be opened."""
        check_modalities([MediaPart(kind, name) for name in names], self.model.encoders.modalities)
        if not self.has_template:
            raise InputError(TEXT_ONLY)
        check_extra(kind, READERS[kind])
        sources = [name if name.lower().startswith(REMOTE) else expanded(name) for name in names]
        for source in sources:
            with open_media(source, kind):
                pass  # an error now, for what cannot be opened
        for source in sources:
            self.conversation.attach(kind, Path(source))

    def check_no_media(self, text: str) -> None:
        """Raise `InputError` for a message that names a picture or a sound of this machine, which
        would go as the letters of its path; one that is nothing else whatever the model reads."""
        if not (found := media_in(text)):
            return
        (kind, name), more = found[0], len(found) - 1
        reads = self._reads(kind)
        if not reads and not all(map(exists, typed_paths(text))):  # words, and a name among them
            return
        others = f" (and {more} more)" if more else ""
        cure = (
            f"/{kind} {name} attaches it to what you say next" if reads else "this model reads none"
        )
        raise InputError(
            f"{name} is a {NOUNS[kind]}{others} and would go as text; {cure}, {QUOTES} around the "
            "message says it as it is"
        )

    def _reads(self, kind: Modality) -> bool:
        try:
            check_modalities([MediaPart(kind, "")], self.model.encoders.modalities)
        except GemeloError:
            return False
        return self.has_template
