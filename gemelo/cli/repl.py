"""REPL of `gemelo chat`: /commands, multi-line input, history, and answers to all else.

Lines come from an iterator, so that the loop is the same on a terminal, from a pipe and in a test.
A line that begins with three double quotes goes on until they close it. Settings are the library's
`Sampling`, whole: every field of it can be set, and a value that makes no sense changes nothing.

    repl = Repl(model, session, conversation, Sampling(seed=1), quiet=False, verbose=False)
    repl.run(["Hi", "/stats"])
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gemelo.checkpoints.locate import cache_folder, expanded
from gemelo.cli import elastic
from gemelo.cli.answer import answer, note_length_stop, note_timings
from gemelo.cli.conversation import TEXT_ONLY, Conversation, Snapshot
from gemelo.cli.terminal import interactive, note, page, show, size, text_lines
from gemelo.config.sampling import Sampling
from gemelo.errors import GemeloError, InputError, UnavailableError
from gemelo.inputs.media.parts import MediaPart, Modality, open_media
from gemelo.inputs.prompt.placeholders import check_modalities

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

    from gemelo.api import Model
    from gemelo.engine.completion import Completion
    from gemelo.engine.session import Session
    from gemelo.inputs.prompt.media_loader import VisionOptions

QUOTES = '"""'


class Command(NamedTuple):
    """What a word that begins with / does, and how /help puts it."""

    act: Callable[[str], None]
    usage: str
    help: str


class Repl:
    """A model, a conversation and the settings of its answers."""

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
        self.model, self.session = model, session
        self.conversation, self.sampling = conversation, sampling
        self.vision_options = vision_options  # of what is attached; None as the model's files say
        self.quiet, self.verbose = quiet, verbose
        self.last: Completion | None = None
        self.over = False
        leave = Command(self._leave, "", "leave; so do /exit, /quit and Ctrl-D")
        self.commands = {
            "/help": Command(self._help, "", "this list; /? too"),
            "/clear": Command(self._clear, "", "forget the conversation, keep the instructions"),
            "/system": Command(self._system, "TEXT", "set the instructions; alone, show them"),
            "/set": Command(self._set, "NAME VALUE", "set how tokens are chosen; alone, show all"),
            "/save": Command(self._save, "FILE", "write the conversation as JSON"),
            "/load": Command(self._load, "FILE", "read one, in place of this"),
            "/image": Command(self._image, "FILE", "attach a picture to what you say next"),
            "/audio": Command(self._audio, "FILE", "attach a recording to it"),
            "/video": Command(self._video, "FILE", "attach a video to it"),
            "/submodel": Command(self._submodel, "NAME", "change the sub-model; alone, list them"),
            "/stats": Command(self._stats, "", "what the last answer took"),
            "/regen": Command(self._regen, "", "answer the last question again"),
            "/bye": leave,
        }
        self._also = {"/?": "/help", "/exit": "/bye", "/quit": "/bye"}

    def run(self, inputs: Iterable[str]) -> None:
        """Take one input after another until they end or /bye."""
        for text in inputs:
            try:
                self.take(text)
            except GemeloError as error:
                note(f"error: {error}")
            if self.over:
                return

    def take(self, text: str) -> None:
        """Obey a command, or answer what was said. Raises `GemeloError`; nothing is lost then."""
        word, _, rest = text.strip().partition(" ")
        if not text.startswith("/"):
            self.say(unquoted(text))
            return
        command = self.commands.get(self._also.get(word, word))
        if command is None:
            raise InputError(f"{word} is no command; /help lists them, {QUOTES} around it says it")
        command.act(rest.strip())

    def say(self, text: str) -> None:
        """Ask, stream the answer, and keep both; an empty line says nothing."""
        if not text:
            return
        before = self.conversation.snapshot()
        self.conversation.ask(text)
        self._answer(before)

    def _answer(self, before: Snapshot) -> None:
        """Stream the answer and keep it; without one, all is as it was `before`.

        After an error nothing is attached: a file that fails would fail every question.
        """
        text = ""
        try:
            prompt = self.model.prompt(self.conversation.prompt(), self.vision_options)
            self.last = answer(self.model, self.session, prompt, self.sampling, show, self.quiet)
            text = self.last.text
        except GemeloError:
            before[1].clear()
            raise
        finally:
            if text:
                self.conversation.answer(text)
            else:
                self.conversation.restore(before)
        show("\n")
        if self.last.finish_reason == "cancelled":
            note("(stopped)")
        if not self.quiet:
            note_length_stop(
                self.model, self.last.choices, self.sampling.max_tokens, "/set max_tokens N"
            )
        if self.verbose:
            note_timings(self.last)

    # ---- commands --------------------------------------------------------------------------------

    def _help(self, rest: str) -> None:
        for name, command in self.commands.items():
            note(f"  {f'{name} {command.usage}':18} {command.help}")
        note(f"  {QUOTES} ... {QUOTES}        several lines; Ctrl-J begins a new one, too")

    def _clear(self, rest: str) -> None:
        self.conversation.clear()
        note("the conversation is forgotten")

    def _system(self, rest: str) -> None:
        if self.model.tokenizer.chat_template is None:
            raise InputError("a base model takes no instructions; it continues the text")
        if rest:
            self.conversation.system = unquoted(rest)
        page(f"instructions: {self.conversation.system or 'none'}")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not name:
            for field, current in dataclasses.asdict(self.sampling).items():
                note(f"  {field} {json.dumps(current, ensure_ascii=False)}")
            return
        if not value.strip():
            raise InputError(f"/set {name} needs a value; /set alone shows all")
        self.sampling = with_setting(self.sampling, name, value.strip())
        note(f"{name} = {value.strip()}")

    def _save(self, rest: str) -> None:
        path = _path("/save", rest)
        self.conversation.save(path)
        note(f"wrote {path}: {len(self.conversation.messages)} messages")

    def _load(self, rest: str) -> None:
        path = _path("/load", rest)
        self.conversation.load(path)
        note(f"read {path}: {len(self.conversation.messages)} messages")

    def _stats(self, rest: str) -> None:
        if self.last is None:
            note("nothing was answered yet")
            return
        note_timings(self.last)
        num_tokens = len(self.last.prompt_token_ids) + len(self.last.token_ids)
        note(f"context {num_tokens} of {self.model.engine.context} tokens")
        note(f"KV cache {size(self.session.cache.nbytes)}")
        for line in elastic.summary(self.session):
            note(line)

    def _image(self, rest: str) -> None:
        self._attach("image", "/image", rest)

    def _audio(self, rest: str) -> None:
        self._attach("audio", "/audio", rest)

    def _video(self, rest: str) -> None:
        self._attach("video", "/video", rest)

    def _attach(self, kind: Modality, command: str, rest: str) -> None:
        path = _path(command, rest)
        check_modalities([MediaPart(kind, path)], self.model.encoders.modalities)
        if self.model.tokenizer.chat_template is None:
            raise InputError(TEXT_ONLY)
        with open_media(path, kind):
            pass  # an error now, for what cannot be opened
        self.conversation.attach(kind, path)
        note(f"{path} goes with what you say next")

    def _submodel(self, rest: str) -> None:
        if rest:
            self.session.use(rest, self.session.rebuild_mode)
            active = self.session.active
            note(f"from the next token on: {active.name if active else rest}")
            return
        from gemelo.config.submodel import HALF, WHOLE, names_in

        active = self.session.active
        note(f"active: {active.name if active else 'this model has no sub-models'}")
        if self.model.config.is_matformer:
            names = [*names_in(self.model.config), WHOLE, HALF]
            note(f"sub-models: {', '.join(names)}; or a .toml or .json file")

    def _regen(self, rest: str) -> None:
        before = self.conversation.snapshot()
        if not self.conversation.take_back("assistant"):
            raise InputError("there is no answer to take back")
        self._answer(before)

    def _leave(self, rest: str) -> None:
        self.over = True


def with_setting(sampling: Sampling, name: str, value: str) -> Sampling:
    """One field changed; `value` is JSON, or else a text as it is. Raises `InputError`."""
    if name == "n":
        raise InputError("a conversation has one continuation; n stays 1")
    settings = dataclasses.asdict(sampling)
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = None if value.lower() == "none" else value
    if name == "logit_bias" and isinstance(parsed, dict):
        parsed = {int(key) if key.isdecimal() else key: bias for key, bias in parsed.items()}
    if isinstance(settings.get(name), bool) and not isinstance(parsed, bool):
        raise InputError(f"{name} = {value}; expected true or false")
    return Sampling.of(settings | {name: parsed})


def _path(command: str, rest: str) -> Path:
    if not rest:
        raise InputError(f"{command} needs a file's name")
    return expanded(rest)


# ---- where lines come from -----------------------------------------------------------------------


def lines(quiet: bool) -> Iterator[str]:
    """Inputs from the terminal with editing and history, or from a pipe as they come."""
    if interactive():
        return typed(terminal_session(), quiet)
    if sys.stdin is None:
        raise InputError("there is no stdin to read the conversation from")
    return piped(sys.stdin.buffer)


def piped(source: Iterable[bytes]) -> Iterator[str]:
    """Lines as inputs, quoted blocks whole. Raises `InputError` for what is not UTF-8."""
    block = ""
    for line in text_lines(source):
        block += line
        if not unclosed(block):
            yield block.removesuffix("\n")
            block = ""
    if block:
        raise InputError(f"stdin ended inside {QUOTES}")


def typed(session: PromptSession[str], quiet: bool) -> Iterator[str]:
    """Inputs from a terminal until Ctrl-D; Ctrl-C clears the line, or hints how to leave."""
    while True:
        try:
            yield session.prompt(">>> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not session.default_buffer.text and not quiet:
                note("(Ctrl-D or /bye leaves)")


def terminal_session() -> PromptSession[str]:
    """An editor for inputs: history in a file, Ctrl-J for a new line, quoted blocks."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=history(),
        key_bindings=keys,
        output=create_output(sys.stderr),  # stdout is for the model's words
        multiline=Condition(lambda: unclosed(session.default_buffer.text)),
        prompt_continuation="... ",
    )
    return session


def history() -> History:
    """What was typed before, kept in the cache folder; in memory where that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a disk that is full by now ends no chat
                super().store_string(string)

    try:
        path = cache_folder() / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except (OSError, UnavailableError):
        return InMemoryHistory()
    return Kept(str(path)) if path.is_file() else InMemoryHistory()


def unclosed(text: str) -> bool:
    """Whether a quoted block has begun and not ended."""
    text = text.strip()
    return text.startswith(QUOTES) and not (text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES))


def unquoted(text: str) -> str:
    """The inside of a quoted block, or the text itself."""
    inner = text.strip()
    if inner.startswith(QUOTES) and not unclosed(inner):
        return inner[len(QUOTES) : -len(QUOTES)]
    return text
