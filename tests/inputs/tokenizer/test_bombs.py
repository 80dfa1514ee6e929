"""Files that are small and ask for a lot: refused in a line, within two seconds and 64 MiB.

Each one is read in a process of its own, which is forked from one that has read an honest file, and
is measured from outside. What such a file may cost is counted from what the honest one does.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemelo.errors import GemeloError
from gemelo.inputs.tokenizer.sentencepiece_file import pack_model
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.inputs.tokenizer.vocabulary import Vocabulary
from tests.inputs.conftest import as_json, small_vocabulary

SECONDS, MIB = 2.0, 64
LIMIT = 3 << 30
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TEXT = "a banana and a papaya, aaaa " * 20

Change = Callable[[dict[str, Any]], object]


def steps(member: str, listed: str, steps: list[Any]) -> Change:
    return lambda file: file.update({member: {"type": "Sequence", listed: steps}})


def added(content: str, number: int, **flags: bool) -> dict[str, Any]:
    return {"id": number, "content": content, "special": False} | flags


def wide(file: dict[str, Any], count: int) -> None:
    file["added_tokens"] += [added(f"a{number}", 400 + number) for number in range(count)]


def late(file: dict[str, Any], normalizer: dict[str, Any], content: str) -> None:
    """A string to look for in normalised text, where the library would fail or never end."""
    file["normalizer"] = normalizer
    number = max(entry["id"] for entry in file["added_tokens"]) + 1
    number = max(number, len(file["model"]["vocab"]))
    file["added_tokens"].append(added(content, number, normalized=True))


def replaced(content: str, pattern: dict[str, str] | None = None) -> dict[str, Any]:
    return REPLACE | {"content": content} | ({} if pattern is None else {"pattern": pattern})


HOSTILE: dict[str, Change] = {
    "doubled": steps("normalizer", "normalizers", [REPLACE] * 40),
    "doubled a little": steps("normalizer", "normalizers", [REPLACE] * 16),
    "decoded double": steps("decoder", "decoders", [REPLACE] * 40),
    "long": lambda file: file.update(normalizer=replaced("b" * 3_000_000)),
    "long decoder": lambda file: file.update(decoder=replaced("b" * 3_000_000)),
    "nothing": lambda file: file.update(normalizer=replaced("bb", {"String": ""})),
    "expression": lambda file: file.update(
        normalizer=replaced("b", {"Regex": "(?:a{1,1000}){1,1000}"})
    ),
    "backtracking": lambda file: file.update(
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": "(a+)+$"},
            "behavior": "Isolated",
            "invert": False,
        }
    ),
    "charsmap": lambda file: file.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA" * 1000}
    ),
    "prefix": lambda file: file.update(normalizer={"type": "Prepend", "prepend": "x" * 10**6}),
    "no prefix": lambda file: file.update(normalizer={"type": "Prepend", "prepend": ""}),
    "a string of nothing": lambda file: late(file, replaced("", {"Regex": " {2,}"}), "  "),
    "a string of spaces": lambda file: late(file, replaced(" ", {"String": "x"}), "x"),
    "a string and a strip": lambda file: late(
        file, {"type": "Strip", "strip_left": True, "strip_right": True}, "zz"
    ),
    "strip": lambda file: file.update(
        decoder={"type": "Strip", "content": "a", "start": 0, "stop": 7}
    ),
    "forms": steps("normalizer", "normalizers", [{"type": "NFD"}, REPLACE, {"type": "NFKD"}]),
    "dropout": lambda file: file["model"].update(dropout=0.5),
    "prefix of pieces": lambda file: file["model"].update(continuing_subword_prefix="###"),
    "no such unknown": lambda file: file["model"].update(unk_token="nowhere"),
    "unigram": lambda file: file.update(model={"type": "Unigram", "vocab": [["a", 0.0]]}),
    "long string": lambda file: file["added_tokens"].append(added("a" * 10_000_000, 400)),
    "many strings": lambda file: wide(file, 300_000),
    "long strings": lambda file: file["added_tokens"].extend(
        added(f"{number:01000}", 400 + number) for number in range(3000)
    ),
    "long pieces": lambda file: file["model"]["vocab"].update(
        {f"{number:0100}": 400 + number for number in range(100_000)}
    ),
    "strings beyond": lambda file: file["added_tokens"].append(added("x", 2**31)),
    "string below": lambda file: file["added_tokens"].append(added("x", -1)),
    "same id": lambda file: file["added_tokens"].extend([added("x", 400), added("y", 400)]),
    "same string": lambda file: file["added_tokens"].extend([added("x", 400), added("x", 401)]),
    "empty string": lambda file: file["added_tokens"].append(added("", 400)),
    "flag": lambda file: file["added_tokens"].append(added("x", 400) | {"lstrip": 7}),
    "piece beyond": lambda file: file["model"]["vocab"].update(x=2**31),
    "piece far beyond": lambda file: file["model"]["vocab"].update(x=2**70),
    "piece below": lambda file: file["model"]["vocab"].update(x=-1),
    "piece true": lambda file: file["model"]["vocab"].update(x=True),
    "same piece": lambda file: file["model"]["vocab"].update(x=300),
    "long piece": lambda file: file["model"]["vocab"].update({"x" * 10_000_000: 400}),
    "no merge": lambda file: file["model"].update(merges=[["nowhere", "either"]] * 10),
    "half a merge": lambda file: file["model"].update(merges=[["a"]]),
    "many merges": lambda file: file["model"].update(merges=[["a", "b"]] * 1_200_000),
    "lengths": lambda file: file["added_tokens"].extend(
        added("a" * length, 400 + length, lstrip=True) for length in range(2, 900)
    ),
    "two templates": lambda file: file.update(
        post_processor={"type": "Sequence", "processors": [TEMPLATE, TEMPLATE]}
    ),
    "other template": lambda file: file.update(post_processor={"type": "BertProcessing"}),
}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>"}}, {"Sequence": {"id": "A"}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
}
DEEP = b'{"added_tokens": [], "normalizer": ' + b'{"type": "Sequence", "normalizers": [' * 10_000


def honest() -> dict[str, Any]:
    return as_json(Vocabulary.from_gguf(small_vocabulary()), merges=True)


def hostile_files() -> dict[str, bytes]:
    """A tokenizer.json or, by its name, a tokenizer.model for each attack."""
    files: dict[str, bytes] = {}
    for name, change in HOSTILE.items():
        file = honest()
        change(file)
        files[name] = json.dumps(file).encode()
    model = pack_model(Vocabulary.from_gguf(small_vocabulary()))
    files["deep"] = DEEP
    files["lists"] = b'{"added_tokens": [' + b"[]," * 3_000_000
    files["numbers"] = b'{"added_tokens": [' + b"1.5," * 3_000_000
    files["behind"] = json.dumps(honest()).encode()[:-1] + b', "normalizer": {"type": "Nmt"}}'
    files["digits"] = b'{"added_tokens": [], "x": ' + b"9" * 1_000_000 + b"}"
    files["empty records.model"] = b"\x0a\x00" * 7_000_000
    files["odd records.model"] = model + b"\x0a\x04\x20\x00\x20\x00" * 1_000_000
    files["unknown fields.model"] = model + b"\x20\x00" * 5_000_000
    files["long strings.model"] = found_whole(5000) + model
    files["parts.model"] = model + b"\x12\x02\x20\x00" * 2_000_000
    return files


def found_whole(count: int) -> bytes:
    """Records of a tokenizer.model: strings of a thousand characters that are found as a whole."""
    record = b"\x0a\xf2\x07\x0a\xe8\x07%01000d\x15\x00\x00\x00\x00\x18\x04"
    return b"".join(record % number for number in range(count))


def read(path: Path) -> str:
    """Use a tokenizer as people do; what it was refused with, or "" where it was not."""
    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.decode(tokenizer.encode(TEXT))
        tokenizer.decode(range(tokenizer.vocab_size))
    except GemeloError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def measured(path: Path) -> dict[str, Any]:
    """Read a file in a child: how that ended, its processor time, and how large the child grew."""
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        os.write(theirs, read(path).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, encoding="utf-8") as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(child, 0)
    took_s = usage.ru_utime + usage.ru_stime
    return {"said": said, "status": status, "s": took_s, "mib": usage.ru_maxrss / 1024}


def main(folder: Path) -> None:
    """Measure every file of a folder against the honest one, and print what was found."""
    honest_file = folder / "honest.json"
    read(honest_file)  # so that children have what any reader imports
    plain = measured(honest_file)
    files = sorted(folder.iterdir())
    print(json.dumps({"plain": plain} | {path.name: measured(path) for path in files}))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "honest.json").write_text(json.dumps(honest()))
    for name, content in hostile_files().items():
        (folder / (name if name.endswith(".model") else f"{name}.json")).write_bytes(content)
    command = [sys.executable, "-m", "tests.inputs.tokenizer.test_bombs", str(folder)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found, done.stderr


def test_an_honest_file_is_read(outcomes: tuple[dict[str, Any], str]) -> None:
    assert outcomes[0]["honest.json"]["said"] == ""


def test_hostile_files_are_refused_in_a_line(outcomes: tuple[dict[str, Any], str]) -> None:
    found, printed = outcomes
    assert printed == ""  # nothing of a library's own, such as where it panicked
    for name in found.keys() - {"plain", "honest.json"}:
        said = found[name]["said"]
        assert found[name]["status"] == 0, name
        assert said and "\n" not in said and len(said) < 600, (name, said)


def test_hostile_files_cost_little(outcomes: tuple[dict[str, Any], str]) -> None:
    found, _ = outcomes
    plain = found["plain"]
    costly = {
        name: (one["s"], one["mib"] - plain["mib"])
        for name, one in found.items()
        if one["s"] > plain["s"] + SECONDS or one["mib"] > plain["mib"] + MIB
    }
    assert costly == {}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
