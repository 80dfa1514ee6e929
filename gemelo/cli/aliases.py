"""Aliases: what llama.cpp, Ollama, mlx-lm and transformers call the options and commands of gemelo.

People type what their hands know. Each name here means exactly what ours means, in every command
that has our option; ours stay the first, and the only ones that --help shows. A name whose meaning
differs, or that has nothing here to stand for, is in `absent`, which says so.

Every option may be written with underscores too, as it is in Python: --max_tokens.

    gemelo generate -p "The capital of France is" -n 20 --temp 0        # llama.cpp's
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

OPTIONS = {
    "--model": ("-hf", "--hf-repo", "--model-path", "--model-name-or-path"),
    "--mmproj": ("-mm",),
    "--threads": ("-t", "--num-thread", "--n-threads"),
    "--context": ("-c", "--ctx-size", "--num-ctx", "--n-ctx"),
    "--system": ("-sys", "--sys", "--system-prompt"),
    "--raw": ("--ignore-chat-template", "-no-cnv", "--no-conversation"),
    "--max-tokens": (
        "-n",
        "--max-new-tokens",
        "--n-predict",
        "--predict",
        "--num-predict",
    ),
    "--temperature": ("--temp",),
    "--repetition-penalty": ("--repeat-penalty",),
    "--seed": ("-s", "--random-seed"),
    "--n": ("--num-return-sequences",),
    "--prompt-tokens": ("-p", "--n-prompt"),  # of bench, as llama-bench has them
    "--new-tokens": ("-n", "--n-gen"),
    "--repeat": ("-r", "--repetitions"),
}
COMMANDS = {
    "ls": "list",
    "download": "pull",
    "tokenise": "tokenize",
    "benchmark": "bench",
}


def of_option(spellings: Iterable[str]) -> Iterator[str]:
    """What else an option may be called, given how it is spelt here."""
    for own in spellings:
        for name in (own, *OPTIONS.get(own, ())):
            if name != own:
                yield name
            if underscored(name) != name:
                yield underscored(name)


def underscored(option: str) -> str:
    """A long option as Python spells it: --top-p is --top_p."""
    return f"--{option[2:].replace('-', '_')}" if option.startswith("--") else option


def own_words(words: Sequence[str]) -> list[str]:
    """A command line with `help COMMAND` and `version` as the options that they are here."""
    match list(words):
        case ["help", *command]:
            return [*command, "--help"]
        case ["version"]:
            return ["--version"]
    return list(words)
