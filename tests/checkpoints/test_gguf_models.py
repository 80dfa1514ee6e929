"""Models in GGUF as others keep them: in parts, with their eyes inside, or no models at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import gemelo
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.tokenizers import read_tokenizer
from gemelo.config import Gemma3Config, Submodel
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.kernels.quants import FORMATS, Packed
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf
from gemelo.weights.mapped import behind
from tests.gguf_files import ollama, rewritten, split, tensors_of
from tests.multimodal import AWAKE, EYED, photograph, write
from tests.tensors import state

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}


def same_weights(one: Path, two: Path) -> bool:
    first, second = state(load_checkpoint(one)), state(load_checkpoint(two))
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# ---- in parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, {"first_is_empty": True}, {"all_facts": True}], ids=str)
def test_a_split_model_runs_from_any_part(
    tiny_checkpoint: Path, tmp_path: Path, shape: dict[str, bool]
) -> None:
    parts = split(tiny_checkpoint, tmp_path / "m", 3, **shape)
    whole = gemelo.load(tiny_checkpoint).generate("the capital", **GREEDY)
    for part in parts:
        assert gemelo.load(part).generate("the capital", **GREEDY).token_ids == whole.token_ids
        assert load_checkpoint(part).notices == ()
        assert read_tokenizer(part).encode("the") == read_tokenizer(tiny_checkpoint).encode("the")
    assert same_weights(parts[1], tiny_checkpoint)


def test_the_parts_are_mapped_where_they_lie(tiny_checkpoint: Path, tmp_path: Path) -> None:
    parts = split(tiny_checkpoint, tmp_path / "m", 3)
    source = open_source(parts[2])
    assert source.files == tuple(parts)
    file = GGUFFile(parts[2])
    maps = behind(map(file.tensor, file))
    assert {Path(one.path) for one in maps} == set(parts)


def test_a_part_that_changes_under_the_model_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    parts = split(tiny_checkpoint, tmp_path / "m", 3)
    model = gemelo.load(parts[0], repack=False)
    with parts[2].open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    with pytest.raises(FileFormatError, match="00003-of-00003.gguf was written to"):
        model.generate("the", **GREEDY)


def test_converting_makes_one_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    parts = split(tiny_checkpoint, tmp_path / "m", 2)
    convert(parts[1], tmp_path / "joined.gguf")
    joined = GGUFFile(tmp_path / "joined.gguf")
    assert not any(key.startswith("split.") for key in joined.metadata)
    assert dict(joined.metadata).keys() == dict(GGUFFile(tiny_checkpoint).metadata).keys()
    assert same_weights(tmp_path / "joined.gguf", tiny_checkpoint)
    with pytest.raises(InputError, match="or a part of it"):
        convert(parts[1], parts[0], overwrite=True)
    assert all(part.is_file() for part in parts)
    convert(parts[0], tmp_path / "folder")
    convert(tiny_checkpoint, tmp_path / "other")
    assert same_weights(tmp_path / "folder", tmp_path / "other")


# ---- with the eye inside -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blob(eyed_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ollama(eyed_directory, tmp_path_factory.mktemp("blobs") / f"sha256-{'0a' * 32}", EYED)


def test_a_file_with_its_own_eye_sees(blob: Path, eyed_directory: Path) -> None:
    found, wanted = load_checkpoint(blob), load_checkpoint(eyed_directory)
    assert isinstance(found.config, Gemma3Config) and found.notices == ()
    assert found.config.vision == EYED.vision
    assert found.config.mm_tokens_per_image == EYED.mm_tokens_per_image
    assert found.config.image_token_index == EYED.image_token_index
    held = state(wanted)
    for name, weight in state(found).items():
        tolerance = 1e-3 if name.endswith("projection_weight") else 1e-6  # float16, and 1 + w
        assert torch.allclose(weight.float(), held[name], atol=tolerance, rtol=tolerance), name


def test_it_answers_as_the_directory_does(blob: Path, eyed_directory: Path) -> None:
    content = [{"type": "image", "image": photograph()}, {"type": "text", "text": "the"}]
    hub, model = gemelo.load(eyed_directory), gemelo.load(blob)
    prompt = hub.prompt([{"role": "user", "content": content}])
    assert model.generate(prompt, **GREEDY).token_ids == hub.generate(prompt, **GREEDY).token_ids
    ours, theirs = model.encode_image(photograph()), hub.encode_image(photograph())
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


def test_it_converts_to_a_directory_and_to_a_pair(blob: Path, tmp_path: Path) -> None:
    convert(blob, tmp_path / "folder")
    assert same_weights(tmp_path / "folder", blob)
    with pytest.raises(UnsupportedError, match="text_only=True"):
        convert(blob, tmp_path / "text.gguf")
    convert(blob, tmp_path / "text.gguf", text_only=True)
    convert(blob, tmp_path / "mmproj.gguf", mmproj=True)
    assert same_weights(tmp_path / "text.gguf", blob)
    stale = ("gemma3.vision.", "gemma3.mm.", "general.parameter_count")
    assert not any(key.startswith(stale) for key in GGUFFile(tmp_path / "text.gguf").metadata)


def test_its_eye_can_be_lent(blob: Path, tmp_path: Path) -> None:
    convert(blob, tmp_path / "text.gguf", text_only=True)
    lent = load_checkpoint(tmp_path / "text.gguf", mmproj=blob)
    assert lent.config == load_checkpoint(blob).config


def test_llama_cpps_names_inside_do_too(blob: Path, tmp_path: Path) -> None:
    convert(blob, tmp_path / "text.gguf", text_only=True)
    convert(blob, tmp_path / "eye.gguf", mmproj=True)
    text, eye = GGUFFile(tmp_path / "text.gguf"), GGUFFile(tmp_path / "eye.gguf")
    facts = {key: eye.metadata[key] for key in eye.metadata if key.startswith("clip.")}
    both = [*tensors_of(text), *tensors_of(eye)]
    write_gguf(tmp_path / "both.gguf", text.metadata.changed(facts), both)
    assert same_weights(tmp_path / "both.gguf", blob)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gemma3.vision.block_count": 3}, "missing"),
        ({"gemma3.vision.patch_size": 0}, "patch_size|whole numbers"),
        ({"gemma3.vision.image_size": "x"}, "whole numbers"),
        ({"gemma3.mm.tokens_per_image": 15}, "tokens_per_image is 15"),
        ({"gemma3.mm.tokens_per_image": 9}, "tokens_per_image is 9"),
    ],
)
def test_an_eye_that_cannot_be_built_is_told(
    blob: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    bad = rewritten(blob, tmp_path / "bad", changes)
    with pytest.raises(GemeloError, match=words):
        convert(bad, tmp_path / "folder")
    convert(bad, tmp_path / "text", text_only=True)
    with pytest.raises(GemeloError, match=words):
        checkpoint = load_checkpoint(bad)  # a whole eye that does not fit is left out, and said
        raise UnsupportedError(" ".join(checkpoint.notices))


def test_a_text_file_may_speak_of_towers_beside_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spoken = {"gemma3.vision.block_count": 27, "gemma3.mm.tokens_per_image": 256}
    assert load_checkpoint(rewritten(tiny_checkpoint, tmp_path / "x.gguf", spoken)).notices == ()
    convert(tmp_path / "x.gguf", tmp_path / "y.gguf")
    assert spoken.keys() <= GGUFFile(tmp_path / "y.gguf").metadata.keys()


# ---- no models -----------------------------------------------------------------------------------

STRANGERS: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"general.type": "adapter", "adapter.type": "lora"}, "an adapter"),
    "lora without a type": ({"general.type": None, "adapter.lora.alpha": 16.0}, "an adapter"),
    "mmproj": ({"general.type": "mmproj", "general.architecture": "clip"}, "--mmproj"),
    "clip": ({"general.type": None, "general.architecture": "clip"}, "--mmproj"),
    "imatrix": ({"general.type": "imatrix", "general.architecture": None}, "importance matrix"),
    "old imatrix": (
        {"general.type": None, "general.architecture": None, "imatrix.chunk_count": 3},
        "importance matrix",
    ),
    "vocabulary": ({"general.type": "vocab"}, "vocabulary without weights"),
    "steering": ({"general.architecture": "controlvector"}, "control vector"),
    "embedder": ({"general.architecture": "gemma-embedding"}, "embedding model"),
    "its Ollama form": ({"gemma3.attention.causal": False}, "gemma3.attention.causal is False"),
    "another": ({"general.architecture": "llama"}, "'llama' model; gemelo reads gemma3"),
    "unheard of": ({"general.type": "x\n\x1b[2J"}, r"'x\\\\n\\\\x1b\[2J'"),
    "nameless": ({"general.type": None, "general.architecture": None}, "general.architecture"),
}


@pytest.mark.parametrize(("changes", "words"), STRANGERS.values(), ids=STRANGERS.keys())
def test_what_is_no_model_is_told_what_it_is(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = rewritten(tiny_checkpoint, tmp_path / "x.gguf", changes)
    with pytest.raises(GemeloError, match=words) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_key_values_alone_are_no_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", GGUFFile(tiny_checkpoint).metadata, [])
    with pytest.raises(FileFormatError, match="no weights of a decoder"):
        load_checkpoint(tmp_path / "x.gguf")


def test_other_tensors_are_listed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = GGUFFile(tiny_checkpoint)
    for name, words in (
        ("rope_freqs.weight", "rope_freqs.weight; factors of the rotary"),
        ("blk.0.attn_q.bias", "unknown: blk.0.attn_q.bias"),
        ("blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_inp.weight"),
    ):
        extra = (name, (8,), FORMATS["f32"], lambda: Packed.of(np.ones(8, np.float32)))
        write_gguf(tmp_path / "x.gguf", file.metadata, [*tensors_of(file), extra])
        with pytest.raises(FileFormatError, match=words):
            load_checkpoint(tmp_path / "x.gguf")


def test_more_layers_than_there_are_weights_of(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for count in (8, 1024):
        changes = {"gemma3.block_count": count}
        path = rewritten(tiny_checkpoint, tmp_path / "x.gguf", changes)
        with pytest.raises(FileFormatError, match=f"block_count is {count}, .* of 7 layers"):
            open_source(path)


@pytest.mark.parametrize("shape", [(), (640,), (2, 3, 4)])
def test_an_embedding_of_other_dimensions_is_of_the_wrong_shape(
    tiny_checkpoint: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    file, name = GGUFFile(tiny_checkpoint), "token_embd.weight"
    wrong = Packed.of(np.zeros(shape, np.float32))
    others = tensors_of(file, [one for one in file.names() if one != name])
    tensors = [(name, shape, wrong.format, lambda: wrong), *others]
    write_gguf(tmp_path / "m.gguf", file.metadata, tensors)
    with pytest.raises(FileFormatError, match=r"1 weights of the wrong shape: .*embed_tokens"):
        load_checkpoint(tmp_path / "m.gguf")


def test_bytes_behind_the_tensors_are_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    shutil.copy(tiny_checkpoint, path)
    assert load_checkpoint(path).notices == ()
    with path.open("ab") as file:
        file.write(b"rubbish" * 10)
    (notice,) = load_checkpoint(path).notices
    assert "70 bytes that belong to no tensor" in notice


# ---- settings ------------------------------------------------------------------------------------


def test_an_unknown_setting_is_told_and_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    changes = {"gemma3.attention.magic": 3, "gemma3.x\x1b[2J": 1, "other.y": 1, "quantize.z": "a"}
    path = rewritten(tiny_checkpoint, tmp_path / "x.gguf", changes)
    (notice,) = load_checkpoint(path).notices
    assert notice.startswith("2 settings of the file") and "gemma3.attention.magic" in notice
    assert "other.y" not in notice and "\x1b" not in notice
    convert(path, tmp_path / "y.gguf")
    assert changes.keys() <= GGUFFile(tmp_path / "y.gguf").metadata.keys()


# ---- key-values through a conversion -------------------------------------------------------------

KEPT: dict[str, Any] = {
    "x.u8": np.uint8(255),
    "x.i8": np.int8(-128),
    "x.u16": np.uint16(65535),
    "x.i16": np.int16(-32768),
    "x.u32": np.uint32(4294967295),
    "x.i32": np.int32(7),
    "x.u64": np.uint64(2**64 - 1),
    "x.i64": np.int64(5),
    "x.f32": np.float32(1e38),
    "x.f64": np.float64(0.1),
    "x.f64 large": np.float64(1e300),
    "x.f64 nan": np.float64("nan"),
    "x.bool": False,
    "x.text": "zwölf\nlines",
    "x.no text": "",
    "x.texts": ["a", "", "ü"],
    "x.no u8": np.zeros(0, np.uint8),
    "x.no f64": np.zeros(0, np.float64),
    "x.u16s": np.array([1, 2], np.uint16),
    "x.bools": np.array([True, False]),
    "x.nested": [np.array([1, 2], np.int16), np.zeros(0, np.int16)],
    "x.nested texts": [["a"], ["b", "c"]],
}


def types(path: Path) -> dict[str, Any]:
    return {
        key: ([kind.name for kind in field.types], b"".join(bytes(p) for p in field.parts[1:]))
        for key, field in gguf.GGUFReader(path).fields.items()
        if not key.startswith("GGUF.")
    }


@pytest.mark.parametrize("format", ["native", "q4_0", "f32"])
def test_key_values_keep_type_and_value(tiny_checkpoint: Path, tmp_path: Path, format: Any) -> None:
    changes = KEPT | {"gemma3.block_count": np.uint64(7), "general.file_type": np.int16(7)}
    rewritten(tiny_checkpoint, tmp_path / "plain.gguf", dict.fromkeys(changes))
    source = rewritten(tmp_path / "plain.gguf", tmp_path / "a.gguf", changes)
    convert(source, tmp_path / "b.gguf", format)
    before, after = types(source), types(tmp_path / "b.gguf")
    kind, _ = before.pop("general.file_type"), after.pop("general.file_type")
    assert kind[0] == ["INT16"] and before == after
    assert types(tmp_path / "b.gguf")["general.file_type"][0] == ["INT16"]


def test_a_slice_keeps_the_types_of_what_it_changes(tmp_path: Path) -> None:
    directory = write(tmp_path / "awake", AWAKE)
    convert(directory, tmp_path / "a.gguf", text_only=True)
    file = GGUFFile(tmp_path / "a.gguf")
    # As other tools have them: wider, narrower, and a float that was always a whole number.
    changes = {
        "gemma3n.block_count": np.uint64(12),
        "gemma3n.context_length": np.int64(1024),
        "gemma3n.feed_forward_length": np.full(12, AWAKE.ffn_widths[0], np.uint16),
        "gemma3n.rope.freq_base": np.float64(1e6),
        "general.size_label": "1B",
        "general.license": "gemma",
    }
    part = Submodel((64,) * 5 + (32,) * 5, (0, 2))
    facts = file.metadata.changed({}, changes).changed(changes)
    write_gguf(tmp_path / "b.gguf", facts, tensors_of(file))
    convert(tmp_path / "b.gguf", tmp_path / "c.gguf", submodel=part, mixed_widths=True)
    before, after = types(tmp_path / "b.gguf"), types(tmp_path / "c.gguf")
    assert before.keys() - after.keys() == {"general.size_label"}
    assert {key: kind for key, (kind, _) in after.items()}.items() <= {
        key: kind for key, (kind, _) in before.items()
    }.items()
    assert GGUFFile(tmp_path / "c.gguf").metadata["gemma3n.block_count"] == 10


def test_what_a_directory_cannot_hold_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    changes = {"general.license": "gemma", "general.name": "x", "mradermacher.x": 1}
    path = rewritten(tiny_checkpoint, tmp_path / "x.gguf", changes)
    (notice,) = convert(path, tmp_path / "folder", "bf16").notices
    assert "2 key-values" in notice and all(key in notice for key in ("license", "mradermacher.x"))
    assert "general.name" not in notice  # which a folder has itself


def test_a_directory_keeps_what_ends_a_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ends = {f"tokenizer.ggml.{key}_token_id": id for key, id in (("eot", 300), ("eom", 301))}
    source = rewritten(tiny_checkpoint, tmp_path / "x.gguf", ends)
    convert(source, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "y.gguf")
    for path in (source, tmp_path / "folder", tmp_path / "y.gguf"):
        assert load_checkpoint(path).tokenizer.stop_ids == (1, 106, 300, 301)
    held = GenerationConfig.from_pretrained(tmp_path / "folder")
    assert held.eos_token_id == [1, 106, 300, 301]


def test_what_a_tokenizer_loses_in_a_directory_is_told(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changes = {"tokenizer.chat_template.tool_use": "x", "tokenizer.ggml.mask_token_id": 4}
    path = rewritten(tiny_checkpoint, tmp_path / "x.gguf", changes)
    (notice,) = convert(path, tmp_path / "folder", "bf16").notices
    assert all(key in notice for key in changes) and "tokenizer.ggml.tokens" not in notice


def test_what_quantisers_and_publishers_write_needs_no_word(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    published = {
        "general.basename": "gemma-3",
        "general.base_model.count": 1,
        "general.base_model.0.repo_url": "https://example.org",
        "general.tags": ["gemma", "text-generation"],
        "general.sampling.top_k": np.int32(64),
        "general.sampling.temp": 1.0,
        "general.quantized_by": "somebody",
        "quantize.imatrix.file": "imatrix.dat",
        "quantize.imatrix.entries_count": np.int32(182),
        "mradermacher.quantize_version": "2",
        "tokenizer.ggml.add_sep_token": False,
        "tokenizer.ggml.mask_token_id": 4,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.dimension_count": 64,
        "gemma3.attention.key_length_swa": 64,
        "gemma3.attention.causal": True,
        "gemma3.expert_count": 0,
        "gemma3.attention.head_count_kv": np.full(7, 2, np.int32),
    }
    path = rewritten(tiny_checkpoint, tmp_path / "x.gguf", published)
    assert (
        load_checkpoint(path).notices == ()
        and load_checkpoint(path).config == load_checkpoint(tiny_checkpoint).config
    )
