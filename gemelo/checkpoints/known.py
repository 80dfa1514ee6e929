"""Known models: the names that people hold for Gemma 3 and Gemma 3n, and the hub id each one means.

`demo` is the embedded model. Two kinds of name are known besides it and hub ids. A short name is
Ollama's (`gemma3:1b`, `gemma3n:e4b`, `gemma3:4b-it-q8_0`); it means a GGUF file of a repository
that is fetched without an account: Google's own repositories ask for one and for consent to a
licence, which is no first step. Q4_K_M is taken where nothing else is said, and with it the vision
tower (mmproj) of a Gemma 3 that has one; nobody offers a Gemma 3n's, so that its GGUFs read text
alone. A plain name is that of a repository without its owner (`gemma-3-1b-it`), in any case; those
of Google's mean Google's repositories, in safetensors. What nobody offers without an account, the
pre-trained models mostly, means Google's repository under a short name too.

Sizes are about what is fetched, the mmproj included. Repositories and sizes were written down by
hand and may change on the hub; an absent one is an error that says so.

    hub_id("gemma3:1b")        # "ggml-org/gemma-3-1b-it-GGUF"
    hub_id("Gemma-3-1B-it")    # "google/gemma-3-1b-it"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

DEMO = "demo"  # the embedded model
_GATED = "google"
_TEXT_ONLY = ("268M", "1.0B")  # the sizes of Gemma 3 without a vision tower
_DEFAULT_SIZES = {"gemma3": "4b", "gemma3n": "e4b"}
_TAG = re.compile(
    r"(?P<size>[a-z0-9.]+?)(-(?P<kind>it|pt))?(?P<qat>-qat)?(-(?P<quant>[a-z]+\d[a-z0-9_]*))?"
)
# Models that people ask for out of habit, and that do not run here.
_OTHERS = re.compile(
    r"((code|tiny)?llama|llava|mi[sx]tral|ministral|devstral|qwen|qwq|phi-?\d|deepseek|gpt-?\d|gpt-oss"
    r"|granite|smollm|falcon|olmo|command-r|starcoder|nemotron|vicuna|glm|kimi"
    r"|(code|pali|embedding|recurrent)gemma|gemma(:|-?[124-9]))"
)


@dataclass(frozen=True)
class KnownModel:
    """A model of the table: its name, the repository that this means, and whose model it is.

    original is Google's repository of the same weights, before anyone quantised them.
    """

    name: str
    repository: str
    original: str
    parameters: str
    size_bytes: int

    @property
    def is_gated(self) -> bool:
        """Whether the hub asks for an account that has accepted a licence."""
        return self.repository.startswith(f"{_GATED}/")

    @property
    def reads(self) -> tuple[str, ...]:
        """What the model takes as this name fetches it: the GGUFs of Gemma 3n are its text model
        alone."""
        if "-3n-" in self.original:
            return ("text", "pictures", "sound") if self.is_gated else ("text",)
        return ("text",) if self.parameters in _TEXT_ONLY else ("text", "pictures")

    @property
    def plain_name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.rpartition("/")[2]


def _free(
    short: str, repository: str, original: str, parameters: str, megabytes: int
) -> KnownModel:
    return KnownModel(short, repository, f"{_GATED}/{original}", parameters, megabytes * 10**6)


def _google(name: str, size: str, megabytes: int, short: str = "") -> KnownModel:
    original = f"{_GATED}/{name.removesuffix('-qat-q4_0-gguf')}"
    return KnownModel(short or name, f"{_GATED}/{name}", original, size, megabytes * 10**6)


KNOWN = (
    _free("gemma3:270m", "unsloth/gemma-3-270m-it-GGUF", "gemma-3-270m-it", "268M", 253),
    _free("gemma3:270m-it-qat", "unsloth/gemma-3-270m-it-qat-GGUF", "gemma-3-270m-it", "268M", 253),
    _free("gemma3:270m-pt", "ggml-org/gemma-3-270m-GGUF", "gemma-3-270m", "268M", 292),
    _free("gemma3:1b", "ggml-org/gemma-3-1b-it-GGUF", "gemma-3-1b-it", "1.0B", 806),
    _free("gemma3:1b-it-qat", "ggml-org/gemma-3-1b-it-qat-GGUF", "gemma-3-1b-it", "1.0B", 720),
    _google("gemma-3-1b-pt", "1.0B", 2000, "gemma3:1b-pt"),
    _free("gemma3:4b", "ggml-org/gemma-3-4b-it-GGUF", "gemma-3-4b-it", "4.3B", 3341),
    _free("gemma3:4b-it-qat", "ggml-org/gemma-3-4b-it-qat-GGUF", "gemma-3-4b-it", "4.3B", 3380),
    _google("gemma-3-4b-pt", "4.3B", 8600, "gemma3:4b-pt"),
    _free("gemma3:12b", "ggml-org/gemma-3-12b-it-GGUF", "gemma-3-12b-it", "12.2B", 8155),
    _free("gemma3:12b-it-qat", "ggml-org/gemma-3-12b-it-qat-GGUF", "gemma-3-12b-it", "12.2B", 7980),
    _google("gemma-3-12b-pt", "12.2B", 24400, "gemma3:12b-pt"),
    _free("gemma3:27b", "ggml-org/gemma-3-27b-it-GGUF", "gemma-3-27b-it", "27.4B", 17358),
    _free(
        "gemma3:27b-it-qat", "ggml-org/gemma-3-27b-it-qat-GGUF", "gemma-3-27b-it", "27.4B", 16500
    ),
    _google("gemma-3-27b-pt", "27.4B", 54900, "gemma3:27b-pt"),
    _free("gemma3n:e2b", "unsloth/gemma-3n-E2B-it-GGUF", "gemma-3n-E2B-it", "5.4B", 3030),
    _google("gemma-3n-E2B", "5.4B", 10900, "gemma3n:e2b-pt"),
    _free("gemma3n:e4b", "unsloth/gemma-3n-E4B-it-GGUF", "gemma-3n-E4B-it", "7.9B", 4540),
    _google("gemma-3n-E4B", "7.9B", 15700, "gemma3n:e4b-pt"),
    _google("gemma-3-270m-it", "268M", 540),
    _google("gemma-3-270m", "268M", 540),
    _google("gemma-3-1b-it", "1.0B", 2000),
    _google("gemma-3-4b-it", "4.3B", 8600),
    _google("gemma-3-12b-it", "12.2B", 24400),
    _google("gemma-3-27b-it", "27.4B", 54900),
    _google("gemma-3-1b-it-qat-q4_0-gguf", "1.0B", 1000),
    _google("gemma-3-4b-it-qat-q4_0-gguf", "4.3B", 4010),
    _google("gemma-3-12b-it-qat-q4_0-gguf", "12.2B", 8920),
    _google("gemma-3-27b-it-qat-q4_0-gguf", "27.4B", 18060),
    _google("gemma-3n-E2B-it", "5.4B", 10900),
    _google("gemma-3n-E4B-it", "7.9B", 15700),
)
_BY_SHORT = {model.name: model for model in KNOWN if ":" in model.name}
_BY_PLAIN = {model.plain_name.lower(): model for model in KNOWN}


def hub_id(name: str) -> str | None:
    """What a short or plain name means on the hub: owner/name, or owner/name:QUANT where the name
    asks for one; None for any other name."""
    lowered = name.lower()
    base, _, tag = lowered.partition(":")
    if base in _DEFAULT_SIZES:
        return _of_short(base, tag)
    model = _BY_PLAIN.get(base)
    if model is None:
        return None
    if tag in ("", "latest"):
        return model.repository
    quantised = without_account(model.repository) or model  # Google's safetensors have no formats
    return f"{quantised.repository}:{tag.upper()}"


def without_account(repository: str) -> KnownModel | None:
    """The first model of the table that is fetched without an account and is the same as that of
    a gated repository, but for its format; None for a repository that nothing stands for."""
    same = next((m for m in KNOWN if m.repository.lower() == repository.lower()), None)
    if same is None:
        return None
    return next((m for m in KNOWN if m.original == same.original and not m.is_gated), None)


def suggestions(name: str) -> list[str]:
    """Known names that are nearly spelt like this one, or have it for a tag, the likeliest first;
    none for a model of another family."""
    if is_other_family(name):
        return []
    if tagged := [one for one in _BY_SHORT if one.partition(":")[2] == name.lower()]:
        return tagged
    spelt = {model.name.lower(): model.name for model in KNOWN}
    spelt |= {model.plain_name.lower(): model.plain_name for model in KNOWN}
    spelt |= {f"{_GATED}/{plain}": f"{_GATED}/{plain}" for plain in _BY_PLAIN if "/" in name}
    begun = sorted((one for one in spelt if one.startswith(name.lower())), key=len)
    close = begun[:2] or get_close_matches(name.lower(), spelt, n=2, cutoff=0.75)
    return [spelt[one] for one in close] if len(name) > 2 else []


def is_other_family(name: str) -> bool:
    """Whether a name is that of a model which is neither Gemma 3 nor Gemma 3n."""
    return _OTHERS.match(name.lower()) is not None


def _of_short(family: str, tag: str) -> str | None:
    """gemma3:SIZE[-it|-pt][-qat][-QUANT], as Ollama's tags are built."""
    if tag in ("", "latest"):
        tag = _DEFAULT_SIZES[family]
    parts = _TAG.fullmatch(tag)
    if parts is None:
        return None
    kind = "-pt" if parts["kind"] == "pt" else "-it-qat" if parts["qat"] else ""
    model = _BY_SHORT.get(f"{family}:{parts['size']}{kind}")
    if model is None or (parts["quant"] and model.is_gated):
        return None
    quant = (parts["quant"] or "").upper().replace("FP16", "F16")
    return f"{model.repository}:{quant}" if quant else model.repository
