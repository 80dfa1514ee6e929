"""Streaming generation at the terminal: load a model, stream an answer, note its timings.

What `generate` and `chat` have in common. The first Ctrl-C ends an answer between two tokens, or
between two chunks of the prompt, so that the session stays usable and what was said is kept; the
second ends it at once.

    model = load_model("demo", Loading(format="bf16"), quiet=False, verbose=False)
    session = model.session()
    completion = answer(model, session, prompt, Sampling(seed=1), show=terminal.show, quiet=False)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gemelo.cli.terminal import Bar, Interrupt, note, size
from gemelo.engine.memory.process import peak_rss_bytes

if TYPE_CHECKING:
    from gemelo.api import Model
    from gemelo.cli.groups import Elastic, Loading
    from gemelo.config.sampling import Sampling
    from gemelo.engine.completion import Choice, Completion
    from gemelo.engine.continuation import Piece
    from gemelo.engine.session import Session
    from gemelo.inputs.prompt.chat import Prompt
    from gemelo.transcription import Segment


def load_model(
    name: str | None, loading: Loading, sizes: Elastic | None = None, *, quiet: bool, verbose: bool
) -> Model:
    """`gemelo.load` with a progress bar, and a line about the result if `verbose`.

    A limit on memory is kept by letting go what is mapped, so nothing is repacked then.
    """
    from gemelo.api import load

    settings = vars(loading)
    if sizes is not None and sizes.limits_memory:
        settings = settings | {"repack": False}
    with Bar("loading", shown=not quiet) as bar:
        model = load(name, progress=bar, **settings)
    for notice in () if quiet else model.checkpoint.notices:
        note(f"note: {notice}")
    if verbose:
        from gemelo.kernels import native

        note(
            f"loaded {model.checkpoint.path} in {model.load_s:.2f} s: "
            f"{size(model.checkpoint.weights.nbytes)} of weights, "
            f"format {model.checkpoint.format}, {native.num_threads()} threads"
        )
        for detail in model.checkpoint.details:
            note(f"note: {detail}")
    return model


def answer(
    model: Model,
    session: Session,
    prompt: Prompt,
    sampling: Sampling,
    show: Callable[[str], None],
    quiet: bool,
) -> Completion:
    """Continue a prompt, handing text to `show` as it comes; Ctrl-C cuts it short and keeps it."""
    from gemelo.engine.completion import Completion

    pieces: list[Piece] = []
    for notice in () if quiet else prompt.notices:
        note(f"note: {notice}")
    with Interrupt() as interrupt, Bar("reading the prompt", shown=not quiet) as bar:

        def read(done: int, total: int) -> None:
            bar(done, total)
            interrupt.check()

        try:
            for piece in session.stream(model.tokens(prompt), sampling, read):
                pieces.append(piece)
                show(piece.text)
                if interrupt.requested:
                    break
        except KeyboardInterrupt:
            pass
    return Completion.of(prompt.ids, pieces, session.timings, session.seed, sampling.n)


def cancelled(completion: Completion) -> bool:
    """Whether Ctrl-C cut any of the continuations short."""
    return any(choice.finish_reason == "cancelled" for choice in completion.choices)


def note_length_stop(
    model: Model, answers: Sequence[Choice | Segment], max_tokens: int, cure: str
) -> None:
    """One line on stderr when an answer was cut by a limit; `cure` is what raises max_tokens."""
    lengths = [len(one.token_ids) for one in answers if one.finish_reason == "length"]
    if not lengths:
        return
    longest = max(lengths)
    if longest >= max_tokens:
        note(f"stopped after {longest} tokens; {cure} raises the limit")
    else:
        note(f"stopped after {longest} tokens: the context of {model.engine.context} is full")


def note_timings(completion: Completion) -> None:
    """What the answer cost, on stderr: tokens, seconds and rates, reuse, seed, memory."""
    timings = completion.timings
    total, reused = timings.reused_tokens + timings.prefill_tokens, timings.reused_tokens
    held = f"{reused:,} of them already in the KV cache, " if reused else ""
    note(
        f"prompt: {total:,} tokens, {held}{timings.prefill_tokens:,} read in "
        f"{timings.prefill_s:.2f} s ({timings.prefill_tokens_per_s:.1f} tokens/s)"
    )
    count = sum(len(choice.token_ids) for choice in completion.choices)
    moving = f"; {timings.repack_s:.2f} s of moving weights before" if timings.repack_s else ""
    note(
        f"answer: {count:,} tokens, {timings.decode_s:.2f} s after the first "
        f"({timings.decode_tokens_per_s:.1f} tokens/s){moving}"
    )
    loading = f", {timings.load_s:.2f} s of it loading" if timings.load_s else ""
    note(
        f"first token after {timings.time_to_first_token_s:.2f} s{loading}; "
        f"seed {completion.seed}; peak memory {size(peak_rss_bytes())}"
    )
