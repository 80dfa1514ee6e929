"""The /commands of `gemelo chat`: what each does to a dialogue, and how /help puts it.

Names are those of llama.cpp's and Ollama's chats where these have them. A command that is refused
raises `GemeloError` and has changed nothing.

    COMMANDS["/set"].act(dialogue, "temperature 0.5")
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

from gemelo.checkpoints.locate import expanded
from gemelo.cli import elastic
from gemelo.cli.answer import note_timings
from gemelo.cli.dialogue import Dialogue
from gemelo.cli.groups import Elastic
from gemelo.cli.lines import QUOTES, unquoted
from gemelo.cli.paths import typed_path, typed_paths
from gemelo.cli.settings import in_words, setting_name, with_setting
from gemelo.cli.settings import names as setting_names
from gemelo.cli.terminal import note, page, size
from gemelo.cli.wrapping import stderr_width, two_columns
from gemelo.config import Submodel
from gemelo.errors import InputError, cut
from gemelo.inputs.media.parts import Modality


class Command(NamedTuple):
    """What a word that begins with / does, and how /help puts it."""

    act: Callable[[Dialogue, str], None]
    usage: str
    help: str


def is_one(word: str) -> bool:
    """Whether a word is a command."""
    return word in COMMANDS or word in ALSO


def find(word: str) -> Command:
    """The command of a word. Raises `InputError` for one that is none, with the closest."""
    command = COMMANDS.get(ALSO.get(word, word))
    if command is None:
        close = get_close_matches(word[:20], [*COMMANDS, *ALSO], 1, 0.6)
        hint = f"did you mean {close[0]}?" if close else "/help lists them."
        raise InputError(
            f"{cut(word)} is no command; {hint} To say it to the model, put it between {QUOTES} "
            f"and {QUOTES}"
        )
    return command


def _help(dialogue: Dialogue, rest: str) -> None:
    rows = [
        (f"{name} {command.usage}".rstrip(), command.help) for name, command in COMMANDS.items()
    ]
    rows.append((f"{QUOTES} ... {QUOTES}", "a message of several lines, or one that begins with /"))
    rows.append(("Alt-Enter", "begin a new line; Enter sends"))
    page(two_columns(rows, stderr_width()))


# ---- the conversation ----------------------------------------------------------------------------


def _clear(dialogue: Dialogue, rest: str) -> None:
    dialogue.conversation.clear()
    note("the conversation is forgotten")


def _system(dialogue: Dialogue, rest: str) -> None:
    if not dialogue.has_template:
        raise InputError("a base model takes no instructions; it continues the text")
    if rest:
        dialogue.conversation.system = unquoted(rest)
    page(f"instructions: {dialogue.conversation.system or 'none'}")


def _save(dialogue: Dialogue, rest: str) -> None:
    path = expanded(typed_path(_given("/save", rest)))
    dialogue.conversation.save(path)
    note(f"wrote {path}: {len(dialogue.conversation.messages)} messages")


def _load(dialogue: Dialogue, rest: str) -> None:
    path = expanded(typed_path(_given("/load", rest)))
    dialogue.conversation.load(path)
    note(f"read {path}: {len(dialogue.conversation.messages)} messages")


def _regen(dialogue: Dialogue, rest: str) -> None:
    dialogue.regenerate()


def _leave(dialogue: Dialogue, rest: str) -> None:
    dialogue.over = True


def _given(command: str, rest: str) -> str:
    if not rest:
        raise InputError(f"{command} needs a file's name")
    return rest


# ---- pictures and sound --------------------------------------------------------------------------


def _attach(kind: Modality) -> Callable[[Dialogue, str], None]:
    def attach(dialogue: Dialogue, rest: str) -> None:
        names = typed_paths(_given(f"/{kind}", rest))
        dialogue.attach(kind, names)
        for name in names:
            note(f"{name} goes with what you say next")

    return attach


# ---- settings ------------------------------------------------------------------------------------


def _set(dialogue: Dialogue, rest: str) -> None:
    name, value = _name_and_value(rest)
    if name == "parameter":  # as Ollama has it
        name, value = _name_and_value(value)
    if not name:
        for field in setting_names():
            note(f"  {field} {in_words(dialogue.sampling, field)}")
    elif name in ("verbose", "quiet") and not value:
        dialogue.verbose = name == "verbose"
        note("timings follow every answer" if dialogue.verbose else "no timings; /stats has them")
    elif name == "system" and value:
        _system(dialogue, value)
    else:
        field = setting_name(name)
        if value:
            dialogue.sampling = with_setting(dialogue.sampling, field, value)
        note(f"{field} = {cut(value) if value else in_words(dialogue.sampling, field)}")


def _name_and_value(words: str) -> tuple[str, str]:
    """`temperature 0.5`, or `temperature=0.5`."""
    name = re.split(r"[\s=]", words.strip(), maxsplit=1)[0]
    return name, words.strip().removeprefix(name).lstrip().removeprefix("=").strip()


def _show(dialogue: Dialogue, rest: str) -> None:
    views = {"": _info, "info": _info, "parameters": _set, "system": _system}
    if rest == "template":
        page(str(dialogue.model.tokenizer.chat_template or "no chat template: a base model"))
    elif rest in views:
        views[rest](dialogue, "")
    else:
        known = "info, parameters, system, template"
        raise InputError(f"/show {cut(rest)}: nothing of that name; known: {known}")


def _info(dialogue: Dialogue, rest: str) -> None:
    model, active = dialogue.model, dialogue.session.active
    file, reads = model.checkpoint, model.encoders.modalities
    media = [noun for noun, there in (("pictures", reads.image), ("sound", reads.audio)) if there]
    kind = f"{model.config.model_type}, {model.config.num_hidden_layers} layers"
    rows = [
        ("model", str(file.path)),
        ("family", f"{kind}; {active.name or 'a sub-model'}" if active else kind),
        ("size", f"{size(file.weights.nbytes)} of weights, format {file.format}"),
        ("context", f"{model.context:,} tokens"),
        ("reads", ", ".join(["text", *media])),
        ("chat template", "yes" if dialogue.has_template else "no: a base model continues text"),
    ]
    page(two_columns(rows, stderr_width()))


def _stats(dialogue: Dialogue, rest: str) -> None:
    last, model = dialogue.last, dialogue.model
    if last is None:
        note("nothing was answered yet")
        return
    note_timings(last)
    num_tokens = len(last.prompt_token_ids) + len(last.token_ids)
    note(
        f"context: {num_tokens:,} of {model.context:,} tokens used; "
        f"KV cache {size(dialogue.session.cache.nbytes)}"
    )
    for line in elastic.summary(dialogue.session):
        note(line)


# ---- sub-models ----------------------------------------------------------------------------------


def _submodel(dialogue: Dialogue, rest: str) -> None:
    session = dialogue.session
    if rest:
        _check_free(dialogue, rest)
        session.use(rest, session.rebuild_mode)
        active = session.active
        note(f"from the next token on: {active.name if active else rest}")
        return
    lines = elastic.sizes(dialogue.model, session.active, stderr_width() or 80)
    page("\n".join(lines) or "this model has no sub-models; Gemma 3n has")


def _check_free(dialogue: Dialogue, choice: str) -> None:
    """Raise InputError where a choice would do nothing: under a policy, or of what drafts."""
    session = dialogue.session
    if session.policy is not None:
        raise InputError("a policy chooses the sub-model; /policy off ends it")
    if session.draft is not None:
        name = Submodel.of(choice, dialogue.model.config).name
        if name and session.draft.name == name:
            raise InputError(f"{name} drafts, and cannot draft for itself; /speculate off ends it")


def _speculate(dialogue: Dialogue, rest: str) -> None:
    session = dialogue.session
    if rest == "off":
        session.draft = None
        note("no draft from the next answer on")
    elif not rest:
        drafts = session.draft and f"{session.draft.name} drafts; /speculate off ends it"
        note(drafts or "no draft; /speculate NAME begins one")
    elif session.policy is not None:
        raise InputError("a policy chooses the sub-model already; /policy off ends it")
    else:
        _apply(dialogue, Elastic(speculate=rest, rebuild=session.rebuild_mode))
        active = session.active
        own = (active and active.name) or "the model"
        note(f"from the next answer on {rest} drafts; the text stays what {own} says alone")


def _policy(dialogue: Dialogue, rest: str) -> None:
    session = dialogue.session
    if rest == "off":
        session.policy = None
        active = session.active
        note(f"no policy; {active.name} stays" if active else "no policy")
    elif not rest:
        name = elastic.policy_name(session)
        note(
            f"{name} chooses the sub-model; /policy off ends it"
            if name
            else "no policy; /policy KIND:N begins one"
        )
    elif session.draft is not None:
        raise InputError("a draft is in use, and chooses the sub-model too; /speculate off ends it")
    elif rest.startswith("memory:") and _is_repacked(dialogue):
        raise InputError(
            f"/policy {cut(rest)}: the weights were repacked at load, and a policy lets go mapped "
            "ones alone; start with --no-repack"
        )
    else:
        _apply(dialogue, Elastic(policy=rest, rebuild=session.rebuild_mode))
        note(f"from the next token on: {rest}")


def _is_repacked(dialogue: Dialogue) -> bool:
    from gemelo.engine.native_decoder import NativeDecoder

    decoder = dialogue.model.engine.decoder
    return isinstance(decoder, NativeDecoder) and decoder.panels is not None


def _apply(dialogue: Dialogue, options: Elastic) -> None:
    """As the command line's options do it, with errors in the chat's words."""
    try:
        elastic.apply(dialogue.model, dialogue.session, options)
    except InputError as error:
        text = str(error).replace("--speculate", "/speculate").replace("--policy", "/policy")
        raise type(error)(text) from None


COMMANDS = {
    "/help": Command(_help, "", "this list; /? too"),
    "/clear": Command(_clear, "", "forget the conversation, keep the instructions"),
    "/system": Command(_system, "TEXT", "set the instructions; alone, show them"),
    "/set": Command(
        _set, "NAME VALUE", "set how tokens are chosen; alone, show all; /set verbose, /set quiet"
    ),
    "/show": Command(_show, "info", "the model; or parameters, system, template"),
    "/save": Command(_save, "FILE", "write the conversation as JSON"),
    "/load": Command(_load, "FILE", "read one, in place of this"),
    "/image": Command(_attach("image"), "FILE", "attach a picture to what you say next"),
    "/audio": Command(_attach("audio"), "FILE", "attach a recording to it"),
    "/video": Command(_attach("video"), "FILE", "attach a video to it"),
    "/submodel": Command(_submodel, "NAME", "change the sub-model; alone, list them"),
    "/speculate": Command(_speculate, "NAME|off", "draft with a sub-model, or NAME:int4"),
    "/policy": Command(
        _policy, "KIND:N|off", "choose the sub-model by latency, memory or difficulty"
    ),
    "/stats": Command(_stats, "", "what the last answer took"),
    "/regen": Command(_regen, "", "answer the last question again"),
    "/bye": Command(_leave, "", "leave; so do /exit, /quit and Ctrl-D"),
}
ALSO = {"/?": "/help", "/exit": "/bye", "/quit": "/bye"}
