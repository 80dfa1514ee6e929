"""One Gemma 3n in several sizes: python examples/submodels.py [PATH_OR_HUB_ID]

Without a path it makes a tiny random model, which says nothing sensible and shows the mechanics.
"""

import sys
import tempfile
from pathlib import Path

import gemelo
from gemelo.config import Submodel


def tiny_random_model(folder: str) -> Path:
    """A random Gemma 3n with the tokenizer of the embedded default."""
    import dataclasses
    import json

    import torch

    from gemelo.config import Gemma3nConfig
    from gemelo.models.gemma3n import Gemma3n
    from gemelo.weights.safetensors import write_safetensors

    config = dataclasses.replace(
        Gemma3nConfig(),
        vocab_size=262144,
        vocab_size_per_layer_input=1024,
        hidden_size=16,
        head_dim=16,
        hidden_size_per_layer_input=32,
    )
    model = Gemma3n(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = 0.15 if parameter.dim() > 1 else 0.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        if parameter.dim() == 1:
            parameter += 1
    path = Path(folder) / "tiny-3n"
    path.mkdir()
    tensors = [
        (f"model.{name}", tuple(weight.shape), torch.bfloat16, lambda w=weight: w.bfloat16())
        for name, weight in model.state_dict().items()
    ]
    write_safetensors(path, tensors)
    (path / "config.json").write_text(json.dumps(config.to_hf()))
    tokenizer = gemelo.load().tokenizer
    (path / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece())
    return path


with tempfile.TemporaryDirectory() as folder:
    path = sys.argv[1] if len(sys.argv) > 1 else tiny_random_model(folder)
    model = gemelo.load(path)
    prompt, settings = "The capital of France is", {"temperature": 0, "max_tokens": 12}

    e2b = model.submodel("E2B")  # a view: every weight is the model's own
    print("E2B:", repr(e2b.generate(prompt, **settings).text))

    session = model.session()  # change size between tokens
    ids = model.tokenizer.encode(prompt)
    for count, _ in enumerate(session.stream(ids, gemelo.Sampling(**settings))):
        if count == 5:
            session.use("E2B")
    print("sizes along one text:", session.written_by)
    session.use("E4B", rebuild="now")
    print("after a rebuild:", set(session.written_by), session.stats)

    session = model.session()
    draft = session.speculate("E2B", gamma=4)  # the same text as without, in fewer passes
    print("drafted:", repr(session.generate(ids, **settings).text))
    print(f"accepted {draft.accepted} of {draft.drafted} guesses")
    print("widths of E2.54B:", set(Submodel.named("E2.54B", model.config).ffn_widths))
