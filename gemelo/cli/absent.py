"""Options and commands of llama.cpp, Ollama and mlx-lm that are not here, and what is instead.

Whoever types one knows what is meant, so a guess at the spelling would only mislead. Each has a
sentence: what stands in its place here, or that nothing does. Names that mean the same as ours are
`aliases`.

    OPTIONS["--n-gpu-layers"], of_command("list")["-a"], COMMANDS["serve"]
    of_format("q4_k_m", ("native", "q8_0"))
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_GPU = "a model lies on one device as a whole: --device cuda, or --device cpu"
_MAP = "weights are mapped from the file; --no-repack keeps all of them there"
_CHAT = "`gemelo chat` holds a conversation; `gemelo generate` answers once"
_TEMPLATE = "the chat template is the model's own; --raw goes without one"
_GRAMMAR = "answers cannot be held to a grammar or a schema"
_LORA = "adapters are not loaded; merge one into its model first, with the tool that trained it"
_DRAFT = "a draft is a sub-model of a Gemma 3n: --speculate NAME"
_CACHE = "what a session has read is reused by itself; it is not kept on disk"
_KV = "--kv-format plain, bf16 or int8 sets keys and values together"
_BATCH = "prompts are read in pieces of a fixed length; there is nothing to set"
_SAMPLER = "this sampler is not there; --top-k, --top-p and --min-p are"
_WINDOW = "the penalty looks at all tokens of the prompt and the answer"
_FLASH = "attention is computed in one way here; there is nothing to set"

OPTIONS = {
    "-ngl": _GPU,
    "--gpu": _GPU,
    "--gpu-layers": _GPU,
    "--n-gpu-layers": _GPU,
    "--num-gpu": _GPU,
    "--tensor-split": _GPU,
    "--main-gpu": _GPU,
    "--split-mode": _GPU,
    "--cpu": "--device cpu says it",
    "--cuda": "--device cuda says it",
    "-dev": "--device auto, cpu or cuda says it",
    "--mlock": _MAP,
    "--mmap": _MAP,
    "--no-mmap": _MAP,
    "--numa": "threads stay where the system puts them; --threads N sets how many there are",
    "-i": _CHAT,
    "--interactive": _CHAT,
    "--interactive-first": _CHAT,
    "-cnv": _CHAT,
    "--conversation": _CHAT,
    "-st": _CHAT,
    "--single-turn": _CHAT,
    "--jinja": "chat templates are always run; there is nothing to turn on",
    "--no-jinja": _TEMPLATE,
    "--chat-template": _TEMPLATE,
    "--chat-template-file": _TEMPLATE,
    "--grammar": _GRAMMAR,
    "--grammar-file": _GRAMMAR,
    "--json-schema": _GRAMMAR,
    "-j": _GRAMMAR,
    "--lora": _LORA,
    "--lora-scaled": _LORA,
    "--adapter-path": _LORA,
    "--control-vector": "control vectors are not applied",
    "-md": _DRAFT,
    "--model-draft": _DRAFT,
    "--draft-model": _DRAFT,
    "--num-draft-tokens": f"{_DRAFT}; how many tokens it guesses is measured",
    "--draft-max": f"{_DRAFT}; how many tokens it guesses is measured",
    "--cache-prompt": _CACHE,
    "--prompt-cache": _CACHE,
    "--prompt-cache-file": _CACHE,
    "-ctk": _KV,
    "-ctv": _KV,
    "--cache-type-k": _KV,
    "--cache-type-v": _KV,
    "--kv-bits": _KV,
    "--max-kv-size": "--context N is the most tokens that a session holds; older ones do not drop",
    "-b": _BATCH,
    "-ub": _BATCH,
    "-tb": "--threads N holds for the prompt and the answer",
    "--batch-size": _BATCH,
    "--ubatch-size": _BATCH,
    "--prefill-step-size": _BATCH,
    "--threads-batch": "--threads N holds for the prompt and the answer",
    "-fa": _FLASH,
    "--flash-attn": _FLASH,
    "--keep": "tokens never drop out of the context, so none need keeping",
    "--context-shift": "tokens never drop out of the context: it ends when it is full",
    "--no-context-shift": "tokens never drop out of the context: it ends when it is full",
    "--rope-scaling": "positions are as the model's own config has them",
    "--rope-freq-base": "positions are as the model's own config has them",
    "--mirostat": _SAMPLER,
    "--typical": _SAMPLER,
    "--typical-p": _SAMPLER,
    "--tfs": _SAMPLER,
    "--xtc-probability": _SAMPLER,
    "--dry-multiplier": _SAMPLER,
    "--dynatemp-range": _SAMPLER,
    "--samplers": _SAMPLER,
    "--num-beams": "there is no beam search; --n N draws N continuations",
    "--repeat-last-n": _WINDOW,
    "--repetition-context-size": _WINDOW,
    "--do-sample": "a --temperature above 0 samples, and 0 does not",
    "--reverse-prompt": "--stop TEXT ends the answer before TEXT",
    "--max-length": "--max-tokens N counts the answer alone",
    "-e": "texts are taken as they are; $'...' in bash writes a line's end as \\n",
    "--escape": "texts are taken as they are; $'...' in bash writes a line's end as \\n",
    "--color": "answers are not coloured",
    "--no-display-prompt": "the prompt is never printed again",
    "--verbose-prompt": "`gemelo tokenize` shows the tokens of a text",
    "--stream": "answers are shown as they come; --json prints one when it is whole",
    "--no-stream": "--json prints the answer when it is whole",
    "-hff": "--model owner/name:FILE.gguf names a file of a repository",
    "--hf-file": "--model owner/name:FILE.gguf names a file of a repository",
    "-hft": "the environment variable HF_TOKEN holds the hub's token",
    "--hf-token": "the environment variable HF_TOKEN holds the hub's token",
    "-mu": "models are not fetched from URLs; --model takes an id of the Hugging Face hub",
    "--model-url": "models are not fetched from URLs; --model takes an id of the Hugging Face hub",
    "--trust-remote-code": "code of a model's repository is never run",
    "--keepalive": "every command loads its model, and frees it when it ends",
    "--host": "there is no server",
    "--port": "there is no server",
    "--embedding": "embeddings of texts cannot be asked for",
    "--think": "Gemma 3 has no thinking to turn on",
    "--load-in-4bit": "--format q4_0 quantises weights at load",
    "--load-in-8bit": "--format q8_0 quantises weights at load",
    "--torch-dtype": "--format bf16 or f32 says how weights are held",
    "--dtype": "--format bf16 or f32 says how weights are held",
}
_STDOUT = "what is written goes to stdout: `> FILE` behind the command keeps it"
_WORDS = "SOURCE and TARGET are words of their own: `gemelo convert SOURCE TARGET`"
_ASKED = (
    "the model is asked to transcribe or to translate, and nothing else; "
    '`gemelo generate --audio FILE "..."` asks what you like'
)
_MODELFILE = "there are no Modelfiles; /show template and /show parameters in a chat show these"
OF_COMMAND = {  # options that other commands have, or that mean something else there
    "list": dict.fromkeys(
        ("-a", "--all"),
        "all models of this machine are listed; --known lists those that can be fetched",
    ),
    "generate": dict.fromkeys(("-o", "--output", "--output-file"), _STDOUT),
    "run": dict.fromkeys(("-o", "--output", "--output-file"), _STDOUT),
    "transcribe": dict.fromkeys(("-o", "--output", "--output-file", "--output-dir"), _STDOUT)
    | dict.fromkeys(("--prompt", "--initial-prompt"), _ASKED)
    | {"--output-format": "--format text, json, srt or vtt says it"},
    "convert": dict.fromkeys(("--hf-path", "--mlx-path", "-o", "--output", "--outfile"), _WORDS)
    | dict.fromkeys(
        ("--quantize", "--quantise", "--q-bits", "--outtype"), "--format q8_0 or q4_0 says it"
    ),
    "slice": dict.fromkeys(("-o", "--output", "--outfile"), _WORDS.replace("convert", "slice")),
    "bench": {
        "--submodel": "`gemelo slice` cuts a sub-model out, and bench measures what it wrote; "
        "`gemelo generate --submodel NAME --verbose` shows timings of an answer"
    },
    "model": dict.fromkeys(
        ("--modelfile", "--parameters", "--template", "--system", "--license"), _MODELFILE
    ),
}

_SERVER = "there is no server: every command loads its model, and frees it when it ends"
COMMANDS = {
    "serve": _SERVER,
    "server": _SERVER,
    "ps": _SERVER,
    "stop": f"{_SERVER}; Ctrl-C ends an answer, Ctrl-D a chat",
    "info": "`gemelo show MODEL` shows a model, `gemelo --version` the program",
    "inspect": "`gemelo show MODEL` shows a model",
    "create": "there are no Modelfiles: `gemelo chat --system TEXT -m MODEL` says what they would",
    "cp": "models are files and folders: your system's own command copies them",
    "push": "models are not uploaded; `gemelo convert` writes what the hub's own client takes",
    "signin": "HF_TOKEN holds the hub's token; `hf auth login` keeps one",
    "login": "HF_TOKEN holds the hub's token; `hf auth login` keeps one",
    "quantize": "`gemelo convert SOURCE TARGET.gguf --format q4_0` quantises",
    "quantise": "`gemelo convert SOURCE TARGET.gguf --format q4_0` quantises",
    "embed": "embeddings of texts cannot be asked for",
    "embedding": "embeddings of texts cannot be asked for",
    "perplexity": "there is no command for it; `Model.logits` in Python gives what it needs",
    "lora": "models are not trained here",
    "train": "models are not trained here",
    "fuse": _LORA,
    "merge": _LORA,
    "imatrix": "matrices are quantised without statistics of a text",
    "gguf-split": "split files are read as they are, from the first of them",
}

_QUANTISED = re.compile(r"(i?q|tq|mxfp|fp|int|nf)[1-9].*", re.IGNORECASE)
SETTINGS = {  # of Ollama's /set
    "think": "Gemma 3 has no thinking to turn on or off",
    "nothink": "Gemma 3 has no thinking to turn on or off",
    "history": "typed lines are always kept for the arrow keys; delete chat_history to forget them",
    "nohistory": "typed lines are always kept for the arrow keys; delete chat_history to forget "
    "them",
    "wordwrap": "lines are wrapped by the terminal",
    "nowordwrap": "lines are wrapped by the terminal",
    "format": _GRAMMAR,
    "noformat": _GRAMMAR,
}


def of_format(value: str, choices: tuple[str, ...]) -> str:
    """What is to be said of a weight format that is none of the choices; "" if nothing is."""
    if "q8_0" not in choices:
        return ""
    if value.lower() == "json":
        return "--json prints JSON"
    if not _QUANTISED.fullmatch(value):
        return ""
    return (
        "gemelo quantises to q8_0 and q4_0; files in Q4_K, Q5_K, Q6_K and others are read as they "
        "are, with native"
    )


def of_command(name: str | None) -> Mapping[str, str]:
    """Options of other programs that one command alone has sentences for."""
    return OF_COMMAND.get(name or "", {})


def sentence(table: Mapping[str, str], name: str) -> str:
    """What to tell somebody who typed a name of a table; "" for one that is not in it."""
    return table.get(name) or table.get(name.lower().replace("_", "-"), "")
