"""Hub ids in the forms that people paste, and the files of a GGUF repository that they mean."""

from __future__ import annotations

import pytest

from gemelo.checkpoints.gguf_names import chosen, mmproj_of, models, quantisation
from gemelo.checkpoints.hub_names import HubName, parse
from gemelo.errors import InputError

FILE = "gemma-3-1b-it-Q4_K_M.gguf"
PAGES = "https://huggingface.co"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("acme/x", HubName("acme/x")),
        ("acme/x:latest", HubName("acme/x")),
        ("acme/x:Q8_0", HubName("acme/x", "Q8_0")),
        ("acme/x:a/m.gguf", HubName("acme/x", "a/m.gguf")),
        (f"{PAGES}/acme/x", HubName("acme/x")),
        (f"{PAGES}/acme/x/", HubName("acme/x")),
        (f"{PAGES}/acme/x/tree/main", HubName("acme/x")),
        (f"{PAGES}/acme/x/tree/v2/Q8", HubName("acme/x", "", "v2")),
        (f"{PAGES}/acme/x/blob/main/{FILE}", HubName("acme/x", FILE)),
        (f"{PAGES}/acme/x/resolve/main/a/{FILE}?download=true", HubName("acme/x", f"a/{FILE}")),
        (f"{PAGES}/acme/x/blob/0123abc/{FILE}#L1", HubName("acme/x", FILE, "0123abc")),
        ("http://www.huggingface.co/acme/x", HubName("acme/x")),
        ("huggingface.co/acme/x", HubName("acme/x")),
        ("HF.co/acme/x:q4_k_m", HubName("acme/x", "q4_k_m")),
        ("hf.co/acme/x:latest", HubName("acme/x")),
        ("hf://acme/x", HubName("acme/x")),
        ("gemma3:1b-it-q8_0", HubName("ggml-org/gemma-3-1b-it-GGUF", "Q8_0")),
        ("nonsense", None),
        ("./acme/x", None),
        ("a/b/c", None),
        ("/acme/x", None),
    ],
)
def test_forms_of_a_hub_id(name: str, meant: HubName | None) -> None:
    assert parse(name) == meant


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://example.com/m.gguf", "download the file and give its path"),
        ("ftp://huggingface.co/a/b", "only pages of the hub"),
        (f"{PAGES}/datasets/a/b", "no model's page"),
        (f"{PAGES}/acme", "no model's page"),
        (f"{PAGES}/acme/x/blob/main/../../y", "not a hub id"),
        ("acme/x:../y", "not a hub id"),
        ("acme/x:", "not a hub id"),
    ],
)
def test_what_is_none(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(name)


@pytest.mark.parametrize(
    ("file", "type"),
    [
        (FILE, "Q4_K_M"),
        ("gemma-3-27b-it.IQ4_XS.gguf", "IQ4_XS"),
        ("gemma-3-4b-it-qat-q4_0.gguf", "Q4_0"),
        ("gemma-3-1b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gemma-3-1b-it-UD-IQ1_S.gguf", "UD-IQ1_S"),
        ("gemma-3-27b-it-f16-00001-of-00002.gguf", "F16"),
        ("BF16/gemma-3-27b-it-00001-of-00002.gguf", "BF16"),
        ("gemma-3-4b-it.BF16-mmproj.gguf", "BF16"),
        ("gemma-3-4b-it.mmproj-Q8_0.gguf", "Q8_0"),
        ("mmproj-model-f16-4B.gguf", "F16"),
        ("model-fp16.gguf", "F16"),
        ("gemma-3-4b-it.gguf", ""),
        ("gemma-3n-E4B-it.gguf", ""),
    ],
)
def test_quantisation_types(file: str, type: str) -> None:
    assert quantisation(file) == type


UNSLOTH = [
    *(f"g-{type}.gguf" for type in ("BF16", "IQ4_NL", "Q2_K", "Q4_K_M", "Q4_0", "Q8_0")),
    *("g-UD-IQ1_S.gguf", "g-UD-Q4_K_XL.gguf", "imatrix_unsloth.dat", "imatrix_unsloth.gguf"),
    *("mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf", "config.json", "params"),
]
SPLIT = ["g-f16-00001-of-00002.gguf", "g-f16-00002-of-00002.gguf", "g-f32-00001-of-00002.gguf"]


@pytest.mark.parametrize(
    ("files", "tag", "file"),
    [
        (UNSLOTH, "", "g-Q4_K_M.gguf"),
        (UNSLOTH, "q8_0", "g-Q8_0.gguf"),
        (UNSLOTH, "UD-iq1_s", "g-UD-IQ1_S.gguf"),
        (UNSLOTH, "ud-q4_k_xl", "g-UD-Q4_K_XL.gguf"),
        (UNSLOTH, "G-Q2_K", "g-Q2_K.gguf"),
        (UNSLOTH, "Q6_K", None),
        (["g-f16.gguf", "g-Q8_0.gguf"], "", "g-Q8_0.gguf"),
        (["g-q4_0.gguf", "mmproj-model-f16-4B.gguf"], "", "g-q4_0.gguf"),
        (["g-IQ1_S.gguf", "g-Q6_K.gguf", "g-Q5_K_M.gguf"], "", "g-Q5_K_M.gguf"),
        (["g-UD-IQ1_S.gguf"], "", None),  # it is not read, and nobody asked for it
        (["g.gguf"], "", "g.gguf"),
        (SPLIT, "F16", "g-f16-00001-of-00002.gguf"),
        (SPLIT, "F32", None),  # half of it
        (["imatrix.gguf", "mmproj-f16.gguf"], "", None),
        (["mmproj-f16.gguf"], "f16", None),
        ([], "", None),
    ],
)
def test_the_file_that_is_meant(files: list[str], tag: str, file: str | None) -> None:
    assert chosen(files, tag) == file


def test_models_of_a_repository() -> None:
    assert len(models(UNSLOTH)) == 8 and models(SPLIT) == SPLIT[:1]


@pytest.mark.parametrize(
    ("files", "model", "mmproj"),
    [
        (UNSLOTH, "g-Q4_K_M.gguf", "mmproj-F16.gguf"),
        (["a/m.gguf", "a/mmproj-q8_0.gguf", "mmproj-f16.gguf"], "a/m.gguf", "a/mmproj-q8_0.gguf"),
        (["a/m.gguf", "b/mmproj-f16.gguf", "mmproj-f32.gguf"], "a/m.gguf", "mmproj-f32.gguf"),
        (["g.gguf", "g.mmproj-Q8_0.gguf", "g.mmproj-f16.gguf"], "g.gguf", "g.mmproj-f16.gguf"),
        (["g.gguf"], "g.gguf", None),
    ],
)
def test_the_mmproj_that_goes_with_it(files: list[str], model: str, mmproj: str | None) -> None:
    assert mmproj_of(files, model) == mmproj
