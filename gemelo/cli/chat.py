"""`gemelo chat`: an interactive chat with a model in the terminal.

On a terminal, lines are edited, remembered and completed; from a pipe they are read as they come,
so that a conversation can be scripted. stdout carries the model's words, stderr all the rest.
Ctrl-C ends an answer between two tokens and keeps the part that was said. What is typed meanwhile
is kept for the next prompt. The whole conversation is passed at every turn; the session reads only
what is new of it.

    gemelo chat -m google/gemma-3-1b-it
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from gemelo.cli import elastic, media, options
from gemelo.cli.answer import load_model
from gemelo.cli.conversation import Conversation, prompt_for
from gemelo.cli.groups import Crops, Elastic, Frames, Loading, checked_sampling, grouped
from gemelo.cli.terminal import checked_text, interactive, note
from gemelo.cli.typeahead import kept_typeahead
from gemelo.config.sampling import CHAT, CONTINUATION
from gemelo.errors import InputError

if TYPE_CHECKING:
    from gemelo.cli.dialogue import Dialogue

BASE_MODEL = (
    "note: this is a base model: it continues what you type and cannot converse; "
    "`gemelo chat -m gemma3:1b` can (0.8 GB to fetch, no account needed)"
)


@dataclass(frozen=True)
class ChatSampling:
    """What is worth setting before a conversation; /set in it sets the rest."""

    max_tokens: options.MaxTokens = CHAT.max_tokens
    temperature: options.Temperature = CHAT.temperature
    top_k: options.TopK = CHAT.top_k
    top_p: options.TopP = CHAT.top_p
    min_p: options.MinP = CHAT.min_p
    repetition_penalty: options.RepetitionPenalty = CHAT.repetition_penalty
    seed: options.Seed = CHAT.seed
    stop: options.Stop = None


@grouped
def chat(
    ctx: typer.Context,
    *,
    system: options.System = None,
    frames: Frames,
    crops: Crops,
    model: options.Model = None,
    sizes: Elastic,
    loading: Loading,
    sampling: ChatSampling,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Talk to a model. A base model, without a chat template, continues the text instead, by 128
    tokens if --max-tokens does not say.

    \b
    gemelo chat -m google/gemma-3-1b-it
    gemelo chat -m google/gemma-3-1b-it --system "Answer in one sentence."
    gemelo chat -m google/gemma-3-4b-it --pan-and-scan
    printf 'Hi!\\n/save talk.json\\n' | gemelo chat -m google/gemma-3-1b-it

    /help inside lists the commands; /image, /audio and /video attach a file to what is said next.
    Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from gemelo.cli.dialogue import Dialogue
    from gemelo.cli.lines import lines
    from gemelo.cli.repl import run

    chosen = checked_sampling(sampling)
    _ = media.pan_scan(crops)  # what is wrong with it is an error before anything is loaded
    if system:
        checked_text("--system", system)
    source = ctx.get_parameter_source("max_tokens")
    is_default = source is None or source.name == "DEFAULT"
    with kept_typeahead():
        inputs = lines(quiet)
        loaded = load_model(model, loading, sizes, quiet=quiet, verbose=verbose)
        session = loaded.session()
        elastic.apply(loaded, session, sizes)
        vision_options = media.vision_options(frames, crops, loaded)
        conversation = Conversation(prompt_for(loaded))
        if loaded.tokenizer.chat_template is None and is_default:
            chosen = replace(chosen, max_tokens=CONTINUATION.max_tokens)
        dialogue = Dialogue(
            loaded, session, conversation, chosen, vision_options, quiet=quiet, verbose=verbose
        )
        begin(dialogue, system)
        run(dialogue, inputs)


def begin(dialogue: Dialogue, system: str | None) -> None:
    """Set the instructions, and say what there is to know before the first input."""
    if system and not dialogue.has_template:
        raise InputError("--system needs a chat template and this base model has none")
    if system:
        dialogue.conversation.system = system
    if not dialogue.quiet and not dialogue.has_template:
        note(BASE_MODEL)
    if not dialogue.quiet and interactive():
        note("/help lists the commands; Ctrl-D leaves")
