"""`gemelo chat`: an interactive chat with a model in the terminal.

On a terminal, lines are edited, remembered and completed; from a pipe they are read as they come,
so that a conversation can be scripted. stdout carries the model's words, stderr all the rest.
Ctrl-C ends an answer between two tokens and keeps the part that was said. The whole conversation is
passed at every turn; the session reads only what is new of it.

    gemelo chat -m google/gemma-3-1b-it
"""

from __future__ import annotations

from dataclasses import dataclass

from gemelo.cli import elastic, media, options
from gemelo.cli.answer import load_model
from gemelo.cli.conversation import Conversation, prompt_for
from gemelo.cli.groups import Crops, Elastic, Frames, Loading, checked_sampling, grouped
from gemelo.cli.terminal import checked_text, interactive, note
from gemelo.config.sampling import CHAT
from gemelo.errors import InputError


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
    """Talk to a model. A base model, without a chat template, continues the text instead.

    \b
    gemelo chat -m google/gemma-3-1b-it
    gemelo chat -m google/gemma-3-1b-it --system "Answer in one sentence."
    gemelo chat -m google/gemma-3-4b-it --pan-and-scan
    printf 'Hi!\\n/save talk.json\\n' | gemelo chat -m google/gemma-3-1b-it

    /help inside lists the commands; /image, /audio and /video attach a file to what is said next.
    Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from gemelo.cli.repl import Repl, lines

    chosen = checked_sampling(sampling)
    _ = media.pan_scan(crops)  # what is wrong with it is an error before anything is loaded
    loaded = load_model(model, loading, sizes, quiet=quiet, verbose=verbose)
    session = loaded.session()
    elastic.apply(loaded, session, sizes)
    vision_options = media.vision_options(frames, crops, loaded)
    conversation = Conversation(prompt_for(loaded))
    template = loaded.tokenizer.chat_template is not None
    if system and not template:
        raise InputError("--system needs a chat template and this base model has none")
    if system:
        conversation.system = checked_text("--system", system)
    if not quiet and not template:
        note("note: this is a base model without a chat template; it continues what you type")
    if not quiet and interactive():
        note("/help lists the commands; Ctrl-D leaves")
    repl = Repl(loaded, session, conversation, chosen, vision_options, quiet=quiet, verbose=verbose)
    repl.run(lines(quiet))
