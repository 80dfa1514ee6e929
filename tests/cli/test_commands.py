"""The /commands of a chat: settings by everybody's names, attachments, statistics, sub-models."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import gemelo as library
from gemelo.cli import answer as answers
from gemelo.cli.conversation import Conversation, as_text, as_turns
from gemelo.cli.dialogue import Dialogue
from gemelo.cli.repl import run
from gemelo.cli.settings import setting_name, with_setting
from gemelo.config.sampling import Sampling
from gemelo.errors import GemeloError, InputError
from tests.cli.conftest import TEMPLATE, Command
from tests.gemma3n import write_3n
from tests.multimodal import EYED, write

SHORT = Sampling(seed=1, max_tokens=4, ignore_eos=True)


def dialogue(model: library.Model, sampling: Sampling = SHORT) -> Dialogue:
    to_prompt = as_text if model.tokenizer.chat_template is None else as_turns
    talk = Conversation(to_prompt)
    return Dialogue(model, model.session(), talk, sampling, quiet=False, verbose=False)


@pytest.fixture(scope="module")
def text_model(chat_directory: Path) -> library.Model:
    return library.load(chat_directory)


@pytest.fixture(scope="module")
def eyed_model(tmp_path_factory: pytest.TempPathFactory) -> library.Model:
    return library.load(write(tmp_path_factory.mktemp("commands") / "eyed", EYED))


@pytest.fixture(scope="module")
def nested_model(tmp_path_factory: pytest.TempPathFactory) -> library.Model:
    folder = write_3n(tmp_path_factory.mktemp("commands") / "tiny-3n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return library.load(folder)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my cat.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return path


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "field", "held"),
    [
        ("temp", "0.5", "temperature", 0.5),
        ("num_predict", "7", "max_tokens", 7),
        ("n-predict", "7", "max_tokens", 7),
        ("repeat_penalty", "1.1", "repetition_penalty", 1.1),
        ("Top_P", "0.5", "top_p", 0.5),
    ],
)
def test_names_of_others(name: str, value: str, field: str, held: object) -> None:
    assert vars(with_setting(Sampling(), name, value))[field] == held


def test_what_is_chosen_at_load_says_so() -> None:
    for name, option in (("num_ctx", "--context"), ("num_thread", "--threads")):
        with pytest.raises(InputError, match=f"start with {option}"):
            setting_name(name)
    with pytest.raises(InputError, match="did you mean temperature"):
        setting_name("temperatur")


def test_set_as_ollama_has_it(
    text_model: library.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = dialogue(text_model)
    run(talk, ["/set parameter temperature 0.5", "/set temp 0.25", "/set verbose", "the"])
    assert talk.sampling.temperature == 0.25
    told = capsys.readouterr().err
    assert "temperature = 0.25" in told and "first token after" in told
    run(talk, ["/set quiet", "the", "/set system be brief", "/show system", "/show parameters"])
    told = capsys.readouterr().err
    assert "first token after" not in told and "temperature 0.25" in told
    assert told.count("instructions: be brief") == 2


def test_a_card_of_the_model(text_model: library.Model, capsys: pytest.CaptureFixture[str]) -> None:
    run(dialogue(text_model), ["/show info", "/show", "/show template", "/show modelfile"])
    told = capsys.readouterr().err
    for word in ("gemma3_text, 7 layers", "256 tokens", "format native", "<start_of_turn>"):
        assert word in told
    assert told.count("family") == 2 and "/show modelfile: nothing of that name" in told


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("/hlep", "/help"), ("/temperatur", ""), ("/stat", "/stats"), ("/quti", "/quit")],
)
def test_unknown_commands_suggest_a_close_one(
    text_model: library.Model, capsys: pytest.CaptureFixture[str], typed: str, meant: str
) -> None:
    run(dialogue(text_model), [typed])
    told = capsys.readouterr().err
    assert (f"did you mean {meant}?" if meant else "/help lists them") in told


@pytest.mark.parametrize(
    "line",
    [
        f"/set max_tokens {'9' * 100_000}",
        f"/set max_tokens 40\n{'x' * 100_000}",
        f"/set temperature {'x' * 100_000}",
        f"/set stop [{'1, ' * 50_000}1]",
        f"/set logit_bias {{{json.dumps('x' * 100_000)}: 1}}",
        f"/set logit_bias {{{json.dumps('1' * 5_000)}: 1}}",
        f"/set ignore_eos {'x' * 100_000}",
        f"/set {'x' * 100_000} 1",
        f"/{'x' * 100_000}",
        f"/show {'x' * 100_000}",
        f"/image {'x' * 100_000}",
        f"/save {'x' * 100_000}",
        f"/load {'x' * 100_000}",
        f"/submodel {'x' * 100_000}",
        f"/policy {'x' * 100_000}",
        f"/speculate {'x' * 100_000}",
    ],
)
def test_a_long_value_is_cut_in_what_is_said(
    text_model: library.Model, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    talk = dialogue(text_model)
    run(talk, [line])
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and len(told) < 520
    assert talk.sampling == SHORT


def test_how_long_a_value_was(text_model: library.Model) -> None:
    with pytest.raises(InputError, match=r"'x{80}'\.\.\. \(100,000 characters\); expected 0 to"):
        with_setting(SHORT, "temperature", "x" * 100_000)


# ---- answers -------------------------------------------------------------------------------------


def test_stats_tell_of_the_last_answer(
    text_model: library.Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words that agree with the other notes; "loading" in the first turn alone."""
    model = library.load(text_model.checkpoint.path)
    talk = dialogue(model)
    run(talk, ["the capital " * 8, "/stats"])
    told = capsys.readouterr().err
    assert "stopped after 4 tokens" in told and "answer: 4 tokens" in told
    assert "s of it loading" in told and "already" not in told
    assert talk.last is not None
    prompt = len(talk.last.prompt_token_ids)
    assert f"prompt: {prompt} tokens, {prompt} read in" in told
    assert f"context: {prompt + 4} of 256 tokens used" in told and "KV cache " in told
    run(talk, ["/regen", "/stats"])
    told = capsys.readouterr().err
    held = (prompt - 1) // 64 * 64  # as far as prompts are cut alike
    read = f"{prompt - held} read"
    assert (
        held and f"prompt: {prompt} tokens, {held} of them already in the KV cache, {read}" in told
    )
    assert "loading" not in told
    first = talk.last
    monkeypatch.setattr(answers, "Bar", Impatient)
    run(talk, ["of the capital", "/stats"])
    assert talk.last is first, "a turn without an answer is not the last answer"
    assert f"prompt: {prompt} tokens" in capsys.readouterr().err


class Impatient(answers.Bar):
    """Ctrl-C after the first chunk of the prompt."""

    def __call__(self, done: int, total: int) -> None:
        if self._label == "reading the prompt":
            raise KeyboardInterrupt


def test_ctrl_c_in_prefill_keeps_what_was_read(
    text_model: library.Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question is gone; asked again, it is read from where it was stopped."""
    talk, question = dialogue(text_model), "the capital of " * 8
    talk.session.cache.slots.chunk = 32
    with monkeypatch.context() as patch:
        patch.setattr(answers, "Bar", Impatient)
        run(talk, [question])
    told = capsys.readouterr().err
    assert talk.conversation.messages == [] and talk.last is None
    assert "(stopped; 32 of the prompt's" in told
    run(talk, [question])
    assert talk.last is not None and talk.last.timings.reused_tokens == 32
    fresh = library.load(text_model.checkpoint.path)
    assert talk.last.text == fresh.chat([{"role": "user", "content": question}], SHORT).text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["/set seed 3"], "seed 3 gives the same text again; /set seed none"),
        (["/set temperature 0"], "temperature 0 gives the same text again"),
        (["/set top_k 1"], "top_k 1 gives the same text again"),
        (["/set seed none"], ""),
    ],
)
def test_regen_says_when_the_text_will_be_the_same(
    text_model: library.Model,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    expected: str,
) -> None:
    talk = dialogue(text_model)
    run(talk, [*settings, "the capital", "/regen"])
    told = capsys.readouterr().err
    assert (expected in told) if expected else ("same text" not in told)
    run(talk, ["/set max_tokens 3", "/regen"])
    assert "same text" not in capsys.readouterr().err, "other settings, another text"


def test_a_base_model_stops_early_and_names_one_that_converses(gemelo: Command) -> None:
    for words, most in (
        ((), 128),
        (("--max-tokens", "130"), 130),
        (("--max-tokens", "2048"), 2048),
    ):
        ran = gemelo("chat", *words, stdin=b"/set\n")
        assert ran.err.count("gemelo chat -m gemma3:1b") == 1 and "cannot converse" in ran.err
        assert f"max_tokens {most}\n" in ran.err


def test_a_model_that_converses_is_told_nothing(gemelo: Command, chat_directory: Path) -> None:
    ran = gemelo("chat", "-m", str(chat_directory), stdin=b"/set\n")
    assert "base model" not in ran.err and "max_tokens 2048\n" in ran.err


# ---- pictures and sound --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "'{}'", '"{}" ', "file://{}"])
def test_a_dropped_picture_is_attached(
    eyed_model: library.Model, picture: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = dialogue(eyed_model)
    run(talk, [f"/image {form.format(picture)}"])
    assert talk.conversation.attached == [{"type": "image", "path": str(picture)}]
    assert f"{picture} goes with what you say next" in capsys.readouterr().err


def test_several_are_attached_or_none(
    eyed_model: library.Model, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copy(picture, picture.with_name("other.png"))
    talk = dialogue(eyed_model)
    run(talk, [f"/image '{picture}' '{other}x'"])
    assert talk.conversation.attached == [] and "no such file" in capsys.readouterr().err
    run(talk, [f"/image '{picture}' '{other}'", "what is this"])
    asked = talk.conversation.messages[0]["content"]
    assert [part["type"] for part in asked] == ["image", "image", "text"]
    run(talk, ["/image https://host/cat.png"])
    told = capsys.readouterr().err
    assert "the picture is at https://host/cat.png: URLs are not fetched" in told


def test_a_path_is_never_silently_a_text(
    eyed_model: library.Model,
    text_model: library.Model,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = picture.rename(picture.with_name("cat.png"))
    for line in (f"{plain}", f"'{plain}'", f"what is in {plain}?", f"file://{plain}"):
        talk = dialogue(eyed_model)
        capsys.readouterr()
        run(talk, [line])
        told = capsys.readouterr().err
        assert talk.conversation.messages == [] and told.count("\n") == 1
        assert f"{plain} is a picture and would go as text; /image {plain} attaches it" in told
        run(talk, [f'"""{line}"""'])
        assert talk.conversation.messages[0]["content"] == line
    capsys.readouterr()
    monkeypatch.chdir(plain.parent)
    talk = dialogue(text_model)
    run(talk, ["cat.png", "is cat.png a good name"])
    told = capsys.readouterr().err
    assert "cat.png is a picture and would go as text; this model reads none" in told
    assert [one["role"] for one in talk.conversation.messages] == ["user", "assistant"]


# ---- sub-models ----------------------------------------------------------------------------------


def test_a_draft_comes_and_goes(
    nested_model: library.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = dataclasses.replace(SHORT, temperature=0)
    talk = dialogue(nested_model, greedy)
    run(talk, ["the", "/speculate half", "/speculate"])
    assert talk.session.draft is not None
    assert "half drafts; the text stays what whole says alone" in capsys.readouterr().err
    run(talk, ["/policy latency:5"])
    assert talk.session.policy is None and "/speculate off ends it" in capsys.readouterr().err
    run(talk, ["of", "/speculate half:int3", "/speculate off"])
    told = capsys.readouterr().err
    assert "/speculate half:int3: expected NAME or NAME:int4" in told
    assert talk.session.draft is None and "no draft from the next answer on" in told
    whole = dialogue(nested_model, greedy)
    run(whole, ["the", "of"])
    assert whole.conversation.messages == talk.conversation.messages


def test_a_policy_comes_and_goes(
    nested_model: library.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = dialogue(nested_model)
    run(talk, ["/policy", "/policy latency:1000000", "the", "/policy", "/speculate half"])
    told = capsys.readouterr().err
    assert "no policy" in told and "from the next token on: latency:1000000" in told
    assert "/policy off ends it" in told and talk.session.policy is not None
    run(talk, ["/policy off", "/policy mood:3"])
    told = capsys.readouterr().err
    assert talk.session.policy is None and "stays" in told
    assert "/policy mood:3: expected latency:" in told


def test_one_size_has_neither(
    text_model: library.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dialogue(text_model), ["/policy latency:3", "/speculate half", "/policy off"])
    told = capsys.readouterr().err
    assert told.count("no sub-models") == 2 and told.endswith("no policy\n")


def test_errors_of_a_policy_name_the_command(nested_model: library.Model) -> None:
    from gemelo.cli.commands import find

    with pytest.raises(GemeloError, match=r"^/policy latency: expected"):
        find("/policy").act(dialogue(nested_model), "latency")
