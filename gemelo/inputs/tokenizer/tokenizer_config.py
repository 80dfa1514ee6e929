"""Tokenizer config: tokenizer_config.json, added tokens, generation_config.json, chat template.

tokenizer_config.json names the strings that begin and end a text and says whether they are put
there; it, or the older added_tokens.json and special_tokens_map.json, may add strings to the
vocabulary or give them other flags; generation_config.json lists the ids that end an answer; the
chat template is in a file of its own or in the config. All is read as transformers reads it. What
has no effect here is said in a notice.

    config = read_tokenizer_config(Path("gemma-3-1b-it")); config.eos     # "<eos>"
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemelo.errors import FileFormatError, InputError
from gemelo.inputs.tokenizer.added_tokens import MAX_STRINGS, AddedToken
from gemelo.text_files import read_object, read_text

MAX_TEMPLATE_BYTES = 1 << 20
MAX_CONFIG_BYTES = 8 << 20  # Gemma's has 1.1 MiB: every added string once more
_CONFIG, _GENERATION = "tokenizer_config.json", "generation_config.json"
_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_LISTS = ("additional_special_tokens", "extra_special_tokens")
# Classes that run the file as it is, or by Gemma's rules.
_CLASSES = ("Gemma", "PreTrainedTokenizer", "TokenizersBackend")
_WITHOUT_EFFECT = (
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "split_special_tokens",
    "sp_model_kwargs",
)


@dataclass(frozen=True)
class TokenizerConfig:
    """template: Jinja source; bos, eos, pad: strings; add_bos, add_eos: None where nothing is said;
    added: strings with their ids; named: strings that are special and in the vocabulary already;
    stop_ids: what ends an answer beside eos; notices: what has no effect, a sentence each."""

    template: str | None = None
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    added: tuple[AddedToken, ...] = ()
    named: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()


def find_tokenizer(path: Path) -> Path:
    """The tokenizer.json or tokenizer.model that a path is or holds; InputError for none."""
    candidates = (
        (path / "tokenizer.json", path / "tokenizer.model") if os.path.isdir(path) else (path,)
    )
    for candidate in candidates:
        if os.path.isfile(candidate):  # unlike Path's, this takes any name
            return candidate
    raise InputError(
        f"no tokenizer at {path}: give a tokenizer.json, a tokenizer.model or a directory with one"
    )


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read the files of a directory; those that are not there say nothing.

    Raises FileFormatError for one that cannot be read, or a setting of the wrong type.
    """
    config = _object(folder / _CONFIG)
    if "added_tokens_decoder" not in config:
        config |= _object(folder / "special_tokens_map.json")
    roles = {role: _string(config.get(role), role) for role in _ROLES}
    named = {name: None for name in (*roles.values(), *_listed(config)) if name is not None}
    return TokenizerConfig(
        _template(folder, config),
        roles["bos_token"],
        roles["eos_token"],
        roles["pad_token"],
        _flag(config, "add_bos_token"),
        _flag(config, "add_eos_token"),
        tuple(_added(folder, config, named)),
        tuple(named),
        _stop_ids(_object(folder / _GENERATION).get("eos_token_id")),
        tuple(_notices(config)),
    )


def _object(path: Path) -> dict[str, Any]:
    """The object in a file, or {} where there is no such file."""
    return read_object(path, MAX_CONFIG_BYTES) if path.exists() else {}


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    written = folder / "chat_template.jinja"
    if written.exists():
        return read_text(written, MAX_TEMPLATE_BYTES)
    template = _object(folder / "chat_template.json").get("chat_template")
    template = config.get("chat_template") if template is None else template
    if isinstance(template, list):  # named ones, of which one is "default"
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise FileFormatError(f"the chat template in {folder} is not a string")
    return template


def _string(token: Any, role: str) -> str | None:
    """A token is written as its string, or as an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise FileFormatError(f"{_CONFIG}: {role} is {token!r:.60}: expected a string")
    return content or None


def _listed(config: Mapping[str, Any]) -> Iterator[str]:
    """The strings that are special without a role."""
    for name in _LISTS:
        tokens = config.get(name) or ()
        if isinstance(tokens, dict):
            tokens = list(tokens.values())
        if not isinstance(tokens, list | tuple) or len(tokens) > MAX_STRINGS:
            raise FileFormatError(f"{_CONFIG}: {name} is no list of at most {MAX_STRINGS} strings")
        yield from filter(None, (_string(token, name) for token in tokens))


def _flag(config: Mapping[str, Any], name: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise FileFormatError(f"{_CONFIG}: {name} is {value!r:.60}: expected true or false")
    return value


def _added(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, None]
) -> Iterator[AddedToken]:
    """The strings of added_tokens_decoder, or else of the older added_tokens.json."""
    where = "added_tokens_decoder"
    listed = config.get(where)
    if listed is None:
        where = "added_tokens.json"
        listed = {
            id: {"content": name, "special": name in special, "normalized": name not in special}
            for name, id in _object(folder / where).items()
            if isinstance(id, int)
        }
    if not isinstance(listed, dict) or len(listed) > MAX_STRINGS:
        raise FileFormatError(f"{_CONFIG}: {where} is no object of at most {MAX_STRINGS} tokens")
    for key, entry in listed.items():
        is_number = isinstance(key, str) and key.isdecimal() and len(key) < 10
        yield AddedToken.parse(entry, int(key) if is_number else key, where)


def _stop_ids(value: Any) -> tuple[int, ...]:
    """One id or a list of them; which of them exist is not known here."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id) is int for id in ids) or len(ids) > MAX_STRINGS:
        raise FileFormatError(
            f"{_GENERATION}: eos_token_id is {value!r:.60}: expected an id or a list of ids"
        )
    return tuple(ids)


def _notices(config: Mapping[str, Any]) -> Iterator[str]:
    for name in _WITHOUT_EFFECT:
        if config.get(name):
            yield f"{_CONFIG}: {name} = {config[name]!r:.60} has no effect here"
    class_name = config.get("tokenizer_class")
    if class_name is not None and not str(class_name).startswith(_CLASSES):
        yield (
            f"{_CONFIG}: tokenizer_class {class_name!r:.60} is not Gemma's: the file beside it is "
            "run as it is"
        )
