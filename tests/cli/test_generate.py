"""`gemelo generate` and `gemelo tokenize` keep their contract with programs and with people."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import gemelo as library
from gemelo.checkpoints import load, tokenizers
from tests.cli.conftest import Command

GREEDY = ("--temperature", "0", "--ignore-eos", "--max-tokens", "6")
TIMINGS = {
    "load_s",
    "time_to_first_token_s",
    "prefill_s",
    "decode_s",
    "repack_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
}


def test_json_is_what_the_library_says(gemelo: Command, tiny_checkpoint: Path) -> None:
    ran = gemelo("generate", "the capital", *GREEDY, "--json")
    said = json.loads(ran.out)
    model = library.load(tiny_checkpoint)
    wanted = model.generate("the capital", temperature=0, ignore_eos=True, max_tokens=6)
    assert ran.code == 0
    assert said["token_ids"] == list(wanted.token_ids)
    assert said["text"] == wanted.text
    assert said["prompt_token_ids"] == model.tokenizer.encode("the capital")
    assert said["finish_reason"] == "length"
    assert said["model"] == str(tiny_checkpoint) and said["submodel"] is None
    assert set(said["timings"]) == TIMINGS
    assert said["timings"]["load_s"] > 0
    assert said["timings"]["time_to_first_token_s"] > said["timings"]["prefill_s"] > 0
    assert said["peak_rss_bytes"] > 1 << 20
    assert len(ran.out.splitlines()) == 1


def test_text_streams_to_stdout_and_notes_to_stderr(gemelo: Command) -> None:
    as_json = gemelo("generate", "the capital", *GREEDY, "--json")
    as_text = gemelo("generate", "the capital", *GREEDY)
    assert as_text.out == json.loads(as_json.out)["text"] + "\n"
    for ran in (as_json, as_text):
        assert "base model" in ran.err
        assert "stopped after 6 tokens; --max-tokens" in ran.err


def test_quiet_says_nothing_and_verbose_tells_the_seed(gemelo: Command) -> None:
    assert gemelo("generate", "the", *GREEDY, "--quiet").err == ""
    told = gemelo("generate", "the", *GREEDY, "--verbose", "--seed", "7").err
    assert "tokens/s" in told and "seed 7" in told and "loaded" in told


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_ctrl_c_is_said_and_keeps_the_text(
    gemelo: Command, monkeypatch: pytest.MonkeyPatch, quiet: tuple[str, ...]
) -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        if not shown:
            os.kill(os.getpid(), signal.SIGINT)
        shown.append(text)

    monkeypatch.setattr("gemelo.cli.generate.show", show)
    ran = gemelo("generate", "the", "--ignore-eos", "--max-tokens", "200", *quiet)
    assert ran.code == 130 and len(shown) < 100 and shown[-1] == "\n"
    assert ran.err.endswith("(interrupted)\n") or (quiet and ran.err == "")


def test_raw_completes_without_a_remark(gemelo: Command) -> None:
    assert "base model" not in gemelo("generate", "the", "--raw", *GREEDY).err


def test_a_seed_gives_the_same_text_and_the_json_tells_it(gemelo: Command) -> None:
    drawn = json.loads(gemelo("generate", "the", "--max-tokens", "8", "--json").out)
    again = gemelo("generate", "the", "--max-tokens", "8", "--json", "--seed", str(drawn["seed"]))
    assert json.loads(again.out)["token_ids"] == drawn["token_ids"]


def test_stdin_is_a_prompt_less_its_last_line_end(gemelo: Command) -> None:
    argument = json.loads(gemelo("generate", "the\ncapital", *GREEDY, "--json").out)
    piped = json.loads(gemelo("generate", "-", *GREEDY, "--json", stdin=b"the\ncapital\n").out)
    assert piped["prompt_token_ids"] == argument["prompt_token_ids"]


@pytest.mark.parametrize(
    "stdin",
    [
        b"the\r\ncapital\r\n",
        b"\xef\xbb\xbfthe\ncapital",
        "\ufeffthe\r\ncapital\r\n".encode("utf-16-le"),
    ],
)
def test_a_prompt_from_windows_is_the_same_prompt(gemelo: Command, stdin: bytes) -> None:
    argument = json.loads(gemelo("generate", "the\ncapital", *GREEDY, "--json").out)
    piped = json.loads(gemelo("generate", "-", *GREEDY, "--json", stdin=stdin).out)
    assert piped["prompt_token_ids"] == argument["prompt_token_ids"]


def test_stop_texts_end_the_answer(gemelo: Command) -> None:
    whole = json.loads(gemelo("generate", "the", *GREEDY, "--json").out)["text"]
    stop = whole[2:4]
    ran = gemelo("generate", "the", *GREEDY, "--json", "--stop", "never said", "--stop", stop)
    said = json.loads(ran.out)
    assert said["finish_reason"] == "stop"
    assert said["text"] == whole[: whole.index(stop)]


def test_a_full_context_is_named(gemelo: Command) -> None:
    ran = gemelo("generate", "the", "--context", "8", "--ignore-eos", "--raw")
    assert "the context of 8 is full" in ran.err


def test_several_continuations(gemelo: Command) -> None:
    words = ("generate", "the", "--n", "3", "--seed", "1", "--max-tokens", "4", "--ignore-eos")
    said = json.loads(gemelo(*words, "--json").out)
    assert len(said["choices"]) == 3
    assert said["choices"][0]["token_ids"] == said["token_ids"]
    text = gemelo(*words, "--quiet").out
    assert text == "".join(f"--- {i} ---\n{c['text']}\n" for i, c in enumerate(said["choices"], 1))


def test_logprobs(gemelo: Command) -> None:
    said = json.loads(gemelo("generate", "the", *GREEDY, "--json", "--logprobs", "2").out)
    assert [one["id"] for one in said["logprobs"]] == said["token_ids"]
    for one in said["logprobs"]:
        assert one["top"][0] == [one["id"], one["logprob"]]  # greedy took the likeliest
        assert len(one["top"]) == 2
    only = json.loads(gemelo("generate", "the", *GREEDY, "--json", "--logprobs", "0").out)
    assert all(one["top"] == [] for one in only["logprobs"])


def test_a_bias_forces_a_token(gemelo: Command) -> None:
    ran = gemelo("generate", "the", *GREEDY, "--json", "--logit-bias", "441=1000")
    assert json.loads(ran.out)["token_ids"] == [441] * 6


def test_penalties_reach_the_sampler(gemelo: Command) -> None:
    forced = ("generate", "the", *GREEDY, "--json", "--logit-bias", "441=50")
    for option in ("--presence-penalty", "--frequency-penalty"):
        ids = json.loads(gemelo(*forced, option, "100").out)["token_ids"]
        assert ids[0] == 441 and ids[1] != 441
    assert json.loads(gemelo(*forced, "--min-p", "1").out)["token_ids"] == [441] * 6


def test_threads_are_set(gemelo: Command) -> None:
    before = torch.get_num_threads()
    try:
        assert gemelo("generate", "the", *GREEDY, "--threads", "1").code == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_chat_model_takes_turns_unless_told_otherwise(
    gemelo: Command, chat_directory: Path
) -> None:
    words = ("generate", "the", *GREEDY, "--json", "-m", str(chat_directory))
    tokenizer = tokenizers.read_tokenizer(chat_directory)

    def prompt(*more: str) -> str:
        ran = gemelo(*words, *more)
        assert "base model" not in ran.err
        return tokenizer.decode(json.loads(ran.out)["prompt_token_ids"], special=True)

    turn = "<start_of_turn>user\nthe<end_of_turn>\n<start_of_turn>model\n"
    assert prompt() == prompt("--chat") == f"<bos>{turn}"
    assert prompt("--raw") == "<bos>the"
    assert prompt("--system", "in") == f"<bos><start_of_turn>system\nin<end_of_turn>\n{turn}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x\udcff"], "unpaired surrogate"),
        (["x", "--stop", "\udcff"], "--stop is not valid text"),
        (["x", "--stop", ""], "--stop has ''"),
        (["x", "--chat"], "--chat needs a chat template"),
        (["x", "--system", "s"], "--system needs a chat template"),
        (["x", "--system", "s", "--raw"], "--system needs a chat template"),
        (["x", "--chat", "--raw"], "opposites"),
        (["x", "--temperature", "-1"], "--temperature -1: expected 0 to 100"),
        (["x", "--temperature", "nan"], "--temperature nan: expected 0 to 100"),
        (["x", "--top-k", "-1"], "--top-k -1: "),
        (["x", "--top-p", "0"], "--top-p 0: expected above 0"),
        (["x", "--max-tokens", "0"], "--max-tokens 0: "),
        (["x", "--n", "0"], "--n 0: "),
        (["x", "--seed", "-1"], "--seed -1: "),
        (["x", "--logit-bias", "a"], "--logit-bias a: expected ID=V"),
        (["x", "--logit-bias", "600=1"], "--logit-bias token 600"),
        (["x", "--logprobs", "1"], "--logprobs needs --json"),
        (["x", "--threads", "0"], "--threads 0: "),
        (["x", "--context", "257"], "a context of 257 tokens"),
        (["x" * 400], "tokens and the context holds 256"),
        (["x", "--model", "/nowhere"], "/nowhere: no such file"),
        (["x", "--device", "tpu"], "--device tpu: expected"),
        (["x", "--format", "q9"], "--format q9: expected"),
        (["x", "--temperature", "warm"], "--temperature"),
        (["x", "--bogus"], "--bogus"),
        ([], "the prompt is empty: stdin holds no text; give PROMPT"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    gemelo: Command, words: list[str], expected: str
) -> None:
    ran = gemelo("generate", *words, "--quiet")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ") and expected in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("stdin", "expected"), [(b"", "the prompt is empty"), (b"a\xff", "byte 0xff at position 1")]
)
def test_wrong_stdin(gemelo: Command, stdin: bytes, expected: str) -> None:
    ran = gemelo("generate", "-", stdin=stdin)
    assert ran.code == 2 and expected in ran.err


def test_tokenize(gemelo: Command, tiny_checkpoint: Path) -> None:
    tokenizer = tokenizers.read_tokenizer(tiny_checkpoint)
    said = json.loads(gemelo("tokenize", "--json", "the capital<eos>").out)
    assert said["ids"] == tokenizer.encode("the capital<eos>")
    assert said["pieces"] == tokenizer.pieces(said["ids"])
    assert said["ids"][0] == 2 and said["ids"][-1] == 1
    spelt = json.loads(gemelo("tokenize", "--json", "--no-bos", "--no-special", "<eos>").out)
    assert spelt["ids"] == tokenizer.encode("<eos>", bos=False, special=False)
    exact = json.loads(gemelo("tokenize", "--json", "-", stdin="日\n\n".encode()).out)
    assert exact["ids"] == tokenizer.encode("日\n\n")
    windows = "\ufeff日\r\n".encode()
    exact = json.loads(gemelo("tokenize", "--json", "-", stdin=windows).out)
    assert exact["ids"] == tokenizer.encode("日\r\n")


def test_tokenize_for_people_is_a_token_a_line(gemelo: Command) -> None:
    ran = gemelo("tokenize", "a\n")
    assert ran.out.splitlines() == ["      2 <bos>", "    441 a", "    107 \\n"]


def test_tokenize_builds_no_network(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_checkpoint", None)
    monkeypatch.setattr(load, "decoder_weights", None)
    assert gemelo("tokenize", "a").code == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("chat", "--rebuild", "lazy"), "--rebuild lazy: gemma3_text has no sub-models; Gemma 3n"),
        (("generate", "the", "--rebuild", "lazy"), "--rebuild lazy does nothing without --policy"),
        (("chat", "--image-size", "300"), "an image size of 300 pixels: this model takes no pic"),
        (("generate", "the", "--image-size", "300"), "an image size of 300 pixels: this model ta"),
    ],
)
def test_what_the_model_has_nothing_of_is_refused(
    gemelo: Command, tiny_checkpoint: Path, words: tuple[str, ...], error: str
) -> None:
    ran = gemelo(*words, "-m", str(tiny_checkpoint), stdin=b"")
    assert ran.code == 2 and error in ran.err
