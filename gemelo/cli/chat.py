"""`gemelo chat`: talk to a model in the terminal.

On a terminal, lines are edited, remembered and completed; from a pipe they are read as they come,
so that a conversation can be scripted. stdout carries the model's words, stderr all the rest.
Ctrl-C ends an answer between two tokens and keeps the part that was said. The whole conversation is
passed at every turn; the session reads only what is new of it.

    gemelo chat -m google/gemma-3-1b-it
"""

from __future__ import annotations

import typer

from gemelo.cli import elastic, media, options
from gemelo.cli.answer import load_model
from gemelo.cli.conversation import Conversation, prompt_for
from gemelo.cli.terminal import checked_text, interactive, note
from gemelo.errors import InputError


def chat(
    ctx: typer.Context,
    system: options.System = None,
    fps: options.Fps = 1.0,
    image_size: options.ImageSize = None,
    pan_and_scan: options.PanAndScan = None,
    min_crop_size: options.MinCropSize = None,
    max_num_crops: options.MaxNumCrops = None,
    min_ratio_to_activate: options.MinRatio = None,
    model: options.Model = None,
    submodel: options.Submodel = None,
    speculate: options.Speculate = None,
    policy: options.Policy = None,
    repair: options.Repair = "off",
    ple: options.Ple = None,
    mmproj: options.Mmproj = None,
    repack: options.Repack = True,
    format: options.Format = "native",
    threads: options.Threads = None,
    context: options.Context = None,
    kv_format: options.KVCacheFormat = None,
    device: options.Device = "auto",
    max_tokens: options.MaxTokens = 2048,
    temperature: options.Temperature = 1.0,
    top_k: options.TopK = 64,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
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

    sampling = options.sampling(ctx.params)
    _ = media.pan_scan(ctx.params)  # what is wrong with it is told before anything is loaded
    loaded = load_model(model, quiet=quiet, verbose=verbose, **options.loading(ctx.params))
    session = loaded.session()
    elastic.apply(loaded, session, submodel, speculate, policy, repair)
    viewing = media.viewing(ctx.params, loaded)
    _ = loaded.album(viewing)  # a side that the model cannot see is told before anything is said
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
    repl = Repl(loaded, session, conversation, sampling, viewing, quiet=quiet, verbose=verbose)
    repl.run(lines(quiet))
