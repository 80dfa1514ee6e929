"""Conversion: a model written as GGUF or as a Hugging Face directory, from either.

Tensors stream from the source's memory map to the target one at a time, so the largest tensor is
all the memory this takes. "native" is exact: what the file has is what is written, block formats
and all; only where the target cannot hold a block format (safetensors) do matrices become
float32, which a notice says with the size before anything is written, since bf16 takes half. Norms
change their convention (GGUF stores 1 + w) and nothing else does. A target is written beside its
name, which it takes when it is whole; `destination` says what may be replaced, and whether there is
room.

    convert(Path("gemma-3-1b-it"), Path("gemma-3-1b-it-q8_0.gguf"), "q8_0")
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemelo.checkpoints.destination import check_apart, check_place, check_room, is_gguf
from gemelo.checkpoints.gguf_key_values import gguf_values, with_loss_notices
from gemelo.checkpoints.locate import expanded, resolve
from gemelo.checkpoints.mmproj import mmproj_names, mmproj_values, with_own_towers
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.plan import (
    Target,
    gguf_targets,
    hf_targets,
    quantisation_notices,
    tower_targets,
)
from gemelo.checkpoints.slice import cut, with_rows, without_padding, without_towers
from gemelo.checkpoints.source import EMBEDDING, Source, architecture
from gemelo.checkpoints.tokenizers import tokenizer_of
from gemelo.checkpoints.written import remember
from gemelo.config import Submodel
from gemelo.config.options import TargetFormat, checked_target
from gemelo.errors import InputError, UnavailableError, UnsupportedError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.weights import names
from gemelo.weights.folder import TOKENIZER_FILES, replaced_folder
from gemelo.weights.gguf_write import write_gguf
from gemelo.weights.mapped import behind, check
from gemelo.weights.metadata_gemma3n import built_in
from gemelo.weights.safetensors import write_safetensors
from gemelo.weights.temporary_files import plain_os_errors

Progress = Callable[[int, int], None]  # bytes written, bytes in all
Notify = Callable[[str], None]  # a sentence for a person to see
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # as a config.json has them
_MAPS = ".msfa.ffn.pw_exp.conv.weight"  # one of MobileNet's convolutions; all have one format


@dataclass(frozen=True)
class Converted:
    """What was written; `notices` says, a sentence each, what was left out or put right, and what
    else would have been better."""

    path: Path
    tensors: int
    size_bytes: int
    notices: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | Path,
    format: TargetFormat = "native",
    *,
    submodel: str | Submodel | None = None,
    text_only: bool = False,
    mmproj: bool = False,
    mixed_widths: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_notice: Notify = lambda notice: None,
) -> Converted:
    """Write a model as `target`: GGUF if it ends in .gguf, else a directory of safetensors.

    source is a path, or a text: a path, a hub id or the embedded default, as `load` takes them.
    submodel writes that part of a Gemma 3n as a model of its own.
    text_only leaves towers out; without it a GGUF target refuses a model that has some. mmproj
    writes the towers alone, as the GGUF that goes beside one of the text model.
    mixed_widths writes a GGUF of feed-forwards of several widths, which llama.cpp does not read.
    Raises `InputError` for a target that exists, unless `overwrite`: then it is replaced when the
    new one is whole; a folder only if it holds a checkpoint and nothing else, and neither the
    source; `UnavailableError` for a disk without room for it. `progress` gets bytes written and in
    all, `on_notice` the result's notices, before anything is written.
    """
    format = checked_target(format)
    source = source if isinstance(source, Path) else resolve(source, progress, on_notice)
    target = expanded(str(target))
    check_place(target, source, overwrite)
    opened = open_source(source) if text_only else with_own_towers(open_source(source))
    check_apart(target, opened, towers_only=mmproj)
    with _while_whole(opened, progress) as more:
        if submodel is not None:
            opened = cut(opened, chosen_submodel(opened, submodel))
        if text_only:
            opened = without_towers(opened)
        if mmproj:
            written = _convert_towers(opened, target, format, overwrite, more, on_notice)
            remember(target)
            return written
        to_gguf = is_gguf(target)
        opened = for_gguf(opened, mixed_widths) if to_gguf else for_directory(opened)
        targets = list(gguf_targets(opened, format) if to_gguf else hf_targets(opened, format))
        notices = (*opened.notices, *quantisation_notices(opened, targets, format))
        total = _prepare(target, targets, notices, on_notice)
        write = _write_gguf if to_gguf else _write_directory
        write(opened, target, targets, overwrite, more)
        remember(target)
        return Converted(target, len(targets), total, notices)


def slice(
    source: str | Path,
    target: str | Path,
    submodel: str | Submodel = "E2B",
    format: TargetFormat = "native",
    *,
    text_only: bool = False,
    mixed_widths: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_notice: Notify = lambda notice: None,
) -> Converted:
    """Write a sub-model of a Gemma 3n as a model of its own, as `convert` writes a whole one.

    submodel is a published name, a .toml or .json file, or a `Submodel`. Raises
    `UnsupportedError` for a model that has none, and as `convert` does.
    """
    return convert(
        source,
        target,
        format,
        submodel=submodel,
        text_only=text_only,
        mixed_widths=mixed_widths,
        overwrite=overwrite,
        progress=progress,
        on_notice=on_notice,
    )


def _convert_towers(
    source: Source,
    target: Path,
    format: TargetFormat,
    overwrite: bool,
    progress: Progress,
    on_notice: Notify,
) -> Converted:
    values, kind = mmproj_values(source), mmproj_names(source)
    if not is_gguf(target):
        raise InputError(f"{target}: an mmproj file is a GGUF; give a name that ends in .gguf")
    targets = list(tower_targets(source, format))
    maps = {t.format.name for t in targets if t.name.endswith(_MAPS)}
    unread = f"llama.cpp aborts at convolutions in {', '.join(maps)}; format f16 is what it runs"
    notices = (*source.notices, *((unread,) if maps - {"f16"} else ()))
    total = _prepare(target, targets, notices, on_notice)
    tensors = ((names.to_gguf(t.name, kind), t.shape, t.format, t.weight) for t in targets)
    write_gguf(target, values, tensors, _bytes_done(progress, total), overwrite)
    return Converted(target, len(targets), total, notices)


def _prepare(
    target: Path, targets: list[Target], notices: tuple[str, ...], on_notice: Notify
) -> int:
    """All there is to say and to ask before a byte is written; how many there will be."""
    total = sum(one.nbytes for one in targets)
    check_room(target, total)
    for notice in notices:
        on_notice(notice)
    with plain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return total


def chosen_submodel(source: Source, submodel: str | Submodel) -> Submodel:
    """A sub-model by name, file or value; `UnsupportedError` for a model that has none."""
    if not source.config.is_matformer:
        raise UnsupportedError(
            f"{source.path}: {source.config.model_type} has no sub-models; Gemma 3n has"
        )
    return Submodel.of(submodel, source.config)


# ---- GGUF ----------------------------------------------------------------------------------------


def for_gguf(source: Source, mixed_widths: bool) -> Source:
    """The source as a GGUF file can hold it. Raises `UnsupportedError` where none can."""
    config = source.config
    if config.is_multimodal:
        raise UnsupportedError(
            f"{source.path} has towers for images or sounds, which a text GGUF cannot hold; "
            "text_only=True leaves them out, mmproj=True writes them alone"
        )
    widths = sorted(set(config.ffn_widths))
    if len(widths) > 1 and not mixed_widths:
        what, cure = f"{source.path}", "slice it to one"
        if not source.is_whole:
            what, cure = f"this sub-model of {source.path}", "choose one that has one"
        raise UnsupportedError(
            f"{what} has feed-forwards of {', '.join(map(str, widths))} neurons, but llama.cpp "
            f"reads one width a model; {cure}, or mixed_widths=True writes a file for gemelo alone"
        )
    if architecture(config) != "gemma3n":
        return source
    assumed = list(built_in(config.to_hf()))
    if len(widths) > 1:
        assumed.append("one feed-forward width")
    if assumed:
        notice = (
            "this is for gemelo alone: llama.cpp loads it and runs it wrongly, since built into it "
            f"are {', '.join(assumed)}"
        )
        source = dataclasses.replace(source, notices=(*source.notices, notice))
    return _with_equal_rows(source) if source.path.is_dir() else source


def _with_equal_rows(source: Source) -> Source:
    """Both tables cut to the text vocabulary: GGUF has one row a token, here as there."""
    config = source.config
    source = without_padding(source)
    rows = config.vocab_size_per_layer_input
    if rows >= config.vocab_size:
        return source
    cut = with_rows(source, {EMBEDDING: rows})
    return dataclasses.replace(cut, config=dataclasses.replace(config, vocab_size=rows))


def _write_gguf(
    source: Source,
    path: Path,
    targets: list[Target],
    overwrite: bool,
    progress: Progress,
) -> None:
    values = gguf_values(source, targets)
    total = sum(target.nbytes for target in targets)
    kind = architecture(source.config)
    tensors = ((names.to_gguf(t.name, kind), t.shape, t.format, t.weight) for t in targets)
    write_gguf(path, values, tensors, _bytes_done(progress, total), overwrite)


# ---- a Hugging Face directory --------------------------------------------------------------------


def for_directory(source: Source) -> Source:
    """The source as a directory holds it."""
    return with_loss_notices(without_padding(source))


def _write_directory(
    source: Source,
    path: Path,
    targets: list[Target],
    overwrite: bool,
    progress: Progress,
) -> None:
    layout = "multimodal" if source.config.is_multimodal else "text"
    if source.config.model_type == "gemma3n":
        layout = "multimodal-3n"
    total = sum(target.nbytes for target in targets)

    tensors = ((names.to_hf(t.name, layout), t.shape, t.format, t.weight) for t in targets)
    with replaced_folder(path, overwrite) as folder:
        write_safetensors(folder, tensors, progress=_bytes_done(progress, total))
        config = source.config.to_hf() | {"torch_dtype": _main_dtype(targets)}
        _write_json(folder / "config.json", config)
        _write_tokenizer(source, folder)


def _main_dtype(targets: list[Target]) -> str:
    kinds = [target.format.name for target in targets if len(target.shape) == 2]
    common = max(set(kinds), key=kinds.count)
    return _DTYPES[common]


def _write_tokenizer(source: Source, folder: Path) -> None:
    """The source's own files where it has them; else a tokenizer.model from the vocabulary."""
    if source.path.is_dir():
        for name in TOKENIZER_FILES:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, folder / name)
        return
    tokenizer = tokenizer_of(source)
    (folder / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))
    ends = dict.fromkeys([*source.config.eos_token_id, *tokenizer.stop_ids])
    _write_json(folder / "generation_config.json", {"eos_token_id": list(ends)})


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    tokens = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    known = {
        f"{role}_token": tokenizer.pieces([token])[0]
        for role, token in tokens.items()
        if token is not None
    }
    template = {} if tokenizer.chat_template is None else {"chat_template": tokenizer.chat_template}
    around = {
        "add_bos_token": bool(tokenizer.prefix_tokens),
        "add_eos_token": bool(tokenizer.suffix_tokens),
    }
    return {"tokenizer_class": "GemmaTokenizer"} | around | known | template


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _while_whole(source: Source, progress: Progress | None) -> Iterator[Progress]:
    """Work that ends when the source's files are not what they were, and its progress."""
    files = behind(source.tensor(name) for name in source.shapes)

    def more(done: int, total: int) -> None:
        check(files)
        if progress is not None:
            progress(done, total)

    try:
        yield more
    except UnavailableError:  # nor can what is gone be written
        check(files)
        raise


def _bytes_done(progress: Progress, total: int) -> Callable[[int], None]:
    """The writers tell how much they have just written; people want to know how far it is."""
    written = 0

    def more(count: int) -> None:
        nonlocal written
        written += count
        progress(written, total)

    return more
